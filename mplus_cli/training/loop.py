"""The training loop: batches through tasks, losses to gradients, gradients into weights, all of it kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mplus_cli.machine import peak_bytes
from mplus_cli.training.checkpoints import Checkpoints
from mplus_cli.training.engine import Engine
from mplus_cli.training.guards import GradientWatch, check_finite, check_frozen, frozen_checksums
from mplus_cli.training.journal import Journal, Stopwatch
from mplus_cli.training.processes import Processes
from mplus_cli.training.recipe import Recipe
from mplus_cli.training.run_dir import RunDirectory
from mplus_cli.training.schedule import base_rate
from mplus_cli.training.status import WorkCounter, peak_flops
from mplus_cli.training.validation import validation_loss

if TYPE_CHECKING:
    from mplus_cli.training.batches import BatchStream
    from mplus_cli.training.step import StepOutput, StepRunner


@dataclass
class Loop:
    """One run on one process.

    Attributes:
        frozen: checksums of all that must not change.
        stop_asked: looked at after every step; training stops, saved, when any process says yes.
        show: given every line of the journal (rank 0).
    """

    recipe: Recipe
    engine: Engine
    runner: StepRunner
    stream: BatchStream
    checkpoints: Checkpoints
    processes: Processes
    frozen: dict[str, int]
    stop_asked: Callable[[], bool]
    show: Callable[[dict[str, Any]], None]
    stopwatch: Stopwatch

    def open_journal(self, run: RunDirectory, start: int) -> None:
        """Begin to keep the record, or go on with it after step `start`."""
        events = run.tensorboard if self.recipe.logging.tensorboard else None
        self.journal = Journal(run.log, events, start, self.processes)
        self.work = WorkCounter(self.engine.model.get_input_embeddings(), self.engine.model.model.layers)

    def run(self, start: int) -> int:
        """Train from step `start` to the end of the recipe.

        Returns:
            Steps done: fewer than the recipe's when asked to stop. All of them are saved.

        Raises:
            GuardError: something that should learn does not, something frozen moved, or a number is not finite.
            MPlusError: the disk is full.
        """
        recipe = self.recipe
        self.stopwatch.reset()
        loss_sum, loss_count = 0.0, 0  # since the last checkpoint
        step = start
        while step < recipe.steps:
            first = step == 0
            outputs, factor, norm = self._first_step() if first else self._step(step)
            step += 1
            for output in outputs:
                self.journal.window.add(output)
                loss_sum, loss_count = loss_sum + float(output.loss.detach()), loss_count + 1

            stop = self.processes.sum([float(self.stop_asked())])[0] > 0
            due = step % recipe.checkpoint.every == 0 or step == recipe.steps
            validation = self._validate() if due else None
            save = due or stop
            if save or step % recipe.logging.every == 0:
                self.show(self._write_line(step, factor, norm, validation))
            if save:
                with self.stopwatch.phase("checkpoint"):
                    total, count = self.processes.sum([loss_sum, loss_count])
                    self.checkpoints.save(step, total / count if validation is None else validation, self.frozen)
                loss_sum, loss_count = 0.0, 0
            if stop:
                break
        return step

    def _step(self, step: int) -> tuple[list[StepOutput], float, float]:
        """One optimizer step over `accumulation` batches of one task."""
        count = self.recipe.optimizer.accumulation
        outputs = [self._batch(step, self.runner.draw(step), count, i == count - 1) for i in range(count)]
        return outputs, *self._update(step, outputs)

    def _first_step(self) -> tuple[list[StepOutput], float, float]:
        """The first optimizer step: every task once, watched."""
        watch = GradientWatch(self.engine.groups)
        draws = self.runner.all_tasks()
        outputs = [self._batch(0, draw, len(draws), i == len(draws) - 1) for i, draw in enumerate(draws)]
        watch.close()
        watch.check(self.processes)
        factor, norm = self._update(0, outputs)
        check_frozen(self.frozen, frozen_checksums(lasting_tensors(self.engine.model)), "in the first step")
        return outputs, factor, norm

    def _batch(self, step: int, draw: Any, count: int, last: bool) -> StepOutput:
        """Forward and backward of one batch, the `last` or not of `count` in this optimizer step."""
        with self.stopwatch.phase("data"):
            examples = self.stream.next()
        with self.stopwatch.phase("forward"):
            output = self.engine.forward(step, examples, draw)
        check_finite(self.processes, bool(output.loss.isfinite()), step + 1, "loss", output.ids)
        with self.stopwatch.phase("backward"):
            self.engine.backward(output.loss / count, last)
        output.loss = output.loss.detach()
        return output

    def _update(self, step: int, outputs: list[StepOutput]) -> tuple[float, float]:
        """Change the weights; returns the schedule's factor and the gradient's norm."""
        with self.stopwatch.phase("optimizer"):
            factor, norm = self.engine.step(step)
        ids = [name for output in outputs for name in output.ids]
        check_finite(self.processes, norm == norm and abs(norm) != float("inf"), step + 1, "gradient", ids)
        return factor, norm

    def _validate(self) -> float | None:
        """Loss on the held-out documents, if there are any."""
        rows, work = self.runner.rows, self.work.operations
        with self.stopwatch.phase("validation"):
            config = None if rows.memory is None else rows.config
            loss = validation_loss(self.engine.model, self.stream, config, self.processes)
        self.work.operations = work
        return loss

    def _write_line(self, step: int, factor: float, norm: float, validation: float | None) -> dict[str, Any]:
        """The journal's line about the steps since the last one."""
        seconds = {"total": self.stopwatch.total(), **self.stopwatch.seconds}
        training = seconds["total"] - seconds["validation"] - seconds["checkpoint"]
        peak = peak_flops(self.processes.device)
        work, tokens = self.processes.sum([self.work.take(), self.journal.window.tokens])
        rates = {n: factor * base_rate(n, self.recipe.optimizer, self.engine.rows) for n in self.engine.groups}
        extra: dict[str, Any] = {} if validation is None else {"validation_loss": validation}
        extra |= {
            "rate_factor": factor,
            "rates": rates,
            "gradient_norm": norm,
            "tokens_per_second": tokens / training,
            "mfu": work / training / (peak * self.processes.world) if peak else None,
            "peak_bytes": peak_bytes(self.processes.device),
            "seconds": {name: round(value, 6) for name, value in seconds.items()},
        }
        report = self.stream.report()
        extra |= {name: report[name] for name in ("epoch", "padding_share") if name in report}
        self.stopwatch.reset()
        return self.journal.write(step, extra)


def lasting_tensors(model: Any) -> list[tuple[str, Any]]:
    """Parameters, and all buffers, those that are not saved (rotary frequencies) too."""
    return [*model.named_parameters(), *model.named_buffers()]
