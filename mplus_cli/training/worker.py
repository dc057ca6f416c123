"""What every process of a run does, from its recipe to its result.

DeepSpeed's launcher runs it once per GPU:

    python -m mplus_cli.training.worker RUN_DIR [--resume CHECKPOINT]

`mplus train` on one process calls `train` itself.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from mplus_cli.core.allocator import keep_freed_memory
from mplus_cli.core.loading import load_tokenizer
from mplus_cli.errors import MPlusError
from mplus_cli.training.batches import BatchStream
from mplus_cli.training.checkpoints import Checkpoints, Stateful, find_checkpoints
from mplus_cli.training.curves import plot_curves
from mplus_cli.training.disk import write_json
from mplus_cli.training.engine import Engine, read_configuration
from mplus_cli.training.export import export
from mplus_cli.training.groups import select
from mplus_cli.training.guards import frozen_checksums
from mplus_cli.training.journal import Stopwatch, read_journal
from mplus_cli.training.loop import Loop, lasting_tensors
from mplus_cli.training.processes import Processes, joined
from mplus_cli.training.recipe import Recipe
from mplus_cli.training.rows import RowState
from mplus_cli.training.run_dir import RunDirectory
from mplus_cli.training.starting import starting_model
from mplus_cli.training.step import StepRunner
from mplus_cli.training.stopping import StopRequest

Show = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        steps: done, of `of_steps`; fewer when it was asked to stop.
        loss: of the last line of the journal.
        seconds: of this command; tokens: that it computed on.
        checkpoint: the last one; model: folder of the result, None until all steps are done.
    """

    run: str
    steps: int
    of_steps: int
    loss: float | None
    seconds: float
    tokens: int
    checkpoint: str | None
    model: str | None
    curves: str | None

    @property
    def complete(self) -> bool:
        return self.steps >= self.of_steps


def train(
    run: RunDirectory,
    resume: Path | None,
    stop: StopRequest,
    show: Show = lambda line: None,
    exact_timing: bool = False,
) -> Summary:
    """Train as one process of `run`, from the beginning or from a checkpoint, and write the result when it is done.

    Args:
        stop: asked after every step.
        show: given every line of the journal, on rank 0.
        exact_timing: make GPU phases wait for each other, so that the journal's seconds are true.
    """
    begin = time.perf_counter()
    with _quiet_libraries(), joined() as processes:
        loop, tokenizer = _prepare(run, run.recipe(), processes, stop, show, exact_timing)
        start = 0 if resume is None else loop.checkpoints.resume(resume, loop.frozen)
        loop.open_journal(run, start)
        try:
            with stop:
                steps = loop.run(start)
        finally:
            loop.journal.close()
        if processes.first and steps >= loop.recipe.steps:
            export(loop.engine.model, tokenizer, run.model)
        processes.wait()
        return _finish(run, loop.recipe, start, steps, begin, processes)


def _prepare(
    run: RunDirectory, recipe: Recipe, processes: Processes, stop: StopRequest, show: Show, exact_timing: bool
) -> tuple[Loop, Any]:
    """Everything the loop works with, freshly made. Random numbers are drawn alike on every process."""
    if processes.device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(recipe.model)
    stream = BatchStream(recipe.data, tokenizer, processes.rank, processes.world, recipe.seed)
    if processes.first:
        run.write_data(stream.report(), processes.world)
    model = starting_model(recipe).to(processes.device)  # type: ignore[arg-type]
    groups = select(model, recipe.trained_groups)
    model.train()
    rows = RowState(model, recipe, processes.rank)
    runner = StepRunner(model, recipe, rows, recipe.seed)
    engine = Engine(model, runner, groups, recipe, read_configuration(run.path / "deepspeed.json"), processes)
    parts: dict[str, Stateful] = {"rows": rows, "stream": stream}
    checkpoints = Checkpoints(run.checkpoints, engine, parts, recipe.checkpoint, processes)
    loop = Loop(
        recipe=recipe,
        engine=engine,
        runner=runner,
        stream=stream,
        checkpoints=checkpoints,
        processes=processes,
        frozen=frozen_checksums(lasting_tensors(model)),
        stop_asked=stop,
        show=show if processes.first else lambda line: None,
        stopwatch=Stopwatch(processes.device, exact_timing),
    )
    return loop, tokenizer


def _finish(run: RunDirectory, recipe: Recipe, start: int, steps: int, begin: float, processes: Processes) -> Summary:
    """Curves and summary, on rank 0."""
    lines = read_journal(run.log) if run.log.exists() else []
    done = steps >= recipe.steps
    saved = find_checkpoints(run.checkpoints)
    summary = Summary(
        run=str(run.path),
        steps=steps,
        of_steps=recipe.steps,
        loss=lines[-1]["loss"] if lines else None,
        seconds=round(time.perf_counter() - begin, 3),
        tokens=sum(line["tokens"] for line in lines if line["step"] > start),
        checkpoint=str(saved[-1]) if saved else None,
        model=str(run.model) if done else None,
        curves=str(run.curves) if processes.first and plot_curves(lines, run.curves) else None,
    )
    if processes.first:
        write_json(run.summary, asdict(summary))
    return summary


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Standard output belongs to the result: what libraries print goes to standard error, and less of it."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    disable_progress_bar()
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch|deepspeed")
        warnings.filterwarnings("ignore", category=UserWarning, module="deepspeed")
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """One launched process; returns its exit code. What went wrong is left in the run for the launching command."""
    parser = argparse.ArgumentParser(prog="python -m mplus_cli.training.worker")
    parser.add_argument("run", type=Path)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--launcher", nargs=2, metavar=("PROCESS", "HOST"))
    parser.add_argument("--exact-timing", action="store_true")
    options = parser.parse_args(arguments)
    launcher = (int(options.launcher[0]), options.launcher[1]) if options.launcher else None
    rank = int(os.environ.get("RANK", "0"))
    try:
        run = RunDirectory.open(options.run)
        train(run, options.resume, StopRequest(run.stop, launcher), exact_timing=options.exact_timing)
    except Exception as error:
        traceback.print_exc()
        _leave_word(options.run, rank, error)
        return error.exit_code if isinstance(error, MPlusError) else 1
    return 0


def _leave_word(folder: Path, rank: int, error: Exception) -> None:
    """Tell the launching command, through the run's folder, why this process ended."""
    if isinstance(error, MPlusError):
        word: dict[str, Any] = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
    else:
        first = (str(error).strip().splitlines() or [""])[0]
        word = {"message": f"{type(error).__name__}: {first}", "hint": None, "exit_code": None}
    with contextlib.suppress(OSError):
        failures = RunDirectory(folder).failures
        failures.mkdir(exist_ok=True)
        write_json(failures / f"process-{rank:05d}.json", word)


if __name__ == "__main__":
    sys.exit(main())
