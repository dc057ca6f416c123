"""Checks of a question: can it be answered at all, can it be answered without reading the book?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import mean

from mplus_cli.data.event_qa.characters import TITLES, Character

SIMILAR = 0.7  # share of the words of two events that are the same, from which on they tell the same
LENGTH_RATIO = 1.6  # the true option stands out when it is that much longer or shorter than every other

REPEATS_TRUE = "a distractor repeats the true event"
REPEATS_OTHER = "two distractors repeat each other"
REPEATS_PAST = "a distractor repeats a past event"
LEAKS = "a past event gives the answer away"
LENGTH = "the length of the true option gives it away"
NAMES = "only the true option names a main character"
CHECKS = (REPEATS_TRUE, REPEATS_OTHER, REPEATS_PAST, LEAKS, LENGTH, NAMES)

_STOP = frozenset(
    re.findall(r"\w+", "a an the and or but to of in on at by for with from as is was were be been had has his her its")
)


class Cast:
    """Finds the main characters of a book in a sentence, under any of their names; the longest name wins."""

    def __init__(self, characters: Sequence[Character]) -> None:
        self.characters = characters
        self._owner = {alias: character.name for character in reversed(characters) for alias in character.aliases}
        for character in characters:  # the given name of a full name, where the book uses nobody else's
            words = [word for word in character.name.split() if word.rstrip(".").casefold() not in TITLES]
            self._owner.setdefault(words[0], character.name)
        alternatives = "|".join(re.escape(name) for name in sorted(self._owner, key=lambda name: (-len(name), name)))
        self._pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)" if alternatives else r"(?!)")

    def named(self, sentence: str) -> list[str]:
        """Names of the characters that the sentence names, in the order of the cast."""
        found = {self._owner[match] for match in self._pattern.findall(sentence)}
        return [character.name for character in self.characters if character.name in found]


@lru_cache(maxsize=4096)
def words_of(event: str) -> frozenset[str]:
    """The words that carry the meaning of an event."""
    return frozenset(re.findall(r"\w+", event.casefold())) - _STOP


def similar(one: str, other: str) -> bool:
    """True when two events tell the same: equal words up to SIMILAR (Jaccard), or all of the one in the other."""
    a, b = words_of(one), words_of(other)
    if not a or not b:
        return a == b
    return len(a & b) / len(a | b) >= SIMILAR or (min(len(a), len(b)) >= 4 and (a <= b or b <= a))


def flags(past: Sequence[str], true: str, false: Sequence[str], cast: Cast) -> list[str]:
    """The checks of CHECKS that a question fails."""
    failed = {
        REPEATS_TRUE: any(similar(true, option) for option in false),
        REPEATS_OTHER: any(similar(one, other) for n, one in enumerate(false) for other in false[:n]),
        REPEATS_PAST: any(similar(event, option) for event in past for option in false),
        LEAKS: any(similar(true, event) for event in past),
        LENGTH: _length_stands_out(len(true), [len(option) for option in false]),
        NAMES: bool(cast.named(true)) and not any(cast.named(option) for option in false),
    }
    return [check for check in CHECKS if failed[check]]


def _length_stands_out(true: int, false: Sequence[int]) -> bool:
    return true > LENGTH_RATIO * max(false) or LENGTH_RATIO * true < min(false)


@dataclass(frozen=True)
class BlindScores:
    """Accuracy of guessing by length alone over a set of questions; a sixth says that length tells nothing."""

    longest: float | None
    shortest: float | None

    @classmethod
    def of(cls, questions: Iterable[tuple[Sequence[str], int]]) -> BlindScores:
        """From (options, number of the right one). Ties count in part."""
        longest: list[float] = []
        shortest: list[float] = []
        for options, answer in questions:
            lengths = [len(option) for option in options]
            for scores, best in ((longest, max(lengths)), (shortest, min(lengths))):
                scores.append((lengths[answer] == best) / lengths.count(best))
        return cls(round(mean(longest), 4) if longest else None, round(mean(shortest), 4) if shortest else None)
