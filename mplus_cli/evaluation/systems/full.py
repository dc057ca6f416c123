"""The base model on the whole input (the paper's Llama-3.2-3B-128k)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mplus_cli.evaluation.systems.window import Window


@dataclass(frozen=True)
class FullOptions:
    """Settings of `full`.

    Attributes:
        cut: what is left out of documents that are longer than the model's positions; every cut is in the results.
    """

    cut: Literal["left", "middle"] = "left"


class Full(Window):
    """Reads everything, up to the positions that the model has."""

    name = "full"
    options_class = FullOptions

    @property
    def limit(self) -> int:
        """See `TextSystem.limit`."""
        return self.base.window
