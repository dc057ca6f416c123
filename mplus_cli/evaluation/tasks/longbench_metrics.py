"""LongBench's metrics, by the rules of its published scorer. The score of a sample is its best over the references."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from mplus_cli.errors import MissingExtraError
from mplus_cli.evaluation.metrics import token_f1
from mplus_cli.evaluation.tasks.longbench_sets import SETS, Metric

VERSION = "LongBench v1 with rouge 1.0.1 and difflib, 1"
_NUMBER = re.compile(r"\d+")
_PARAGRAPH = re.compile(r"Paragraph (\d+)")


def score(sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
    """The metric of the sample's set. Of answers that are a phrase only the first line with text counts."""
    raw = sample["raw"]
    if SETS[sample["metadata"]["dataset"]].short:
        raw = raw.lstrip().partition("\n")[0].strip()
    return _best(raw, sample, references)


def score_whole(sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
    """The metric of the sample's set on the whole answer, as LongBench scores chat models."""
    return _best(sample["raw"], sample, references)


def _best(answer: str, sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
    one = SETS[sample["metadata"]["dataset"]]
    if one.one_line:
        answer = answer.lstrip("\n").partition("\n")[0]
    classes = sample["metadata"].get("classes") or ()
    return max((METRICS[one.metric](answer, reference, classes) for reference in references), default=None)


def qa_f1(answer: str, reference: str, classes: Sequence[str] = ()) -> float:
    """SQuAD's F1."""
    return token_f1(answer, reference)


def rouge_l(answer: str, reference: str, classes: Sequence[str] = ()) -> float:
    """F1 of ROUGE-L as the package `rouge` has it; 0 where one of the texts has no word, or it gives up."""
    try:
        return float(rouge_scorer().get_scores([answer], [reference], avg=True)["rouge-l"]["f"])
    except (ValueError, RecursionError, ZeroDivisionError):
        return 0.0


def rouge_scorer() -> Any:
    """The scorer of the package `rouge`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        from rouge import Rouge
    except ImportError as error:
        raise MissingExtraError("ROUGE needs the package rouge", 'pip install "mplus[eval]"') from error
    return Rouge(metrics=["rouge-l"])


def classification(answer: str, reference: str, classes: Sequence[str] = ()) -> float:
    """1 over the number of classes named, if the right one is among them. Parts of the right name do not count.

    As published, a name right after one that was taken out is not looked at.
    """
    named = [name for name in classes if name in answer]
    place = 0
    while place < len(named):
        if named[place] in reference and named[place] != reference:
            del named[place]
        place += 1
    return 1 / len(named) if reference in named else 0.0


def count(answer: str, reference: str, classes: Sequence[str] = ()) -> float:
    """The share of the numbers in the answer that are the right one."""
    numbers = _NUMBER.findall(answer)
    return numbers.count(str(reference)) / len(numbers) if numbers else 0.0


def retrieval(answer: str, reference: str, classes: Sequence[str] = ()) -> float:
    """`count` for the number in a reference such as `Paragraph 12`."""
    right = _PARAGRAPH.search(reference)
    return count(answer, right.group(1)) if right else 0.0


def code_similarity(answer: str, reference: str, classes: Sequence[str] = ()) -> float:
    """Likeness in hundredths of the answer's first line that is no comment and no fence, as fuzzywuzzy's `ratio`.

    LongBench installs fuzzywuzzy without python-Levenshtein; then `ratio` is difflib's.
    """
    lines = answer.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    if line == reference:
        return 1.0
    if not line or not reference:
        return 0.0
    return round(100 * SequenceMatcher(None, line, reference).ratio()) / 100


METRICS: dict[Metric, Callable[[str, str, Sequence[str]], float]] = {
    "qa_f1": qa_f1,
    "rouge_l": rouge_l,
    "classification": classification,
    "retrieval": retrieval,
    "count": count,
    "code_similarity": code_similarity,
}
