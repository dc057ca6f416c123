"""Names of tasks and systems, found without importing what they need, and the `name:key=value,key=value` form."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, TypeVar

from mplus_cli.config import build, override
from mplus_cli.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """A row of the table of tasks or systems.

    Attributes:
        where: `module:Class` below `mplus_cli.evaluation`, imported when it is first used.
        title: one line for `mplus eval list`.
        paper: section, figure or table of the M+ paper that it stands for, if any.
    """

    where: str
    title: str
    paper: str = ""

    def load(self) -> Any:
        """The class."""
        module, _, name = self.where.partition(":")
        return getattr(importlib.import_module(f"mplus_cli.evaluation.{module}"), name)


@dataclass(frozen=True)
class Spec:
    """A task or system as asked for: its name and the settings given with it.

    Attributes:
        settings: `key=value` texts, values in YAML.
    """

    name: str
    settings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name and settings, as tables show them; read back by `parse`."""
        return self.name + (":" + ",".join(self.settings) if self.settings else "")

    @property
    def folder(self) -> str:
        """The label as a name of a folder."""
        return folder_name(self.label)


def folder_name(label: str) -> str:
    """A label of a task or system as a name of a folder."""
    return re.sub(r"[^\w=.,+-]+", "_", label.replace(":", "-", 1))


def parse(text: str, table: Mapping[str, Row], kind: str) -> Spec:
    """`name` or `name:key=value,key=value`; commas inside brackets belong to the value.

    Args:
        kind: "task" or "system", for messages.

    Raises:
        UsageError: an unknown name, with the nearest ones.
    """
    name, _, settings = text.strip().partition(":")
    if name not in table:
        raise UsageError(f"there is no {kind} {name!r}{did_you_mean(name, table)}", hint="mplus eval list")
    return Spec(name, tuple(part.strip() for part in _split(settings) if part.strip()))


def make_options(cls: type[T], settings: Iterable[str], name: str) -> T:
    """An instance of an options class from `key=value` texts.

    Raises:
        UsageError: unknown keys and bad values, all of them at once.
    """
    try:
        return build(cls, override({}, settings), name)
    except UsageError as error:
        keys = ", ".join(f"{field.name} ({written(_default(field))})" for field in fields(cls)) or "none"  # type: ignore[arg-type]
        raise UsageError(error.message, hint=f"settings of {name}: {keys}") from error


def describe(name: str) -> dict[str, Any]:
    """A task or system as plain JSON: title, paper, the text of its class, settings with their defaults.

    Raises:
        UsageError: there is none of this name.
    """
    from mplus_cli.evaluation.system import SYSTEMS
    from mplus_cli.evaluation.task import TASKS

    tables = {**SYSTEMS, **TASKS}
    spec = parse(name, tables, "task or system")
    row = tables[spec.name]
    cls = row.load()
    return {
        "name": spec.name,
        "kind": "task" if spec.name in TASKS else "system",
        "title": row.title,
        "paper": row.paper,
        "text": inspect.cleandoc(cls.__doc__ or ""),
        "settings": {field.name: _default(field) for field in fields(cls.options_class)},
    }


def written(value: Any) -> str:
    """A setting's value as one would type it after `key=`: lists in brackets, `null` for none."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(written, value))}]"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _default(field: Field) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else "needed"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean ...?)`` with the nearest of the known words, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
