"""Metrics against values published with other implementations of SQuAD's evaluation, and their edges."""

from __future__ import annotations

import re
import string
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mplus_cli.evaluation import metrics

PUBLISHED = [  # answer, references, exact match, F1, where the values are published
    ("1976", ["1976"], 1.0, 1.0, "torchmetrics and the hub's squad metric, example"),
    ("Hello", ["World"], 0.0, 0.0, "torchmetrics, tests of SQuAD"),
    ("this is the best span", ["this is a good span", "something irrelevant"], 0.0, 0.75, "AllenNLP, SquadEmAndF1"),
    ("this is another span", ["this is another span", "this one is less perfect"], 1.0, 1.0, "AllenNLP, SquadEmAndF1"),
    ("2 時間 21 分", ["2 時間"], 0.0, 2 / 3, "JSQuAD, tests of the metric"),
    ("rock", ["rock n roll"], 0.0, 0.5, "squad reader, tests of F1"),
]


def sample(text: str, **fields) -> dict:
    return {"text": text, "extra": {}, **fields}


@pytest.mark.parametrize(("text", "references", "exact", "f1", "where"), PUBLISHED, ids=[p[4] for p in PUBLISHED])
def test_published_values(text, references, exact, f1, where):
    assert metrics.exact_match(sample(text), references) == exact
    assert metrics.f1(sample(text), references) == pytest.approx(f1)


def test_mean_of_a_published_batch():
    """AllenNLP's batch of two: (1/2, 1.75/2)."""
    batch = [PUBLISHED[2], PUBLISHED[3]]
    assert sum(metrics.exact_match(sample(t), r) for t, r, *_ in batch) / 2 == 1 / 2
    assert sum(metrics.f1(sample(t), r) for t, r, *_ in batch) / 2 == 1.75 / 2


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("   Rock    n  Roll.", "rock n roll"),
        ("The Cat", "cat"),
        ("cat!", "cat"),
        ("an apple a day", "apple day"),
        ("the-cat's", "thecats"),  # punctuation goes first, so that nothing is left to be an article
        ("A.B.C.", "abc"),
        ("théâtre", "théâtre"),
        ("", ""),
    ],
)
def test_normal_form(text, normal):
    assert metrics.normalize(text) == normal


def reference_f1(text: str, reference: str) -> float:
    """SQuAD v1.1's definition, step by step."""

    def words(answer: str) -> list[str]:
        answer = "".join(c for c in answer.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", answer).split()

    same = Counter(words(text)) & Counter(words(reference))
    if not sum(same.values()):
        return 0.0
    precision, recall = sum(same.values()) / len(words(text)), sum(same.values()) / len(words(reference))
    return 2 * precision * recall / (precision + recall)


WORDS = st.lists(st.sampled_from(["the", "A", "an", "cat", "Cat.", "dog", "é", "don't", "-", "9"]), max_size=6).map(
    " ".join
)


@given(WORDS, WORDS)
def test_f1_is_the_definition(text, reference):
    assert metrics.token_f1(text, reference) == pytest.approx(reference_f1(text, reference))
    assert metrics.token_f1(text, reference) == pytest.approx(metrics.token_f1(reference, text))


def test_the_paper_counts_substrings_and_whole_words_are_counted_apart():
    assert metrics.contains(sample("it was another day"), ["no"]) == 1
    assert metrics.contains_words(sample("it was another day"), ["no"]) == 0
    assert metrics.contains(sample("in Paris, they say"), ["Lyon", "Paris"]) == 1
    assert metrics.contains(sample("in paris"), ["Paris"]) == 0
    assert metrics.contains_words(sample("in paris!"), ["Paris"]) == 1


def test_empty_references_match_nothing_and_none_at_all_do_not_apply():
    assert metrics.contains(sample("anything"), [" "]) == 0
    assert metrics.contains_words(sample("anything"), ["the"]) == 0
    for metric in (metrics.exact_match, metrics.f1, metrics.contains, metrics.contains_words, metrics.verbatim):
        assert metric(sample("anything"), []) is None


def test_verbatim_is_stricter_than_exact_match():
    assert metrics.verbatim(sample(" Bram "), ["Bram"]) == 1
    assert metrics.verbatim(sample("bram."), ["Bram"]) == 0
    assert metrics.exact_match(sample("bram."), ["Bram"]) == 1


def test_what_a_task_measured():
    recall = metrics.measured("recall")
    assert recall(sample("", extra={"recall": 0.25}), []) == 0.25
    assert recall(sample("", extra={"recall": None}), []) is None
    assert recall(sample(""), []) is None


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [  # Newcombe (1998), table I, Wilson score without continuity correction
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_wilson_intervals(right, n, low, high):
    assert metrics.wilson(right, n) == pytest.approx((low, high), abs=1e-4)


def test_no_answers_tell_nothing():
    assert metrics.wilson(0, 0) == (0.0, 1.0)
