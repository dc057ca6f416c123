"""`mplus build-data event-qa` against a local server: the data, the checks, trouble, money, interruptions."""

from __future__ import annotations

import gzip
import json
import os
import re
from functools import partial
from pathlib import Path

import pytest

from mplus_cli.data.building import iter_rows, read_manifest
from mplus_cli.data.building.rows import BadRows
from mplus_cli.data.chat import ChatSettings
from mplus_cli.data.event_qa import prompts, quality, read_books
from mplus_cli.data.event_qa.characters import merge_aliases
from mplus_cli.data.event_qa.mentions import Mentions
from mplus_cli.data.event_qa.quality import BlindScores, Cast, flags
from mplus_cli.errors import UsageError
from tests.commands.helpers import CommandLine
from tests.data.chat_server import ChatServer
from tests.fixtures import byte_tokenizer

pytest.importorskip("openai", reason="openai is not installed: pip install 'mplus[data]'")
spacy = pytest.importorskip("spacy", reason="spaCy is not installed: pip install 'mplus[data]'")

SHARED = Path(os.environ.get("MPLUS_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
PEOPLE = ["Elizabeth", "Jane", "Darcy", "Bingley", "Bennet", "Alice", "Hatter", "Duchess"]
TROUBLES = ["429", "malformed", "drop", "refused", "500", "empty", "half", "garbage", "cut"]


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> list[str]:
    """The options that every build here needs: a small spaCy pipeline and a tokenizer, one token per byte."""
    folder = tmp_path_factory.mktemp("tools")
    pipeline = spacy.blank("en")
    pipeline.add_pipe("entity_ruler").add_patterns([{"label": "PERSON", "pattern": name} for name in PEOPLE])
    pipeline.to_disk(folder / "spacy")
    byte_tokenizer().save_pretrained(folder / "tokenizer")
    return ["--spacy", str(folder / "spacy"), "--tokenizer", str(folder / "tokenizer"), "--chunk-size", "1500"]


@pytest.fixture
def novel(tmp_path: Path) -> Path:
    return excerpt(tmp_path, "pride_and_prejudice", 12_000)


@pytest.fixture
def build(monkeypatch, capsys, tools, tmp_path):
    """`build(server, OUT, ...)` runs the command; each folder of answers is its own."""
    for variable in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    quick = partial(ChatSettings, first_backoff=0.005, batch_poll=0.01)
    monkeypatch.setattr("mplus_cli.data.chat.ChatSettings", quick)
    mplus = CommandLine(capsys)

    def run(server: ChatServer | None, out: str, *arguments: object, cache: str = "answers") -> tuple[int, str, str]:
        address = ["--base-url", server.url] if server else []
        places = ["--out", tmp_path / out, "--cache", tmp_path / cache]
        return mplus("build-data", "event-qa", *places, *address, *tools, *arguments)

    return run


def excerpt(folder: Path, name: str, characters: int) -> Path:
    """The beginning of a real novel, without its contents page."""
    path = SHARED / "books" / f"{name}.txt.gz"
    if not path.exists():
        pytest.skip(f"{path} is missing: set MPLUS_SHARED_DATA to the folder of shared test data")
    text = gzip.decompress(path.read_bytes()).decode()
    (folder / f"{name}.txt").write_text(text[2_000 : 2_000 + characters])
    return folder / f"{name}.txt"


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.jsonl.gz"))}


def comparable(folder: Path) -> dict:
    """A manifest without what differs between equal builds: time, and the port of the server."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["created"], manifest["parameters"]["server"]
    return manifest


def test_questions_of_a_novel(build, novel, tmp_path):
    with ChatServer() as server:
        code, out, err = build(server, "qa", novel, "--json", "--licence", "public domain")
    assert code == 0, err
    questions = list(iter_rows(tmp_path / "qa" / "questions.jsonl.gz"))
    flagged = list(iter_rows(tmp_path / "qa" / "flagged.jsonl.gz"))
    (book,) = iter_rows(tmp_path / "qa" / "books.jsonl.gz")
    counts = json.loads(out)["counts"]
    assert json.loads(out)["sources"][0]["licence"] == "public domain"
    assert len(questions) >= 10 and counts["questions"] == len(questions)
    assert counts["flagged"]["questions"] == len(flagged)
    assert len(questions) + len(flagged) == len(book["events"]) - 5
    events = [event["text"] for event in book["events"]]
    text = book["text"]
    for question in questions:
        number = question["event"]
        assert question["past_events"] == events[number - 5 : number]
        assert question["options"][question["answer"]] == events[number]
        assert len(set(question["options"])) == 6
        start, end = question["passage"]["characters"]
        assert events[number] in " ".join(text[start:end].split())
        assert question["characters"]
    assert len({question["answer"] for question in questions}) > 2
    spans = [passage["characters"] for passage in book["passages"]]
    assert spans[0][0] == 0 and spans[-1][1] == len(text)
    assert all(one[1] == other[0] for one, other in zip(spans, spans[1:], strict=False))
    assert book["characters"][0]["mentions"] >= book["characters"][-1]["mentions"]
    assert {"Mr. Bennet", "Mrs. Bennet"} <= {character["name"] for character in book["characters"]}


def test_trouble_changes_no_byte(build, novel, tmp_path):
    with ChatServer() as server:
        assert build(server, "calm", novel, cache="calm-answers")[0] == 0
    with ChatServer(TROUBLES * 2) as server:
        assert build(server, "rough", novel, "--concurrency", 5, cache="rough-answers")[0] == 0
        assert server.troubles == []
    assert shards(tmp_path / "calm") == shards(tmp_path / "rough")
    assert comparable(tmp_path / "calm") == comparable(tmp_path / "rough")


def test_a_rerun_costs_nothing_and_another_seed_only_shuffles(build, novel, tmp_path):
    with ChatServer() as server:
        build(server, "one", novel)
        asked = len(server.bodies)
        build(server, "two", novel, "--processes", 2)
        build(server, "three", novel, "--seed", 1)
        assert len(server.bodies) == asked
    assert shards(tmp_path / "one") == shards(tmp_path / "two") != shards(tmp_path / "three")
    first, other = (list(iter_rows(tmp_path / name / "questions.jsonl.gz")) for name in ("one", "three"))
    assert [sorted(q["options"]) for q in first] == [sorted(q["options"]) for q in other]
    assert [q["answer"] for q in first] != [q["answer"] for q in other]


def test_batch_and_live_builds_are_equal(build, novel, tmp_path):
    with ChatServer() as server:
        assert build(server, "live", novel, cache="live-answers")[0] == 0
        assert build(server, "batch", novel, "--batch", cache="batch-answers")[0] == 0
        assert len(server.batches) == 2  # events, then false events
    assert shards(tmp_path / "live") == shards(tmp_path / "batch")


def test_dry_run_asks_nothing_and_becomes_exact(build, novel, tmp_path):
    with ChatServer() as server:
        code, out, _ = build(server, "qa", novel, "--dry-run", "--json")
        books, plan = json.loads(out), json.loads(out)["asking"]
        assert code == 0 and not server.bodies and not (tmp_path / "qa").exists()
        assert plan["estimated"] and plan["cached"] == 0
        assert plan["requests"] == books["chunks"] * (1 + prompts.TYPICAL_EVENTS)
        assert plan["cost"] == pytest.approx(
            (plan["usage"]["input_tokens"] * 2.5 + plan["usage"]["output_tokens"] * 10) / 1e6
        )
        build(server, "qa", novel)
        plan = json.loads(build(server, "other", novel, "--dry-run", "--json")[1])["asking"]
        assert plan["cached"] == plan["requests"] == len(server.bodies) and plan["cost"] == 0


def test_max_cost_stops_and_a_larger_one_continues(build, novel, tmp_path):
    with ChatServer() as server:
        code, _, err = build(server, "qa", novel, "--max-cost", "0.1")
        assert code == 1 and "max-cost $0.10" in err and "larger --max-cost" in err
        assert 0 < 0.0035 * len(server.bodies) <= 0.1  # 1000 tokens in and 100 out, each time
        code, _, err = build(server, "qa", novel, "--max-cost", "5")
        assert code == 0
        assert len(server.bodies) == len(list((tmp_path / "answers").rglob("*.json")))
        assert "needs a price" in build(server, "qb", novel, "--max-cost", "5", "--model", "mine")[2]


def test_a_model_that_refuses(build, novel, tmp_path):
    with ChatServer(["refused"] * 500) as server:
        code, out, _ = build(server, "qa", novel)
    assert code == 0 and re.search(r"set aside: \d+ events: refused", out)
    assert (
        len(list(iter_rows(tmp_path / "qa" / "set_aside.jsonl.gz")))
        == read_manifest(tmp_path / "qa").counts["set_aside"]["events: refused"]
    )


def test_bad_input(build, novel, tmp_path):
    code, _, err = build(None, "qa", novel)
    assert code == 2 and "no API key" in err and "OPENAI_API_KEY" in err
    (tmp_path / "nobody.txt").write_text("It rained. " * 50)
    with ChatServer() as server:
        code, _, err = build(server, "qa", tmp_path / "nobody.txt")
        assert code == 2 and "no person is named" in err and "Traceback" not in err
        code, _, err = build(server, "qa", novel, "--spacy", "en_core_web_none")
        assert code == 2 and "python -m spacy download en_core_web_none" in err
        assert build(server, "qb", novel)[0] == 0
        code, _, err = build(server, "qb", novel)
        assert code == 2 and "never overwritten" in err


def test_longbook_qa_rows_name_each_book_once(tmp_path):
    rows = [{"id": n, "context": f"Book {n // 2}.", "input": "?", "answer": ["!"]} for n in range(4)]
    path = tmp_path / "longbook_qa_eng.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [book.text for book in read_books([str(path)], BadRows(0))] == ["Book 0.", "Book 1."]
    path.write_text('{"words": "x", "n": 1}\n')
    with pytest.raises(UsageError, match=r":1: no text .* \(found: words, n\)"):
        read_books([str(path)], BadRows(0))
    path.write_text('{broken\n{"text": "Book."}\n{"text": "half a \\ud800 pair"}\n')
    with pytest.raises(UsageError, match=r"more than 0 rows(.|\n)*:1: not JSON"):
        read_books([str(path)], BadRows(0))
    (book,) = read_books([str(path)], bad := BadRows(2))
    assert book.name == "longbook_qa_eng-2" and bad.count == 2 and "surrogate" in bad.named[1]


# --- checks ---

PAST = ["Jane went to London with her aunt.", "Darcy danced with Jane at the ball.", "Jane fell ill at Netherfield."]
TRUE = "Darcy wrote Jane a long letter about Wickham."
FALSE = [
    "Jane sold the old carriage to a farmer.",
    "Darcy lost his hat in the river that day.",
    "Jane quarrelled with the cook over dinner.",
    "Darcy invited the regiment to his house.",
    "Jane found a purse under the oak tree.",
]


@pytest.fixture(scope="module")
def cast() -> Cast:
    return Cast(merge_aliases({"Jane": Mentions(5), "Darcy": Mentions(4)}))


def test_a_good_question_has_no_flag(cast):
    assert flags(PAST, TRUE, FALSE, cast) == []


@pytest.mark.parametrize(
    ("check", "past", "true", "false"),
    [
        (quality.REPEATS_TRUE, PAST, TRUE, [*FALSE[:4], "Darcy wrote a long letter to Jane about Wickham."]),
        (quality.REPEATS_OTHER, PAST, TRUE, [*FALSE[:4], "Jane sold the old carriage to the farmer."]),
        (quality.REPEATS_PAST, PAST, TRUE, [*FALSE[:4], "Jane fell ill at Netherfield again."]),
        (quality.LEAKS, [*PAST, "Darcy wrote a long letter about Wickham to Jane."], TRUE, FALSE),
        (quality.LENGTH, PAST, TRUE + " It ran to many pages and was written in haste by candle light.", FALSE),
        (quality.LENGTH, PAST, "Darcy wrote Jane.", FALSE),
        (quality.NAMES, PAST, TRUE, [f.replace("Jane", "She").replace("Darcy", "He") for f in FALSE]),
    ],
)
def test_each_check_finds_its_fault(cast, check, past, true, false):
    assert flags(past, true, false, cast) == [check]


def test_guessing_by_length():
    options = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]
    assert BlindScores.of([(options, 5), (options, 0)]) == BlindScores(longest=0.5, shortest=0.5)
    assert BlindScores.of([(["aa"] * 6, 3)]).longest == pytest.approx(1 / 6, abs=1e-4)


@pytest.mark.parametrize("text", ["", "[]", '{"events": "x"}', '{"events": [1]}', '{"event": []}', "{"])
def test_malformed_answers(text):
    with pytest.raises(ValueError, match="malformed"):
        prompts.read_events(text)


def test_false_events_must_be_five_different_ones():
    five = [f"Jane did {n}." for n in range(5)]
    assert prompts.read_distractors(json.dumps({"events": [*five, "more"]})) == five
    with pytest.raises(ValueError, match="fewer than five"):
        prompts.read_distractors(json.dumps({"events": [*five[:4], " jane  DID 3"]}))
