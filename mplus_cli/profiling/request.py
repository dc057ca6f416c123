"""What a user asked `mplus profile` for, checked before anything slow is done."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mplus_cli.data.building.shards import atomic_write
from mplus_cli.errors import UsageError

NAME = "request.json"
DEFAULT_OUT = "profile-results"
DEFAULT_LENGTHS = (2_048, 8_192, 32_768)
DEFAULT_PROMPT = 512  # last tokens of the text, which are read after everything else was injected
PAPER_PROMPT = 2_048  # the same in M+ figure 7
ADAPTERS = ("merged", "separate")
_JOINED = ("systems", "lengths")


@dataclass(frozen=True)
class Request:
    """One call of `mplus profile`; None and () mean the default.

    Attributes:
        out: folder of the results.
        systems: `name` or `name:key=value,...`; lengths: tokens of the whole text.
        model: folder, hub id or None for the bundled one; random_weights: a known configuration or a folder instead.
        quantize: the backbone in `int8` or `int4`.
        adapters: `merged` into copies of the weights, or `separate`.
        prompt: last tokens of the text, which are read and not injected.
        new_tokens: generated after the first; repeats: of every timed question; writes: that are timed, 0 for all.
        stored: long-term tokens in memory before the text.
        breakdown: time by phase too; state: measure the state file.
    """

    out: Path = Path(DEFAULT_OUT)
    systems: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    model: str | None = None
    random_weights: str | None = None
    device: str | None = None
    dtype: str | None = None
    offload: bool = False
    quantize: str | None = None
    adapters: str | None = None
    prompt: int | None = None
    new_tokens: int | None = None
    repeats: int | None = None
    writes: int | None = None
    stored: int | None = None
    threads: int | None = None
    breakdown: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.adapters is not None and self.adapters not in ADAPTERS:
            problems.append(f"--adapters {self.adapters} is neither merged nor separate")
        if self.quantize is not None and self.adapters == "merged":
            problems.append("--quantize leaves adapters apart: they are not merged into codes")
        if self.model is not None and self.random_weights is not None:
            problems.append("--model and --random-weights are two models; give one")
        if problems:
            raise UsageError("; ".join(problems), hint="mplus profile --help")

    def prompt_for(self, length: int) -> int:
        """Tokens of a text of `length` that are read and not injected."""
        return min(length, self.prompt if self.prompt is not None else min(DEFAULT_PROMPT, max(1, length // 4)))

    @property
    def resume_command(self) -> str:
        return f"mplus profile --resume --out {self.out}"

    def save(self) -> None:
        """Keep the request in its folder, so that resuming needs nothing but the folder's name."""
        with atomic_write(self.out / NAME) as file:
            file.write((json.dumps(asdict(self) | {"out": str(self.out)}, indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> Request:
        """The request kept in a folder.

        Raises:
            UsageError: there is none, or it is damaged.
        """
        try:
            plain = json.loads((folder / NAME).read_text(encoding="utf-8"))
            known = {field.name for field in fields(cls)}
            values: dict[str, Any] = {
                key: tuple(v) if isinstance(v, list) else v for key, v in plain.items() if key in known
            }
            return cls(**values | {"out": folder})
        except FileNotFoundError as error:
            raise UsageError(f"{folder} holds no profile to go on with.", "mplus profile --out DIR") from error
        except (ValueError, AttributeError, TypeError) as error:
            raise UsageError(f"{folder / NAME} is damaged: {error}", "Profile into another --out.") from error

    def joined(self, more: Request) -> Request:
        """This stored request with the systems and lengths that `more` names besides.

        Raises:
            UsageError: `more` sets something else to another value, which would mix what cannot be compared.
        """
        plain = Request()
        changed = [
            f.name for f in fields(self) if f.name not in (*_JOINED, "out") and self._differs(more, plain, f.name)
        ]
        if changed:
            options = ", ".join("--" + name.replace("_", "-") for name in changed)
            raise UsageError(
                f"{self.out} was begun with other values of {options}", hint="leave them out, or use another --out"
            )
        union: dict[str, Any] = {name: _union(getattr(self, name), getattr(more, name)) for name in _JOINED}
        return replace(self, **union)

    def _differs(self, more: Request, plain: Request, name: str) -> bool:
        return getattr(more, name) not in (getattr(plain, name), getattr(self, name))


def _union(first: tuple, second: tuple) -> tuple:
    return tuple(dict.fromkeys((*first, *second)))


def parse_lengths(texts: Sequence[str]) -> tuple[int, ...]:
    """Lengths from `2k,8k,128k` and the like (k = 1024, m = 1024 k), ascending, each once.

    Raises:
        UsageError: something else, all of it named.
    """
    found, wrong = set(), []
    for part in (part.strip() for text in texts for part in text.split(",")):
        match = re.fullmatch(r"(\d{1,9})([kKmM]?)", part)
        value = int(match[1]) * {"": 1, "k": 1024, "m": 1024**2}[match[2].lower()] if match else 0
        if value < 2:
            wrong.append(part)
        found.add(value)
    if wrong:
        raise UsageError(
            f"--len {', '.join(map(repr, wrong))}: not a number of tokens", hint="for example --len 2k,8k,128k"
        )
    return tuple(sorted(found))


def length_text(length: int) -> str:
    """`128k` for 131072, `1,000` for 1000."""
    if length % 1024**2 == 0:
        return f"{length // 1024**2}m"
    return f"{length // 1024}k" if length % 1024 == 0 else f"{length:,}"


def new_folder(wanted: Path | None, resume: bool) -> Path:
    """Where results go: a folder that is not there yet, unless resuming.

    Raises:
        UsageError: the folder that was named holds results, or there are none to resume.
    """
    default = Path(DEFAULT_OUT)
    if resume:
        return wanted or _latest(default)
    if wanted is not None:
        if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
            raise UsageError(
                f"{wanted} is there already and is not overwritten",
                hint=f"mplus profile --resume --out {wanted} goes on in it",
            )
        return wanted
    number = 1
    while (folder := default if number == 1 else Path(f"{default}-{number}")).exists():
        number += 1
    return folder


def _latest(default: Path) -> Path:
    numbered = [path for path in Path().glob(f"{default}-*") if path.name.rpartition("-")[2].isdecimal()]
    found = sorted(numbered, key=lambda path: int(path.name.rpartition("-")[2]))
    return found[-1] if found else default
