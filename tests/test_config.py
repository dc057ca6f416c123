"""The recipe reader: types, bounds, all mistakes at once, suggestions, overrides, a file that reads back the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
import yaml

from mplus_cli.config import Range, build, merge, override, read_yaml, to_yaml
from mplus_cli.errors import UsageError


@dataclass(frozen=True)
class Inner:
    share: Annotated[float, Range(0, 1)] = 0.5
    names: tuple[str, ...] = ("a",)


@dataclass(frozen=True)
class Outer:
    kind: Literal["one", 2]
    count: Annotated[int, Range(1)] = 3
    rate: Annotated[float, Range(above=0)] = 1.0
    limit: Annotated[float, Range(above=0)] | None = None
    flag: bool = False
    pairs: tuple[tuple[int | None, int], ...] = ((None, 1),)
    free: dict[str, Any] | None = None
    inner: Inner | None = field(default_factory=Inner)


def problems(mapping: dict[str, Any]) -> list[str]:
    with pytest.raises(UsageError) as error:
        build(Outer, mapping, "recipe.yaml")
    first, *lines = error.value.message.splitlines()
    assert first.endswith("in recipe.yaml:") and first.startswith(f"{len(lines)} problem")
    return [line.strip() for line in lines]


def test_values_of_every_type():
    given = {"kind": 2, "count": 7, "rate": 2, "limit": "1e-4", "flag": True, "pairs": [[5, 1], [None, 2]]}
    built = build(Outer, given | {"free": {"x": [1]}, "inner": {"share": 1, "names": ["b", "c"]}}, "r")
    assert built == Outer(2, 7, 2.0, 1e-4, True, ((5, 1), (None, 2)), {"x": [1]}, Inner(1.0, ("b", "c")))
    assert isinstance(built.rate, float)
    assert build(Outer, {"kind": "one", "inner": None}, "r").inner is None


@pytest.mark.parametrize(
    ("mapping", "line"),
    [
        ({"kind": "one", "cuont": 1}, "cuont: unknown key (did you mean 'count'?)"),
        ({"kind": "one", "zzz": 1}, "zzz: unknown key"),
        ({}, "kind: missing"),
        ({"kind": "two"}, "kind: 'two' is not one of one, 2"),
        ({"kind": True}, "kind: True is not one of one, 2"),
        ({"kind": "onne"}, "kind: 'onne' is not one of one, 2 (did you mean 'one'?)"),
        ({"kind": 2, "count": 0}, "count: must be at least 1, not 0"),
        ({"kind": 2, "count": 1.5}, "count: expected whole number, not 1.5"),
        ({"kind": 2, "count": True}, "count: expected whole number, not True"),
        ({"kind": 2, "count": None}, "count: expected whole number, not nothing"),
        ({"kind": 2, "rate": 0}, "rate: must be more than 0, not 0"),
        ({"kind": 2, "rate": float("nan")}, "rate: must be a finite number, not nan"),
        ({"kind": 2, "limit": -1}, "limit: must be more than 0, not -1"),
        ({"kind": 2, "flag": 1}, "flag: expected true or false, not 1"),
        ({"kind": 2, "pairs": [[1, 2], [3]]}, "pairs[1]: expected 2 values, not 1"),
        ({"kind": 2, "pairs": [[1, "x"]]}, "pairs[0][1]: expected whole number, not 'x'"),
        ({"kind": 2, "inner": {"share": 2}}, "inner.share: must be at most 1, not 2"),
        ({"kind": 2, "inner": {"shar": 0.1}}, "inner.shar: unknown key (did you mean 'share'?)"),
        ({"kind": 2, "inner": {"names": "a"}}, "inner.names: expected a list, not 'a'"),
        ({"kind": 2, "inner": 3}, "inner: expected a group of keys, not 3"),
    ],
)
def test_a_mistake_is_named(mapping, line):
    assert problems(mapping) == [line]


def test_all_mistakes_at_once():
    found = problems({"count": -1, "flg": True, "inner": {"share": "much", "name": []}})
    assert len(found) == 5
    assert {line.split(":")[0] for line in found} == {"kind", "count", "flg", "inner.share", "inner.name"}


def test_overrides_are_yaml_and_leave_the_original_alone():
    below = {"a": {"b": 1}, "c": None}
    result = override(below, ["a.b=[1, 2]", "a.d=true", "c.e=1.0e-3", "f=text with = in it"])
    assert result == {"a": {"b": [1, 2], "d": True}, "c": {"e": 1e-3}, "f": "text with = in it"}
    assert below == {"a": {"b": 1}, "c": None}


@pytest.mark.parametrize("wrong", ["novalue", "=3", "a.b=1"])
def test_an_override_that_cannot_be(wrong):
    with pytest.raises(UsageError):
        override({"a": 3}, [wrong])


def test_an_override_is_valid_yaml():
    with pytest.raises(UsageError, match="override of a"):
        override({}, ["a=[1"])


def test_merging_goes_key_by_key():
    below = {"a": {"x": 1, "y": 2}, "b": [1]}
    assert merge(below, {"a": {"y": 3}, "b": [2]}) == {"a": {"x": 1, "y": 3}, "b": [2]}
    assert merge(below, {"a": None}) == {"a": None, "b": [1]}


def test_the_effective_recipe_reads_back():
    recipe = build(Outer, {"kind": "one", "pairs": [[3, 4], [None, 5]], "limit": 0.25}, "r")
    assert build(Outer, yaml.safe_load(to_yaml(recipe)), "r") == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: 1\na: 2\n", "line 2: the key 'a' is there twice"), ("a: [1\n", "not valid YAML"), ("- 1\n", "not a recipe")],
)
def test_files_that_are_no_recipes(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_yaml(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")
