"""Recipes: frozen dataclasses filled from YAML and `key.sub=value` overrides, every mistake reported at once.

A recipe class is an ordinary frozen dataclass whose fields are `int`, `float`, `bool`, `str`, `None`, `Literal`,
`tuple[X, ...]`, `dict`, unions of these, or further recipe classes; `Annotated[int, Range(...)]` bounds a number.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mplus_cli.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included; `above` is a bound that is not."""

    low: float | None = None
    high: float | None = None
    above: float | None = None

    def problem(self, value: float) -> str | None:
        """What is wrong with `value`, if anything."""
        if not math.isfinite(value):
            return "must be a finite number"
        if self.low is not None and value < self.low:
            return f"must be at least {self.low:g}"
        if self.above is not None and value <= self.above:
            return f"must be more than {self.above:g}"
        if self.high is not None and value > self.high:
            return f"must be at most {self.high:g}"
        return None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UsageError: it cannot be read, is not YAML, has a key twice, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Recipe {path} cannot be read: {error}.", "mplus train --list") from error
    value = _parse(text, str(path))
    if not isinstance(value, dict):
        raise UsageError(f"{path} is not a recipe: it holds {_kind(value)}, not a mapping of keys to values.")
    return value


def override(mapping: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of `mapping` with `key.sub=value` assignments applied; values are YAML.

    Raises:
        UsageError: an assignment without `=`, or one that goes into something that is no mapping.
    """
    result = _copy(mapping)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UsageError(
                f"{assignment!r} is not an override.", "Write key.sub=value, for example optimizer.lr=1e-4"
            )
        *outer, last = key.strip().split(".")
        inner = result
        for depth, part in enumerate(outer):
            if inner.get(part) is None:
                inner[part] = {}
            inner = inner[part]
            if not isinstance(inner, dict):
                raise UsageError(f"{key.strip()}: {'.'.join(outer[: depth + 1])} is a value, not a group of keys.")
        inner[last] = _parse(text, f"the override of {key.strip()}")
    return result


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings, the second winning key by key."""
    result = _copy(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else _copy(value)
    return result


def build(cls: type[T], mapping: Mapping[str, Any], name: str) -> T:
    """An instance of recipe class `cls` from a nested mapping.

    Args:
        name: what messages call the recipe.

    Raises:
        UsageError: unknown or missing keys, wrong types, values out of range; all of them, one per line.
    """
    problems: list[str] = []
    result = _dataclass(cls, mapping, "", problems)
    refuse(name, problems)
    return result


def refuse(name: str, problems: Sequence[str]) -> None:
    """Raise one UsageError that lists all `problems` of the recipe `name`; nothing if there are none."""
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UsageError(f"{count} in {name}:\n{lines}", "mplus train --print-config shows every key and its value.")


def to_yaml(recipe: Any) -> str:
    """The whole recipe, defaults included, as YAML that `build` reads back to an equal recipe."""
    import yaml

    return yaml.safe_dump(_plain(asdict(recipe)), sort_keys=False, allow_unicode=True, width=120)


# -- reading values --


def _dataclass(cls: Any, value: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(f"{path or 'the recipe'}: expected a group of keys, not {_kind(value)}")
        return None
    hints = get_type_hints(cls, include_extras=True)
    known = {field.name: field for field in fields(cls)}
    for key in value:
        if key not in known:
            problems.append(f"{_join(path, key)}: unknown key{_suggestion(str(key), known)}")
    found = {}
    for key, field in known.items():
        if key in value:
            found[key] = _value(hints[key], value[key], _join(path, key), problems)
        elif field.default is MISSING and field.default_factory is MISSING:
            problems.append(f"{_join(path, key)}: missing")
            found[key] = None
    return cls(**found)


def _value(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """`value` as `kind`, or a line in `problems`."""
    trouble: list[str] = []
    result = _convert(kind, value, path, trouble)
    problems += trouble
    return result


def _convert(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        inner, *limits = get_args(kind)
        result = _convert(inner, value, path, problems)
        if isinstance(result, (int, float)) and not isinstance(result, bool):
            found = [text for limit in limits if (text := limit.problem(result))]
            problems += [f"{path}: {text}, not {value!r}" for text in found]
        return result
    if origin in (Union, types.UnionType):
        return _union(get_args(kind), value, path, problems)
    if origin is Literal:
        return _choice(get_args(kind), value, path, problems)
    if origin is tuple:
        return _tuple(get_args(kind), value, path, problems)
    if is_dataclass(kind):
        return _dataclass(kind, value, path, problems)
    return _plain_value(kind, value, path, problems)


def _union(options: tuple, value: Any, path: str, problems: list[str]) -> Any:
    """The first option that takes the value; if none does, what the likeliest one had against it."""
    first: list[str] | None = None
    for option in options:
        trouble: list[str] = []
        result = _convert(option, value, path, trouble)
        if not trouble:
            return result
        if first is None or (option is not type(None) and _near(option, value)):
            first = trouble
    problems += first or []
    return None


def _near(option: Any, value: Any) -> bool:
    if is_dataclass(option):
        return isinstance(value, Mapping)
    if get_origin(option) is Annotated:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return get_origin(option) is tuple and isinstance(value, (list, tuple))


def _choice(choices: tuple, value: Any, path: str, problems: list[str]) -> Any:
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice
    names = ", ".join(str(choice) for choice in choices)
    problems.append(f"{path}: {value!r} is not one of {names}{_suggestion(str(value), map(str, choices))}")
    return None


def _tuple(items: tuple, value: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(value, (list, tuple)):
        problems.append(f"{path}: expected a list, not {_kind(value)}")
        return None
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_convert(items[0], item, f"{path}[{i}]", problems) for i, item in enumerate(value))
    if len(items) != len(value):
        problems.append(f"{path}: expected {len(items)} values, not {len(value)}")
        return None
    return tuple(
        _convert(kind, item, f"{path}[{i}]", problems) for i, (kind, item) in enumerate(zip(items, value, strict=True))
    )


def _plain_value(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    if kind is type(None) and value is None:
        return None
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-4, without a dot, as text
        except ValueError:
            pass
    elif get_origin(kind) is dict or kind is dict:
        if isinstance(value, Mapping):
            return dict(value)
    elif isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    name = {dict: "mapping", int: "whole number", float: "number", bool: "true or false", str: "text"}
    wanted = name.get(get_origin(kind) or kind, "null" if kind is type(None) else str(kind))
    problems.append(f"{path}: expected {wanted}, not {_kind(value)}")
    return None


# -- helpers --


def _parse(text: str, name: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key given twice, of which plain YAML would silently take the last."""

    def mapping(loader: Any, node: Any) -> dict:
        loader.flatten_mapping(node)
        seen: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                line = key_node.start_mark.line + 1
                raise UsageError(f"{name}, line {line}: the key {key!r} is there twice.", "Remove one of them.")
            seen[key] = loader.construct_object(value_node, deep=True)
        return seen

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, TypeError) as error:
        raise UsageError(f"{name} is not valid YAML: {error}") from error


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    return repr(value)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
