"""How answers are compared with references: SQuAD's exact match and F1, the paper's substring accuracy, intervals.

Metrics take a line of predictions.jsonl and its references, and give the best score over the references. `VERSION` is
what a task states as `metric_version`.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

VERSION = "squad-v1.1 normalisation, 1"
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

Sample = Mapping[str, Any]


def normalize(text: str) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation, no English articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the words of the normal forms; 0 where either has none."""
    given, wanted = normalize(text).split(), normalize(reference).split()
    common = sum((Counter(given) & Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def exact_match(sample: Sample, references: Sequence[str]) -> float | None:
    """1 where the normal form of a reference is that of the answer."""
    return _best(lambda text, reference: float(normalize(text) == normalize(reference)), sample, references)


def f1(sample: Sample, references: Sequence[str]) -> float | None:
    """`token_f1` with the reference it is highest for."""
    return _best(token_f1, sample, references)


def contains(sample: Sample, references: Sequence[str]) -> float | None:
    """1 where a reference stands in the answer letter by letter: the paper's accuracy (MemoryLLM section 4.4).

    "no" stands in "another" as well: `contains_words` does not count that.
    """
    return _best(
        lambda text, reference: float(bool(reference.strip()) and reference.strip() in text), sample, references
    )


def contains_words(sample: Sample, references: Sequence[str]) -> float | None:
    """1 where the normal form of a reference stands in that of the answer as whole words."""
    return _best(_has_words, sample, references)


def verbatim(sample: Sample, references: Sequence[str]) -> float | None:
    """1 where the answer is a reference letter by letter, white space around it aside."""
    return _best(lambda text, reference: float(text.strip() == reference.strip()), sample, references)


def measured(key: str) -> Callable[[Sample, Sequence[str]], float | None]:
    """The metric that reads what a measuring task has put into `extra`."""

    def metric(sample: Sample, references: Sequence[str]) -> float | None:
        value = sample["extra"].get(key)
        return None if value is None else float(value)

    return metric


def wilson(right: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95% interval of a proportion of independent answers (Wilson 1927); the whole range where there are none."""
    if n == 0:
        return 0.0, 1.0
    share, spread = right / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / spread
    half = z / spread * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _has_words(text: str, reference: str) -> float:
    words = normalize(reference)
    return float(bool(words) and f" {words} " in f" {normalize(text)} ")


def _best(score: Callable[[str, str], float], sample: Sample, references: Sequence[str]) -> float | None:
    """The highest score over the references; None for a sample without any, which no answer can match."""
    return max((score(sample["text"], reference) for reference in references), default=None)
