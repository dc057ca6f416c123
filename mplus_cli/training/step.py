"""One training step of one process: draw the task, run it, add up its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mplus_cli.core.loading import load_tokenizer
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.training.chance import generator
from mplus_cli.training.recipe import Recipe
from mplus_cli.training.rows import RowState
from mplus_cli.training.tasks import TASKS
from mplus_cli.training.tasks.choosing import TaskChooser, TaskDraw
from mplus_cli.training.tasks.work import Work

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mplus_cli.training.examples import Example


@dataclass
class StepOutput:
    """Of one batch.

    Attributes:
        loss: scalar, differentiable.
        task: name of the task that ran.
        parts: detached scalars: `ce`, and where there are such `retriever`, `retriever_precision` (of the best-scored
            memory tokens, as many as there are positives, the share that are), `recall` (share of the positives in
            long-term memory that were retrieved), `recall_over_chance`, `rebuild`, `text`, `revisit_distance` (writes).
        tokens: text tokens computed on, without padding.
        ids: of the documents.
    """

    loss: torch.Tensor
    task: str
    parts: dict[str, torch.Tensor]
    tokens: int
    ids: list[str]


class StepRunner:
    """Runs the steps of one process on its rows.

    Everything drawn is a function of (seed, step), for the task, or of (seed, process, step, batch of that step).

    Args:
        rows: the process's memories; carried from step to step.
        tokenizer: of the documents; by default the one beside the recipe's starting model.
    """

    def __init__(
        self,
        model: MPlusForCausalLM,
        recipe: Recipe,
        rows: RowState,
        seed: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.model, self.recipe, self.rows, self.seed = model, recipe, rows, seed
        self.tokenizer = load_tokenizer(recipe.model) if tokenizer is None else tokenizer
        self.chooser = TaskChooser(recipe, seed)
        self._latest, self._batches = -1, 0

    def draw(self, step: int) -> TaskDraw:
        """The task of a step, the same on all processes."""
        return self.chooser.draw(step)

    def all_tasks(self) -> list[TaskDraw]:
        """Every task that can occur, once."""
        return self.chooser.all_tasks()

    def run(self, step: int, batch: Sequence[Example], task: TaskDraw) -> StepOutput:
        """Run a task on a batch, one example per row; changes the rows.

        Raises:
            MaskedBatchError: a text of it has no label.
        """
        self._batches = self._batches + 1 if step == self._latest else 0
        self._latest = step
        every = self.recipe.tasks.refresh_keys
        if task.fresh:
            self.rows.renew(self.model)
        elif every and step and step % every == 0 and self._batches == 0:
            self.rows.refresh_keys(self.model)
        rng = generator(self.seed, "step", self.rows.rank, step, self._batches)
        work = Work(self.model, self.tokenizer, self.recipe, self.rows, batch, task, rng)
        outcome = TASKS[task.task].run(work)
        return StepOutput(
            loss=outcome.loss + self._nothing(),
            task=task.task,
            parts=outcome.parts,
            tokens=outcome.tokens,
            ids=outcome.ids or [example.id for example in batch],
        )

    def _nothing(self) -> torch.Tensor:
        """Zero, with a zero gradient for every trainable parameter: DeepSpeed reduces the same ones everywhere."""
        trained = [p.sum() for p in self.model.parameters() if p.requires_grad]
        return 0.0 * torch.stack(trained).sum() if trained else torch.zeros((), device=self.model.device)
