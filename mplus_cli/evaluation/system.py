"""What a system compared by `mplus eval` is, and the table of them.

A system is one file under `systems/` and one row of `SYSTEMS`. It has one method, which answers a batch of items.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from mplus_cli.evaluation.items import Answer, Item
from mplus_cli.evaluation.registry import Row, Spec, parse
from mplus_cli.evaluation.task import NoOptions, Task

if TYPE_CHECKING:
    from mplus_cli.inference.models import LoadedModel

SYSTEMS: dict[str, Row] = {
    "mplus": Row("systems.mplus:MPlus", "short- and long-term memory", "M+"),
    "memoryllm": Row("systems.memoryllm:MemoryLLM", "the same weights without long-term memory", "MemoryLLM-8B"),
    "window": Row("systems.window:Window", "the base model, its input cut to a window", "Llama-3.1-8B-16k"),
    "full": Row("systems.full:Full", "the base model on the whole input", "Llama-3.2-3B-128k"),
    "snapkv": Row("systems.snapkv:SnapKV", "the base model with SnapKV", "Llama-3.1-8B-SnapKV"),
    "bm25": Row("systems.bm25:BM25", "the base model on the chunks that BM25 finds", "Llama-3.1-8B-BM25"),
    "mplus-attn": Row("systems.mplus_attn:MPlusAttn", "long-term memory searched by attention, per head", "M+-Attn"),
    "random": Row("systems.replaced:Random", "retrieval replaced by chance", "floor"),
    "closed-book": Row("systems.closed_book:ClosedBook", "no document at all", "floor"),
    "zeros": Row("systems.replaced:Zeros", "retrieved tokens replaced by zeros", "ablation"),
    "noise": Row("systems.replaced:Noise", "retrieved tokens replaced by noise", "ablation"),
    "foreign": Row("systems.replaced:Foreign", "retrieved tokens replaced by those of other documents", "ablation"),
}


@dataclass(frozen=True)
class SystemSettings:
    """What a run asks of a system.

    Attributes:
        options: an instance of the system's `options_class`.
        seed: of the run. The seed of an item's memory is `memory_seed(seed, item.id)`, and nothing else.
        base_model: folder or hub id of a plain Hugging Face model for systems on the base model; None for the backbone
            of the memory model.
        device, dtype: as given on the command line, for a base model that is loaded.
        initial: memory that an item starts from, as `new_memory` takes it.
        batch: prompts that may be read at a time, where there are fewer items than that. No answer depends on it.
    """

    options: Any = field(default_factory=NoOptions)
    seed: int = 0
    base_model: str | None = None
    device: str | None = None
    dtype: str | None = None
    initial: str = "checkpoint"
    batch: int = 1


class System(ABC):
    """A system.

    Attributes:
        name: as in `SYSTEMS`.
        options_class: frozen dataclass of the system's own settings (`--system NAME:key=value`), see `config`.
        needs_long_term: refuses models without long-term memory.

    Args:
        loaded: the memory model.

    Raises:
        UsageError: the system cannot run on this model, or a package is missing; before any work.
    """

    name: ClassVar[str]
    options_class: ClassVar[Any] = NoOptions
    needs_long_term: ClassVar[bool] = False

    def __init__(self, loaded: LoadedModel, settings: SystemSettings) -> None:
        self.loaded, self.settings = loaded, settings

    @abstractmethod
    def answer(self, task: Task, items: Sequence[Item]) -> Iterator[Answer]:
        """Answer every question of the items, the rows of one batch, and yield answers as they are finished.

        Every item starts from a fresh memory. Rows may have different numbers of documents and questions.
        """

    def describe(self) -> dict[str, Any]:
        """Plain JSON for run.json: effective sizes (window, budget), base model, library versions."""
        return {}


def memory_seed(run_seed: int, item: str) -> int:
    """Seed of an item's memory: made of the run's seed and the item's id alone, whatever is batched with it."""
    digest = hashlib.blake2b(f"{run_seed}\0{item}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits, torch's int64


def find_system(text: str) -> tuple[type[System], Spec]:
    """The system class of `name` or `name:key=value,...`.

    Raises:
        UsageError: there is none of this name.
    """
    spec = parse(text, SYSTEMS, "system")
    return SYSTEMS[spec.name].load(), spec
