"""Whole books: LongBook-QA in InfiniteBench's form, LongBook-Event-QA from a real build; letters and likelihoods."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mplus_cli.core.loading import encode
from mplus_cli.data.building import iter_rows
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.data_folder import data_folder
from mplus_cli.evaluation.long_input import long_input
from mplus_cli.evaluation.tasks.longbook import part, spread
from mplus_cli.evaluation.tasks.longbook_event_qa import LongBookEventQA
from mplus_cli.evaluation.tasks.longbook_qa import LongBookQA
from tests.commands.helpers import CommandLine
from tests.data.chat_server import ChatServer
from tests.evaluation.helpers import answers, evaluate
from tests.evaluation.tasks.helpers import is_png, results_of, system, task_settings
from tests.fixtures import book, byte_tokenizer, tiny_model

QA, EVENTS = LongBookQA(), LongBookEventQA()
PEOPLE = ["Elizabeth", "Jane", "Darcy", "Bingley", "Bennet", "Lydia"]


def items(task, *options: str, **given):
    return list(task.items(task_settings(task, *options, **given)))


def tokens(text: str) -> int:
    return len(encode(byte_tokenizer(), text))


def novel(characters: int) -> str:
    path = data_folder() / "books" / "pride_and_prejudice.txt.gz"
    if not path.exists():
        pytest.skip(f"{path} is missing: set MPLUS_SHARED_DATA to the folder of shared test data")
    return gzip.decompress(path.read_bytes()).decode()[2_000 : 2_000 + characters]


# -- a long text, cut and parted --


@pytest.mark.parametrize("cut", ["left", "middle"])
@pytest.mark.parametrize(("length", "keep"), [(None, 50), (120, 0), (120, 50), (120, 500), (30, 10), (21, 50), (20, 0)])
def test_a_long_text_is_parted_and_distances_are_exact(cut, length, keep):
    text, frame = "".join(f"{n:02} " for n in range(40)), "question: "
    made = long_input(text, frame, 10, byte_tokenizer(), length=length, keep=keep, cut=cut)
    around = 20
    kept = made.text
    assert made.tokens == 120 and tokens(kept) == 120 - made.dropped == min(120, (length or 999) - around)
    assert len(made.recent) <= max(0, keep - around) and text.endswith(made.recent)
    if cut == "left" or made.dropped == 0:
        assert text.endswith(kept)
        assert len(made.recent) == max(0, min(keep - around, len(kept)))
    else:
        assert len(kept[: made.lost[0]]) == min(length - around, (length - 10) // 2)
    for place in range(120):
        left = [n for n in range(120) if not made.lost[0] <= n < made.lost[1]]
        assert made.distance(place) == (sum(n > place for n in left) if place in left else None)


def test_parts_and_spreads():
    assert [part(share) for share in (0, 0.19, 0.2, 0.5, 0.99, 1)] == [0.1, 0.1, 0.3, 0.5, 0.9, 0.9]
    assert spread(range(10), None) == list(range(10)) == spread(range(10), 20)
    assert spread(range(10), 3) == [0, 3, 6] and spread(range(7), 1) == [0]


# -- LongBook-QA --


def infinitebench(folder: Path, *novels: tuple[str, list[tuple[str, list[str]]]]) -> Path:
    rows = [
        {"id": n, "context": text, "input": question, "answer": found, "options": []}
        for n, (text, question, found) in enumerate((text, *one) for text, asked in novels for one in asked)
    ]
    folder.mkdir(exist_ok=True)
    path = folder / "longbook_qa_eng.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_questions_about_a_novel_are_one_item_with_their_places(tmp_path):
    asked = [("Who paid 81 sacks?", ["Vorn9"]), ("Where?", ["nowhere", "Atlantis"]), ("Who came late?", ["vorn39"])]
    folder = infinitebench(tmp_path, (book(40), asked), ("Another novel. " * 50, [("Which one?", ["Another"])]))
    first, other = items(QA, "keep=300", data=folder)
    assert [question.id for question in first.questions] == ["q0", "q1", "q2"] and other.questions[0].id == "q3"
    early, absent, late = first.questions
    assert early.prompt == "\n\nQuestion: Who paid 81 sacks?\nAnswer:" and early.max_new_tokens == 40
    text = "Read the book and answer the question. Be very concise in your answer.\n\n" + book(40)
    assert QA.context_prompt(first.context(early), early) == text + early.prompt
    assert early.metadata["position"] == 0.3 and late.metadata["position"] == 0.9
    place = text.lower().rfind("vorn9")
    assert early.metadata["distance_tokens"] == tokens(text[place:]) - 1
    assert absent.metadata == {"named": False}
    # with any of the questions, what is read does not exceed `keep`
    assert {question.recent for question in first.questions} == {text[-len(early.recent) :]}
    assert max(tokens(question.recent + question.prompt) for question in first.questions) + 40 == 300


def test_a_limit_counts_novels_and_books_can_be_cut(tmp_path):
    folder = infinitebench(tmp_path, (book(40), [("A?", ["Vorn2"]), ("B?", ["Vorn40"])]), (book(9), [("C?", ["x"])]))
    whole = items(QA, data=folder)
    assert items(QA, data=folder, limit=1) == whole[:1] and len(whole) == 2
    cut = items(QA, data=folder, length=1_000)[0]
    assert tokens(cut.context(cut.questions[0]) + cut.questions[0].prompt) + 40 == 1_000
    assert cut.questions[0].metadata["read"] is False and cut.questions[1].metadata["read"] is True
    assert [len(item.questions) for item in items(QA, "questions=1", data=folder)] == [1, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no records"),
        ('{"context": "x", "input": "y"}\n', "line 1: not a record of InfiniteBench"),
        ('{"context": "x", "input": "y", "answer": [" "]}\n', "not a record"),
        ('{"context"\n', r"longbook_qa_eng\.jsonl:1: not JSON"),
        ("[]\n", "not a record"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "longbook_qa_eng.jsonl").write_text(content)
    with pytest.raises(UsageError, match=message):
        items(QA, data=tmp_path)


def test_missing_books_are_one_message_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLUS_SHARED_DATA", str(tmp_path))
    with pytest.raises(
        UsageError, match="LongBook-QA is missing.*the hub gave no xinrongzhang2022/InfiniteBench"
    ) as given:
        items(QA)
    assert "hf download xinrongzhang2022/InfiniteBench longbook_qa_eng.jsonl" in given.value.hint
    with pytest.raises(UsageError, match="LongBook-Event-QA is missing: no build in") as given:
        items(EVENTS)
    assert "mplus build-data event-qa --out DIR" in given.value.hint


def test_a_real_novel_end_to_end(model_folder: Path, tmp_path: Path):
    asked = [("Who is the master of Netherfield?", ["Bingley"]), ("Who has five daughters?", ["Mrs. Bennet", "Bennet"])]
    folder = infinitebench(tmp_path / "data", (novel(6_000), asked), (novel(3_000), asked[:1]))
    given = {"systems": ("mplus", "window:size=1024"), "data": folder}
    found = [answers(pair) for pair in evaluate(tmp_path / "out", model_folder, "longbook-qa", **given)]
    assert [list(one) for one in found] == [["novel-0/q0", "novel-0/q1", "novel-1/q2"]] * 2
    assert found[0]["novel-0/q1"]["metadata"]["book"] == "novel-0"
    results = json.loads((tmp_path / "out" / "longbook-qa" / "mplus" / "run.json").read_text())
    assert results["samples"] == 3 and results["items"] == 2
    assert found == [
        answers(pair) for pair in evaluate(tmp_path / "one", model_folder, "longbook-qa", **(given | {"batch": 1}))
    ]


# -- LongBook-Event-QA --


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    """What `mplus build-data event-qa` makes of the beginning of a real novel, with a chat model that is a rule."""
    pytest.importorskip("openai", reason="openai is not installed: pip install 'mplus[data]'")
    spacy = pytest.importorskip("spacy", reason="spaCy is not installed: pip install 'mplus[data]'")
    folder = tmp_path_factory.mktemp("event-qa")
    (folder / "novel.txt").write_text(novel(9_000))
    pipeline = spacy.blank("en")
    pipeline.add_pipe("entity_ruler").add_patterns([{"label": "PERSON", "pattern": name} for name in PEOPLE])
    pipeline.to_disk(folder / "spacy")
    byte_tokenizer().save_pretrained(folder / "tokenizer")

    class Silent:
        def readouterr(self) -> tuple[str, str]:
            return "", ""

    with ChatServer() as server:
        arguments = ["--out", folder / "qa", "--cache", folder / "cache", "--base-url", server.url]
        arguments += ["--spacy", folder / "spacy", "--tokenizer", folder / "tokenizer", "--chunk-size", 1_500]
        code, _, _ = CommandLine(Silent())("build-data", "event-qa", *arguments, folder / "novel.txt")  # type: ignore[arg-type]
    assert code == 0
    return folder / "qa"


def test_every_question_of_a_build_is_asked_at_the_end_of_the_book(build):
    rows = list(iter_rows(build / "questions.jsonl.gz"))
    (told,) = iter_rows(build / "books.jsonl.gz")
    (item,) = items(EVENTS, "keep=1600", data=build)
    assert len(item.questions) == len(rows) >= 5
    text = "Read the book and answer the question.\n\n" + told["text"]
    for question, row in zip(item.questions, sorted(rows, key=lambda row: row["event"]), strict=True):
        assert item.context(question) == text and question.after == 1 and question.recent
        for number, past in enumerate(row["past_events"], 1):
            assert f"\n{number}. {past}\n" in question.prompt
        assert f"\n{question.references[0]}. {row['options'][row['answer']]}\n" in question.prompt
        assert question.prompt.endswith("\nThe letter of the correct answer is")
        assert question.options == (" A", " B", " C", " D", " E", " F")
        end = row["passage"]["characters"][1]
        assert question.metadata["distance_tokens"] == tokens(told["text"][end:])
        assert question.metadata["position"] == pytest.approx((end - 1) / len(told["text"]), abs=0.11)
    assert len({question.metadata["position"] for question in item.questions}) >= 3


def test_asked_at_its_passage_nothing_later_is_known(build):
    (told,) = iter_rows(build / "books.jsonl.gz")
    rows = {str(row["event"]): row for row in iter_rows(build / "questions.jsonl.gz")}
    (item,) = items(EVENTS, "asked=passage", data=build)
    for question in item.questions:
        end = rows[question.id]["passage"]["characters"][1]
        read = "".join(document.text for document in item.documents[: question.after])
        assert read == "Read the book and answer the question.\n\n" + told["text"][:end]
        assert question.recent == "" and question.metadata["distance_tokens"] == 0
    with pytest.raises(UsageError, match="reads books whole"):
        items(EVENTS, "asked=passage", data=build, length=1_000)


def test_events_are_weighed_as_the_next_line_of_a_list(build):
    (item,) = items(EVENTS, "weigh=events", "questions=3", data=build)
    rows = {str(row["event"]): row for row in iter_rows(build / "questions.jsonl.gz")}
    assert len(item.questions) == 3
    for question in item.questions:
        row = rows[question.id]
        assert question.prompt.endswith(f"\n5. {row['past_events'][4]}\n6.")
        assert question.options == tuple(f" {event}" for event in row["options"])
        assert not any(event in question.prompt for event in row["options"])
    found = list(system("mplus", tiny_model(), "short_term=zeros").answer(EVENTS, [item]))
    assert all(len(one.extra["option_logprobs"]) == 6 for one in found)


def test_flagged_questions_are_left_out_unless_asked_for(build):
    flagged = list(iter_rows(build / "flagged.jsonl.gz"))
    plain, all_of_them = (items(EVENTS, f"flagged={value}", data=build)[0] for value in ("false", "true"))
    assert len(all_of_them.questions) == len(plain.questions) + len(flagged)
    assert {question.id for question in plain.questions} < {
        question.id for question in all_of_them.questions
    } or not flagged


def test_another_build_is_refused(build, tmp_path):
    manifest = json.loads((build / "manifest.json").read_text()) | {"builder": "retention"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="was made by `mplus build-data retention`"):
        items(EVENTS, data=tmp_path)


def test_a_real_build_end_to_end(build, model_folder: Path, tmp_path: Path):
    given = {"systems": ("mplus", "closed-book"), "data": build, "settings": ("questions=4",)}
    pairs = evaluate(tmp_path / "out", model_folder, "longbook-event-qa", **given)
    for pair in pairs:
        found = answers(pair)
        assert len(found) == 4
        assert all(len(sample["extra"]["option_logprobs"]) == 6 for sample in found.values())
    from mplus_cli.evaluation.scoring import score

    task, results, _ = score(pairs[0])
    assert results.results["scores"]["chance"]["mean"] == pytest.approx(1 / 6)
    assert 0 <= results.results["scores"]["by_likelihood"]["mean"] <= 1
    (path,) = task.plot([results], tmp_path)
    assert path.name == "longbook-event-qa.png" and is_png(path)


def test_curves_of_a_system_that_knows_the_beginning(build, tmp_path):
    (item,) = items(EVENTS, data=build)
    made = {}
    for question in item.questions:
        right = question.metadata["position"] < 0.5
        logprobs = [0.0 if right == (letter == question.references[0]) else -1.0 for letter in "ABCDEF"]
        made[item.sample_id(question)] = {"option_logprobs": logprobs}
    results = results_of(EVENTS, [item], made, "mplus", tiny_model().config)
    by = {
        group["by"]["position"]: group["scores"]["by_likelihood"]["mean"]
        for group in results.results["groups"]
        if list(group["by"]) == ["position"]
    }
    assert all(value == (1.0 if position < 0.5 else 0.0) for position, value in by.items()) and len(by) >= 3
    assert is_png(EVENTS.plot([results], tmp_path)[0])
