"""Invented names: two spaces that share their syllables and not one name."""

from __future__ import annotations

import subprocess
import sys
from random import Random

import pytest

from mplus_cli.data.chronicle import names
from mplus_cli.data.chronicle.names import Namer, name_space, split_of

ROLES = ("woman", "man", "family", "town", "pet")


def everything(split: str) -> set[str]:
    return {name for role in ROLES for space in (name_space(role, split),) for name in space.short + space.long}


def test_no_name_of_any_role_is_in_both_spaces() -> None:
    train, test = everything("train"), everything("test")
    assert not train & test
    assert not {name.lower() for name in train} & {name.lower() for name in test}


@pytest.mark.parametrize("role", ROLES)
def test_both_spaces_are_large_and_names_are_plain(role: str) -> None:
    for split in ("train", "test"):
        space = name_space(role, split)
        assert len(space.short) + len(space.long) >= 1_500
        assert len(space.short) >= 200
        for name in space.short + space.long:
            assert name.isascii() and name.isalpha() and name == name.capitalize() and 3 <= len(name) <= 16
            assert split_of(name) == split


def test_both_spaces_share_their_syllables() -> None:
    """Every start and every end occurs in both, so a tokenizer trained on one space knows the pieces of the other."""
    ends = {"woman": names._WOMAN_ENDS, "man": names._MAN_ENDS, "family": names._FAMILY_ENDS, "town": names._TOWN_ENDS}
    for split in ("train", "test"):
        for role, endings in ends.items():
            space = name_space(role, split).short + name_space(role, split).long
            assert all(any(name.startswith(start) for name in space) for start in names._STARTS)
            assert all(any(name.endswith(end) for name in space) for end in endings)


def test_the_split_does_not_depend_on_the_process() -> None:
    """A salted hash (that of `hash`) would move names between the spaces from one run to the next."""
    code = (
        "from mplus_cli.data.chronicle import split_of; print(*map(split_of, ('Marina', 'Velford', 'Pipkin', 'Tamor')))"
    )
    outputs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert outputs == {" ".join(map(split_of, ("Marina", "Velford", "Pipkin", "Tamor"))) + "\n"}


def test_full_names_never_repeat_even_when_first_names_must() -> None:
    namer = Namer(Random(1), "test", (2,))
    pairs = [namer.full_name("woman") for _ in range(3_000)]
    assert len(set(pairs)) == len(pairs)
    assert len({first for first, _ in pairs}) < len(pairs)


def test_first_names_are_used_up_before_one_returns() -> None:
    namer = Namer(Random(1), "train", (2,))
    firsts = [namer.name("man") for _ in range(600)]
    assert len(set(firsts)) == 600


def test_length_of_names_follows_the_syllables_asked_for() -> None:
    for syllables, part in (((2,), "short"), ((3,), "long")):
        namer = Namer(Random(3), "train", syllables)
        assert all(namer.name(role) in getattr(name_space(role, "train"), part) for role in ROLES for _ in range(50))
