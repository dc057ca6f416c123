"""What the tasks that measure the loss of texts share: their metrics, and which systems have a loss at all."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from mplus_cli.errors import UsageError
from mplus_cli.evaluation.items import Answer, Item, Question
from mplus_cli.evaluation.metrics import measured
from mplus_cli.evaluation.task import Task

if TYPE_CHECKING:
    from mplus_cli.evaluation.system import System


class LossTask(Task):
    """A measuring task whose samples are mean losses per token; the item's metadata has `lead`, see `losses.measure`.

    Attributes:
        bare: before the first document no memory is read at all.
    """

    metrics: ClassVar = {
        "nll": measured("nll"),
        "perplexity": measured("nll"),
        "bits_per_byte": measured("bits_per_byte"),
    }
    transforms: ClassVar = {"perplexity": math.exp}
    measures = True
    bare = False

    @abstractmethod
    def pieces(self, item: Item, question: Question) -> list[str]:
        """The pieces of text whose loss a question asks for."""

    def check(self, system: System) -> None:
        """Refuse systems that pick from a text, or read the parts of it that are left after a cut in the middle.

        Raises:
            UsageError: it is such a system.
        """
        hint = "--system mplus --system memoryllm --system window --system closed-book"
        if system.name in ("bm25", "snapkv"):
            what = f"{self.name} measures the loss of a text, and {system.name} reads what it picks of it"
            raise UsageError(what, hint)
        if getattr(getattr(system, "options", None), "cut", "left") != "left":
            raise UsageError(
                f"{self.name} measures text that goes on from what was read: cut=middle leaves a gap", hint
            )

    def measure(self, system: System, items: Sequence[Item]) -> Iterator[Answer]:
        """See `Task.measure`."""
        from mplus_cli.evaluation.losses import measure

        self.check(system)
        lead = items[0].metadata["lead"] if items else 0
        return measure(system, items, self.pieces, lead, bare=self.bare)
