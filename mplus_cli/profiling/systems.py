"""What can be profiled side by side, and the settings of each; the names are those of `mplus eval`."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from mplus_cli.config import Range
from mplus_cli.errors import MissingExtraError, UsageError
from mplus_cli.evaluation.registry import Row, Spec, make_options, parse

Size = Annotated[int, Range(low=1)]
PAPER_WINDOW = 16_384


@dataclass(frozen=True)
class MemoryOptions:
    """Settings of `mplus`; None keeps the model's.

    Attributes:
        offload: keep short-term values on the host; a read brings them to the GPU layer by layer (M+ table 1).
        short_term_size: N; long_term_capacity: M; retrieval_budget: K_theta; chunk_size: text tokens per write.
        ltm_dtype: long-term values in less space, see `core.value_codec`.
        compile: generate through one compiled graph, see `core.decoding`.
    """

    offload: bool = False
    short_term_size: Size | None = None
    long_term_capacity: Size | None = None
    retrieval_budget: Size | None = None
    chunk_size: Size | None = None
    ltm_dtype: Literal["model", "bfloat16", "float8", "int8"] = "model"
    compile: bool = False


@dataclass(frozen=True)
class MemoryLLMOptions:
    """Settings of `memoryllm`, which has no long-term memory."""

    offload: bool = False
    short_term_size: Size | None = None
    chunk_size: Size | None = None
    compile: bool = False


@dataclass(frozen=True)
class WindowOptions:
    """Settings of `window`: tokens that it reads at most."""

    size: Size = PAPER_WINDOW


@dataclass(frozen=True)
class FullOptions:
    """`full` has no settings."""


@dataclass(frozen=True)
class SnapKVOptions:
    """Settings of `snapkv`: keys and values kept per head, tokens read at most, tokens at the end that decide."""

    cache: Size = PAPER_WINDOW
    size: Size = 49_152
    observed: Size = 64


SYSTEMS: dict[str, Row] = {
    "mplus": Row("", "short- and long-term memory", "M+"),
    "memoryllm": Row("", "the same weights without long-term memory", "MemoryLLM-8B"),
    "window": Row("", "the base model, its input cut to a window", "Llama-3.1-8B-16k"),
    "full": Row("", "the base model on the whole input", "Llama-3.2-3B-128k"),
    "snapkv": Row("", "the base model with SnapKV", "Llama-3.1-8B-SnapKV"),
}
OPTIONS: dict[str, Any] = {
    "mplus": MemoryOptions,
    "memoryllm": MemoryLLMOptions,
    "window": WindowOptions,
    "full": FullOptions,
    "snapkv": SnapKVOptions,
}
WITH_MEMORY = ("mplus", "memoryllm")


@dataclass(frozen=True)
class Asked:
    """A system as asked for, with its settings read."""

    spec: Spec
    options: Any

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def label(self) -> str:
        return self.spec.label.replace(":offload=true", " --offload")

    @property
    def has_memory(self) -> bool:
        return self.name in WITH_MEMORY

    def read_at_most(self, length: int, positions: int) -> int:
        """Tokens that a system without memory reads of `length`."""
        if self.name == "full":
            return length
        return min(length, self.options.size, positions)


def find_systems(texts: tuple[str, ...], offload: bool) -> list[Asked]:
    """The systems that `--system` names, `name` or `name:key=value,...`, each once.

    Args:
        offload: for every system that can.

    Raises:
        UsageError: an unknown name or setting, with the nearest ones. MissingExtraError: kvpress is not installed.
    """
    found: dict[str, Asked] = {}
    for text in texts:
        try:
            spec = parse(text, SYSTEMS, "system")
        except UsageError as error:
            raise UsageError(error.message, hint=f"one of: {', '.join(SYSTEMS)}") from error
        if offload and spec.name in WITH_MEMORY and not any(s.startswith("offload=") for s in spec.settings):
            spec = Spec(spec.name, (*spec.settings, "offload=true"))
        asked = Asked(spec, make_options(OPTIONS[spec.name], spec.settings, spec.name))
        if spec.name == "snapkv":
            require_kvpress()
        found.setdefault(asked.label, asked)
    return list(found.values())


def default_systems(gpu: bool, long_term: bool, plain: bool = True) -> tuple[str, ...]:
    """What is compared where nothing is named: everything that runs here and differs here. plain: those without memory
    too."""
    own = ("mplus", "mplus:offload=true") if gpu else ("mplus",)  # on a CPU everything is on the host
    rest = ("memoryllm", "window", "full") + (("snapkv",) if importlib.util.find_spec("kvpress") else ())
    return (own if long_term else ()) + (rest if plain else rest[:1])


def require_kvpress() -> Any:
    """The class SnapKVPress.

    Raises:
        MissingExtraError: it cannot be imported.
    """
    try:
        return importlib.import_module("kvpress").SnapKVPress
    except (ImportError, AttributeError) as error:
        raise MissingExtraError(
            f"system snapkv needs the package kvpress, and it transformers below 5.3 ({error})",
            hint='in an environment of its own: pip install "mplus[snapkv]"',
        ) from error
