"""Multiple choice with lettered options: the letter of an answer, the likeliest option, chance."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

LETTERS = "ABCDEFGH"
_NAMING = r"option|choice|event|letter|passage|segment|text"
_LEADING = re.compile(rf"\W*(?:(?:the|correct|right|answer|is|it|{_NAMING})\W+)*\(?([a-h])\b(?![’'])", re.IGNORECASE)
_NAMED = re.compile(rf"\b(?:{_NAMING})\W+$", re.IGNORECASE)


def lettered(options: Sequence[str]) -> str:
    """One option per line, `A. ...`."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def letter(text: str, count: int) -> str | None:
    """The letter that an answer gives, of the first `count`; None where it gives none. "Passage A comes first" is A.

    A letter in lower case counts where nothing but the letter is there, and `A` is an article before a word in lower
    case, unless a word such as "option" names it: "a man" and "A man" are no answer A.
    """
    found = _LEADING.match(text)
    if found is None:
        return None
    given, rest = found.group(1), text[found.end() :]
    article = given == "A" and re.match(r"\s+[a-z]", rest)
    if (article or given.islower() and rest.strip(" .):\n\"'")) and not _NAMED.search(text[: found.start(1)]):
        return None
    return given.upper() if given.upper() in LETTERS[:count] else None


def accuracy(sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
    """1 for the right letter, 0 for another or none; None where no letter was asked for."""
    if not sample["metadata"].get("letters", True):
        return None
    return float(letter(sample["text"], sample["metadata"]["choices"]) in references)


def by_likelihood(sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
    """1 where the right option is the likeliest, a share of it where others are as likely.

    Options that are sentences are compared by their log-likelihood per character, since longer ones are less likely.
    """
    logprobs = sample["extra"].get("option_logprobs")
    if not logprobs:
        return None
    given = list(logprobs)
    if not sample["metadata"].get("letters", True):
        given = [value / max(1, len(option)) for value, option in zip(given, sample["options"], strict=True)]
    best = [place for place, value in enumerate(given) if value == max(given)]
    return (LETTERS.index(references[0]) in best) / len(best)


def answered(sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
    """1 where a letter was given at all; None where none was asked for."""
    if not sample["metadata"].get("letters", True):
        return None
    return float(letter(sample["text"], sample["metadata"]["choices"]) is not None)


def chance(sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
    """What guessing gets."""
    return 1 / sample["metadata"]["choices"]
