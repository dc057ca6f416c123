"""Needles: what is hidden, where, and what counts as found."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random

import pytest

from mplus_cli.core.loading import encode
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.data_folder import data_folder
from mplus_cli.evaluation.tasks.needle import Needle, exact_match, found
from mplus_cli.evaluation.tasks.needle_kinds import fact_needles
from tests.evaluation.helpers import evaluate
from tests.evaluation.tasks.helpers import is_png, results_of, task_settings
from tests.fixtures import book, byte_tokenizer, tiny_model

TASK = Needle()
ALL = "kinds=[single,multi_key,multi_value,lines,pairs]"


def items(*options: str, **given):
    return list(TASK.items(task_settings(TASK, *options, **given)))


def published(name: str) -> Path:
    path = data_folder() / "niah" / name
    if not path.exists():
        pytest.skip(f"{path} is missing: set MPLUS_SHARED_DATA to the folder of shared test data")
    return path


@pytest.mark.parametrize("kind", ["single", "multi_key", "multi_value", "lines", "pairs"])
@pytest.mark.parametrize("value", ["fact", "number", "word", "uuid"])
def test_the_answer_stands_once_in_the_text_at_its_depth_and_nowhere_in_the_question(kind, value):
    made = items(f"kinds=[{kind}]", f"value={value}", "lengths=[2500]", "repeats=2")
    assert len(made) == 10
    for item in made:
        (question,), (document,) = item.questions, item.documents
        tokens = len(encode(byte_tokenizer(), document.text))
        assert 2_500 - 250 <= tokens <= 2_500
        assert len(question.references) == (4 if kind == "multi_value" else 1)
        for reference in question.references:
            assert reference not in question.prompt
            place = document.text.index(reference) / len(document.text)
            if value != "fact" or kind in ("lines", "pairs"):
                assert document.text.count(reference) == 1
            # Four needles are an eighth of so short a text, and their values stand about the depth.
            slack = 0.2 if kind == "multi_value" else 0.12
            assert place == pytest.approx(question.metadata["depth"], abs=slack)
        distance = question.metadata["distance_tokens"]
        assert distance / tokens == pytest.approx(1 - question.metadata["depth"], abs=slack)
        assert question.metadata["distance_writes"] == distance // 64
        longest = encode(byte_tokenizer(), " " + ", ".join(question.references))
        assert question.max_new_tokens > len(longest)
        assert question.prompt.startswith("Question: ") and question.prompt.endswith(" Answer:")


def test_several_keys_are_hidden_and_only_one_is_asked_for():
    for item in items("kinds=[multi_key]", "value=number", "needles=5", "lengths=[2500]", "repeats=1"):
        told = [line for line in item.documents[0].text.split(".") if "special magic number" in line]
        keys = {line.split(" for ")[1].split(" is:")[0] for line in told}
        assert len(told) == len(keys) == 5
        assert sum(f"for {key}?" in item.questions[0].prompt for key in keys) == 1


def test_all_values_of_one_key_are_asked_for():
    (item,) = items("kinds=[multi_value]", "lengths=[2500]", "depths=[0.5]", "repeats=1", "needles=3")
    (question,) = item.questions
    assert len(set(question.references)) == 3
    key = question.prompt.split(" for ")[1].split("?")[0]
    assert item.documents[0].text.count(f"numbers for {key} is:") == 3


def test_facts_are_about_people_the_book_does_not_know():
    plain = fact_needles(4, Random(1), lambda name: False)
    known = plain[0].key
    other = fact_needles(4, Random(1), lambda name: name == known)
    assert known not in [needle.key for needle in other]
    for needles in (plain, other):
        assert len({needle.value for needle in needles}) == len({needle.key for needle in needles}) == 4
        assert all(n.key in n.sentence and n.value in n.sentence and n.key in n.question for n in needles)


def test_every_cell_comes_once_before_any_comes_twice_and_a_limit_takes_the_first():
    made = items(ALL, "lengths=[1200,2500]", "depths=[0,1]", "repeats=2")
    cells = [tuple(item.questions[0].metadata[key] for key in TASK.group_by) for item in made]
    assert len(cells) == 40 and len(set(cells[:20])) == len(set(cells[20:])) == 20
    assert len({item.id for item in made}) == 40
    assert items(ALL, "lengths=[1200,2500]", "depths=[0,1]", "repeats=2", limit=7) == made[:7]
    assert cells[:20] != sorted(cells[:20])


def test_lengths_follow_the_length_asked_for_or_the_chunks_of_the_model():
    made = items("kinds=[single]", "depths=[0]", "repeats=1")
    assert sorted(item.questions[0].metadata["length"] for item in made) == [512, 1024, 2048, 4096]
    made = items("kinds=[single]", "depths=[0]", "repeats=1", length=8_000)
    assert sorted(item.questions[0].metadata["length"] for item in made) == [1000, 2000, 4000, 8000]


def test_the_seed_decides_and_nothing_else():
    assert items("repeats=1", limit=6) == items("repeats=1", limit=6)
    assert items("repeats=1", limit=6) != items("repeats=1", limit=6, seed=1)


def test_any_book_can_be_the_haystack(tmp_path: Path):
    (tmp_path / "my_book.txt").write_text(book(100))
    (item,) = items("kinds=[single]", "depths=[0.5]", "lengths=[900]", "repeats=1", "book=my_book.txt", data=tmp_path)
    assert "the miller of Vorn" in item.documents[0].text
    assert item.questions[0].metadata["book"] == "my_book.txt"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["lengths=[40]", "kinds=[multi_key]"], "no room for 4 needles"),
        (["depths=[]"], "at least one"),
        (["depths=[1.5]"], "at most 1"),
        (["kinds=[singel]"], "did you mean 'single'"),
        (["needle=3"], "did you mean 'needles'"),
        (["book=nowhere.txt"], "nowhere.txt"),
        (["file=nowhere.jsonl"], "no file 'nowhere.jsonl'"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        items(*options)


# -- published samples --


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("kv-retrieval-75_keys.jsonl.gz", "pairs", 500),
        ("longeval_200_lines.jsonl.gz", "lines", 50),
        ("ruler_4096_niah_multikey_3.jsonl.gz", "haystack", 500),
    ],
)
def test_published_samples_are_read(name, kind, count):
    path = published(name)
    made = items(f"file={path}", limit=12)
    assert len(made) == 12
    for item in made:
        (question,), text = item.questions, item.documents[0].text
        assert question.metadata["kind"] == kind and question.metadata["depth"] in (0, 0.25, 0.5, 0.75, 1)
        assert all(text.count(value) >= 1 and value not in question.prompt for value in question.references)
        assert "I will quiz" in text or "record is over" not in text
    assert len({item.questions[0].metadata["length"] for item in made}) == 1
    lines = gzip.decompress(path.read_bytes()).count(b"\n")
    assert lines in (count, count - 1)


def test_the_place_of_a_published_needle(tmp_path: Path):
    records = [[f"key{i}", f"value{i}"] for i in range(20)]
    rows = [{"ordered_kv_records": records, "key": f"key{i}", "value": f"value{i}"} for i in (0, 10, 19)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = items(f"file={file}")
    assert [item.questions[0].metadata["depth"] for item in made] == [0.0, 0.5, 1.0]
    assert made[0].questions[0].prompt == 'Question: What is the value of the key "key0"? Answer:'
    assert json.loads(made[0].documents[0].text.removeprefix("JSON data:\n")) == dict(records)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n', "not in a form"),
        ("", "not in a form"),
        ('{"outputs": ["x"]}\n', "lacks"),
        ('{"outputs": ["x"], "input": "y\\nz"}\n', "lacks"),
        ('{"outputs"\n', "line 1: not JSON"),
        ("[1]\n", "line 1: not an object"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content, message):
    file = tmp_path / "broken.jsonl"
    file.write_text(content)
    with pytest.raises(UsageError, match=message):
        items(f"file={file}")


# -- scores and pictures --


@pytest.mark.parametrize(
    ("text", "references", "share"),
    [
        ("4821973", ["4821973"], 1.0),
        ("The number is 4821973.", ["4821973"], 1.0),
        ("Amber-Wolf and icy-owl", ["amber-wolf", "icy-owl", "red-oar", "calm-oven"], 0.5),
        ("", ["4821973"], 0.0),
        ("anything", [], None),
    ],
)
def test_found_is_the_share_of_values_in_the_answer(text, references, share):
    assert found({"text": text}, references) == share


def test_exact_match_is_for_single_values():
    assert exact_match({"text": "The Piano."}, ["piano"]) == 1.0
    assert exact_match({"text": "a, b"}, ["a", "b"]) is None


def test_the_maps_are_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    made = items("kinds=[single,lines]", "lengths=[1000,2000]", "repeats=1")
    answers = {item.sample_id(item.questions[0]): item.questions[0].references[0] for item in made}
    results = results_of(TASK, made, answers, "mplus:offload=true", tiny_model().config)
    (path,) = TASK.plot([results], tmp_path)
    assert path.name == "needle-mplus-offload=true.png" and is_png(path)


def test_it_runs(model_folder: Path, tmp_path: Path):
    given = {"systems": ("mplus", "closed-book"), "limit": 4, "length": 1_600}
    pairs = evaluate(tmp_path / "out", model_folder, "needle", **given)
    for pair in pairs:
        samples = (pair.path / "predictions.jsonl").read_text().splitlines()
        assert len(samples) == 4 and all(json.loads(sample)["references"] for sample in samples)
