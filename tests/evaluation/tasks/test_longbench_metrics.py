"""LongBench: the values of its own metrics.py with rouge 1.0.1 and fuzzywuzzy 0.18.0, and what of an answer counts."""

from __future__ import annotations

import pytest

from mplus_cli.evaluation.tasks import longbench_metrics as metrics


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("    return self.value", "    return self._value", 0.98),
        ("```python\n# comment\nx = 1\n", "x = 12", 0.91),
        ("\n\n  for i in range(10):\n    pass", "  for i in range(n):", 0.93),
        ("", "x", 0.0),
        ("// only", "", 1.0),
        ("a" * 250 + "b", "b" + "a" * 250, 0.0),  # difflib passes over what is too common in long lines
    ],
)
def test_code_similarity(answer, reference, value):
    assert metrics.code_similarity(answer, reference) == value


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("Individual", "Individual", 1.0),
        ("Individual description", "Individual description", 1.0),
        ("Individual description", "Individual", 1 / 3),
        ("Date of a Group or organization of person", "Date", 0.5),
        ("none", "Date", 0.0),
    ],
)
def test_classification(answer, reference, value):
    classes = [
        "Individual", "Individual description", "Group or organization of person", "description", "Date", "Da",
    ]  # fmt: skip
    assert metrics.classification(answer, reference, classes) == value


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("The report says that farms need water. It rained.", "The report says farms need more water. It did rain.",
         0.736842),
        ("the cat sat on the mat", "the cat is on the mat", 0.8),
        ("", "x", 0.0),
        ("...", "x y", 0.0),
        ("a b c d", "e f g", 0.0),
    ],
)  # fmt: skip
def test_rouge(answer, reference, value):
    pytest.importorskip("rouge", reason="rouge is not installed: pip install 'mplus[eval]'")
    assert metrics.rouge_l(answer, reference) == pytest.approx(value, abs=1e-6)


def test_retrieval_and_count():
    assert metrics.retrieval("Paragraph 12", "Paragraph 12") == 1.0
    assert metrics.retrieval("Paragraph 12 or Paragraph 3", "Paragraph 3") == 0.5
    assert metrics.retrieval("the first", "Paragraph 1") == metrics.retrieval("112", "Paragraph 12") == 0.0
    assert metrics.count("17", "17") == 1.0 and metrics.count("17 of 18 17", "17") == pytest.approx(2 / 3)
    assert metrics.count("none", "17") == 0.0


@pytest.mark.parametrize(
    ("dataset", "raw", "references", "first", "whole"),
    [
        ("hotpotqa", "\n Bob Dylan\nQuestion: who", ["Dylan", "Bob Dylan"], 1.0, 2 / 3),
        ("triviaqa", "\nBob Dylan\nPassage: x", ["Bob Dylan"], 1.0, 1.0),
        ("lcc", "\n    x = 1\ny = 2", ["    x = 1"], 1.0, 1.0),
        ("passage_count", " 5\n\n6", ["5"], 0.5, 0.5),
        ("trec", "Type: Date\nOther", ["Date"], 1.0, 1.0),
    ],
)
def test_what_of_an_answer_counts(dataset, raw, references, first, whole):
    sample = {"raw": raw, "text": raw.strip(), "metadata": {"dataset": dataset, "classes": ["Date", "Other"]}}
    assert metrics.score(sample, references) == pytest.approx(first)
    assert metrics.score_whole(sample, references) == pytest.approx(whole)
