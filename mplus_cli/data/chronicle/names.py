"""Invented names: first names, family names, towns and pets, in two disjoint spaces (train and test).

A name is a start, at most one middle and an end. Both spaces use the same syllables, so a tokenizer trained on one
covers the other, but a keyed hash of the finished name decides to which space it belongs: a name seen in training is
never a test name, whatever it names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from random import Random
from typing import Literal, TypeVar

from mplus_cli.errors import UsageError

T = TypeVar("T")
Split = Literal["train", "test"]
_PATIENCE = 64  # draws after which a space counts as used up
_TRIES = 4096
SPLITS: tuple[Split, ...] = ("train", "test")


def _words(*lines: str) -> tuple[str, ...]:
    return tuple(word for line in lines for word in line.split())


_STARTS = _words(
    "Bal Bel Ber Bran Bren Cal Car Cor Dal Dar Del Der Dor Dun Ed El Er Fal Far Fen Fer Gal Gar Gel Hal Har Hel",
    "Her Is Jal Jor Kal Kel Kor Lan Lin Lor Mal Mar Mel Mir Nal Nel Nor Ol Or Pal Per Quil Ral Rin Ros Sal Sel",
    "Ser Sol Tal Tam Tar Tel Tor Ul Val Var Vel Ver Vor Wil Yar Yor Zel",
)
_WOMAN_ENDS = _words(
    "a ia ina ena ora una iel ise ith ette essa ira ola ima ea is anne ilde",
)
_MAN_ENDS = _words(
    "an or en o us ik eth ard ic ert as ek on ald ov im ost und ric iver",
)
_FIRST_MIDDLES = _words(
    "am an ar ed el em er ev il in ol or",
)
_FAMILY_ENDS = _words(
    "ow ock ell att ings ley man ove itt ake ane by cott croft gate kin more ner rick shaw son stone ter ward",
    "well worth",
)
_TOWN_ENDS = _words(
    "ford wick ham ton mere holm bridge haven port stead bury dale fell combe minster hurst burgh cliff",
    "bay cross",
)
_PLACE_MIDDLES = _words(
    "en er in el an or",
)
_PET_STARTS = _words(
    "Bib Bob Bun Dab Dib Dod Fid Fiz Fub Gib Gub Jib Lub Mib Mop Mub Nib Nob Nub Pib Pip Pom Pud Rub Sib Tib Tob",
    "Tub Wib Wob Zib Zub",
)
_PET_ENDS = _words(
    "a o us el et ins kin kins let ling ly nel net o pel per pin ple sy ter tle ton wick y zel",
)
_PET_MIDDLES = _words(
    "al el er i in o",
)

# Real words and well-known names that the syllables happen to spell; they would read oddly.
_UNWANTED = frozenset(
    _words(
        "Below Boris Carina Carson Carter Corner Daren Deliver Delos Derby Derrick Dodo Doran Doric Doris Eden",
        "Edinburgh Edward Elena Eleven Elise Elon Era Faro Fera Ferner Ferric Fidel Galley Halo Harley Helen Helena",
        "Helter Herald Hero Isa Isis Linen Linus Loric Loris Mala Malard Malaria Malbrook Maria Marina Marley Marter",
        "Melon Mopsy Nelson Nobel Norman Norton Oliver Orson Palings Person Pippin Pudel Rosen Rosings Ruby Salon",
        "Selena Selfield Selman Sera Serena Sibling Soliver Solo Solon Talon Tibet Tublet Valise Valley Valor Veron",
        "Wilson Wilton",
    )
)


@dataclass(frozen=True)
class NameSpace:
    """All names of one role in one split.

    Attributes:
        short: names of two parts (two syllables, rarely three).
        long: names of three parts.
    """

    short: tuple[str, ...]
    long: tuple[str, ...]


def split_of(name: str) -> Split:
    """The space a name belongs to, by a keyed hash of its letters: two thirds train, one third test."""
    digest = blake2b(name.encode(), key=b"mplus chronicle names", digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % 3 == 0 else "train"


@cache
def name_space(role: str, split: Split) -> NameSpace:
    """Every name of `role` ("woman", "man", "family", "town" or "pet") in `split`."""
    starts, middles, ends = {
        "woman": (_STARTS, _FIRST_MIDDLES, _WOMAN_ENDS),
        "man": (_STARTS, _FIRST_MIDDLES, _MAN_ENDS),
        "family": (_STARTS, _PLACE_MIDDLES, _FAMILY_ENDS),
        "town": (_STARTS, _PLACE_MIDDLES, _TOWN_ENDS),
        "pet": (_PET_STARTS, _PET_MIDDLES, _PET_ENDS),
    }[role]
    short = (start + end for start in starts for end in ends)
    long = (start + middle + end for start in starts for middle in middles for end in ends)
    return NameSpace(_keep(short, split), _keep(long, split))


def _keep(names: Iterable[str], split: Split) -> tuple[str, ...]:
    return tuple(n for n in dict.fromkeys(names) if n not in _UNWANTED and _pleasant(n) and split_of(n) == split)


def _pleasant(name: str) -> bool:
    """No tripled letters, no syllable twice in a row ("Elelen"), no heap of vowels ("Piia"), nothing rude."""
    low = name.lower()
    if low.endswith("anus"):
        return False
    if any(low[i] == low[i + 1] == low[i + 2] for i in range(len(low) - 2)):
        return False
    if any(low[i : i + 2] == low[i + 2 : i + 4] for i in range(len(low) - 3)):
        return False
    return not any(pair in low for pair in ("ii", "io", "oa", "oo", "oe", "ie", "iu", "ou", "oi")) or low.endswith(
        "iel"
    )


def pick(rng: Random, options: tuple[T, ...] | list[T]) -> T:
    """One of `options`. Only `Random.random` is used: its stream is the same in every version of Python."""
    return options[int(rng.random() * len(options))]


class Namer:
    """Gives out names, each at most once until its space is nearly used up.

    Full names never repeat. First names, towns and pets repeat only in chronicles of many thousands of people, when
    nearly all names of the space have been given out.

    Args:
        rng: source of randomness, shared with the caller.
        split: "train" or "test".
        syllables: allowed lengths of names, a selection of 2 and 3.
    """

    def __init__(self, rng: Random, split: Split, syllables: tuple[int, ...] = (2, 3)) -> None:
        self.rng = rng
        self.split = split
        self.syllables = syllables
        self._used: dict[str, set[str]] = {}
        self._full_names: set[tuple[str, str]] = set()

    def name(self, role: str) -> str:
        """An unused name for `role` (see `name_space`)."""
        space = name_space(role, self.split)
        names = space.short if pick(self.rng, self.syllables) == 2 else space.long
        used = self._used.setdefault(role, set())
        for _ in range(_PATIENCE):
            name = pick(self.rng, names)
            if name not in used:
                used.add(name)
                return name
        used.difference_update(names)
        used.add(name)
        return name

    def full_name(self, role: str, family: str | None = None) -> tuple[str, str]:
        """First and family name of a "woman" or "man", a pair never given out before.

        Args:
            role: "woman" or "man".
            family: fixes the family name; "" for none.

        Raises:
            UsageError: all names have been given out.
        """
        for _ in range(_TRIES):
            first, last = self.name(role), self.name("family") if family is None else family
            if (first, last) not in self._full_names:
                self._full_names.add((first, last))
                return first, last
        raise UsageError(
            f"All names of {len(self._full_names):,} people have been given out; no new one is left.",
            hint="Write shorter texts, or allow family names and names of three syllables.",
        )
