"""Sequence order: pairs of passages, both ways round, and the letter that answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mplus_cli.core.loading import encode
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.tasks.order import Order
from tests.evaluation.helpers import evaluate
from tests.evaluation.tasks.helpers import task_settings
from tests.fixtures import byte_tokenizer

TASK = Order()


def items(*options: str, **given):
    return list(TASK.items(task_settings(TASK, *options, **given)))


def passages(prompt: str) -> tuple[str, str]:
    shown = prompt.split("A: ", 1)[1].rsplit("\n\nQuestion:", 1)[0]
    a, _, b = shown.partition("\n\nB: ")
    return a, b


def test_the_reference_names_the_passage_that_comes_first():
    for item in items("words=20", length=4_000, limit=5):
        text = " ".join(item.documents[0].text.split())
        assert abs(len(encode(byte_tokenizer(), item.documents[0].text)) - 4_000) <= 2
        for question in item.questions:
            a, b = passages(question.prompt)
            assert len(a.split()) == len(b.split()) == 20 and text.count(a) == text.count(b) == 1
            first, second = sorted((text.index(a), text.index(b)))
            assert second - first >= len(a)  # no overlap
            assert question.references == (("A",) if text.index(a) < text.index(b) else ("B",))
            assert second - first == pytest.approx(question.metadata["tokens_apart"], rel=0.02, abs=4)
            assert question.metadata["tokens_apart"] == pytest.approx(question.metadata["distance"], abs=120)
            assert len(text) - first == pytest.approx(question.metadata["distance_tokens"], rel=0.02, abs=4)


def test_every_pair_is_asked_both_ways_round():
    (item,) = items("words=10", "pairs=3", length=4_000, limit=1)
    assert len(item.questions) == 4 * 3 * 2 and len({question.id for question in item.questions}) == 24
    for one, other in zip(item.questions[::2], item.questions[1::2], strict=True):
        assert passages(one.prompt) == passages(other.prompt)[::-1]
        assert (one.references, other.references) == (("A",), ("B",))


def test_distances_follow_the_length_unless_given():
    (item,) = items("words=10", length=4_800, limit=1)
    assert {question.metadata["distance"] for question in item.questions} == {300, 600, 1200, 2400}
    (item,) = items("words=10", "distances=[500]", limit=1)
    assert {question.metadata["distance"] for question in item.questions} == {500}
    assert item.metadata["length"] == 32 * 64


def test_the_seed_decides_and_a_limit_takes_the_first():
    made = items("words=10", length=3_000, limit=4)
    assert items("words=10", length=3_000, limit=2) == made[:2]
    assert items("words=10", length=3_000, limit=2, seed=1) != made[:2]


def test_impossible_settings_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="no two passages of 200 words"):
        items("words=200", length=800)
    (tmp_path / "short.txt").write_text("A short book. It ends here.")
    with pytest.raises(UsageError, match=r"short\.txt is shorter than 2000 tokens"):
        items(f"book={tmp_path / 'short.txt'}", length=2_000)


def test_it_runs_and_the_options_are_weighed(model_folder: Path, tmp_path: Path):
    given = {"limit": 2, "length": 1_600, "settings": ("words=10", "pairs=1"), "systems": ("mplus", "memoryllm")}
    for pair in evaluate(tmp_path / "out", model_folder, "order", **given):
        samples = [json.loads(line) for line in (pair.path / "predictions.jsonl").read_text().splitlines()]
        assert len(samples) == 2 * 4 * 2
        assert all(len(sample["extra"]["option_logprobs"]) == 2 for sample in samples)
