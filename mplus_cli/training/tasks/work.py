"""What a task is given and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.errors import UsageError
from mplus_cli.training.recipe import Recipe
from mplus_cli.training.rows import RowState
from mplus_cli.training.tasks.choosing import TaskDraw

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mplus_cli.training.examples import Example


@dataclass(frozen=True)
class Work:
    """One step of one process.

    Attributes:
        rows: what the process carries on; rng: numbers of this (seed, process, step).
        batch: one example per row.
    """

    model: MPlusForCausalLM
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe
    rows: RowState
    batch: Sequence[Example]
    draw: TaskDraw
    rng: np.random.Generator

    @property
    def memory(self) -> Memory:
        """The rows' memory.

        Raises:
            UsageError: the stage has none.
        """
        if self.rows.memory is None:
            raise UsageError(f"Task {self.draw.task} needs memory, and stage {self.recipe.stage} has none.")
        return self.rows.memory


@dataclass
class Outcome:
    """Of a task.

    Attributes:
        loss: scalar, differentiable.
        parts: what it is made of, and measures, detached scalars.
        tokens: text tokens computed on, without padding.
        ids: of the documents.
    """

    loss: torch.Tensor
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    tokens: int = 0
    ids: list[str] = field(default_factory=list)


class Task(Protocol):
    """One kind of training step."""

    def run(self, work: Work) -> Outcome:
        """Do the step: write, read, score."""
        ...
