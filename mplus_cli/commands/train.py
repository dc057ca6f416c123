"""`mplus train`: the stages of training under DeepSpeed, on one process or many."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mplus_cli.commands.options import JsonFlag, QuietFlag, VerboseFlag
from mplus_cli.console import Progress, duration, output
from mplus_cli.errors import MPlusError, UsageError

if TYPE_CHECKING:
    from mplus_cli.training.stages import StageName
    from mplus_cli.training.worker import Summary


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to set, for example optimizer.lr=1e-4 steps=500."),
    ] = None,
    stage: Annotated[str | None, typer.Option("--stage", help="1, 2, 3, or base (a backbone from nothing).")] = None,
    recipe: Annotated[
        Path | None, typer.Option("--config", "-c", help="Recipe file. Default: the shipped one of the stage.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run. Default: runs/RECIPE.")] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", help="auto (go on if the run has begun), or the path of a run or a checkpoint."),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="Processes, one per GPU; without a GPU, on the CPU. Default: 1.")
    ] = None,
    hostfile: Annotated[
        Path | None, typer.Option("--hostfile", help="Several machines, one `NAME slots=N` per line (DeepSpeed's).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would take, and stop.")] = False,
    list_recipes: Annotated[bool, typer.Option("--list", help="List the stages and the shipped recipes.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the whole effective recipe.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Train M+: stage 1 (short-term memory), 2 (long documents), 3 (long-term memory).

    Ctrl-C saves and ends; --resume RUN goes on exactly where it stopped.
    """
    from mplus_cli.training.resuming import Request, opened_run

    if list_recipes:
        output.result(*_list())
        return
    request = Request(_stage(stage), recipe, tuple(overrides or ()), out, resume)
    if print_config:
        from mplus_cli.config import to_yaml
        from mplus_cli.training.recipe_files import as_mapping

        effective = request.effective_recipe()
        output.result(to_yaml(effective), as_mapping(effective))
        return
    if dry_run:
        from mplus_cli.training.estimate import estimate, render

        figures = estimate(request.effective_recipe(), gpus, hostfile)
        if figures["sample"]["problem"]:
            output.warn(f"lengths of documents are assumed: {figures['sample']['problem']}")
        output.result(render(figures), figures)
        return
    from mplus_cli.training.checkpoints import read_record
    from mplus_cli.training.launch import Launch, preflight, run_training
    from mplus_cli.training.status import status_line

    launch = Launch(gpus, hostfile, verbose)
    preflight(launch)
    with opened_run(request, sys.argv) as (run, checkpoint):
        steps = run.recipe().steps
        output.info(f"run {run.path}" + (f", going on from {checkpoint.name}" if checkpoint else ""))
        with Progress("training", steps) as progress:
            progress.update(0 if checkpoint is None else read_record(checkpoint).step)
            summary = run_training(
                run, checkpoint, launch, lambda line: progress.update(line["step"], status_line(line, steps))
            )
    if not summary.complete:
        raise MPlusError(
            f"interrupted after step {summary.steps:,} of {summary.of_steps:,}, which is saved in {summary.checkpoint}",
            f"mplus train --resume {request.folder}",
            exit_code=130,
        )
    output.result(_render(summary), vars(summary))
    output.hint(f"use it: mplus inject BOOK --model {summary.model}, then mplus ask QUESTION")


def _stage(text: str | None) -> StageName | None:
    if text is None:
        return None
    if text not in ("1", "2", "3", "base"):
        raise UsageError(f"--stage {text}: there is no such stage.", "Stages are 1, 2, 3 and base; mplus train --list")
    return cast("StageName", text if text == "base" else int(text))


def _list() -> tuple[str, dict]:
    from mplus_cli.training.recipe_files import shipped_recipes
    from mplus_cli.training.stages import STAGES

    stages = {str(name): stage.purpose for name, stage in STAGES.items()}
    recipes = {name: str(path) for name, path in shipped_recipes().items()}
    width = max(map(len, stages | recipes))
    lines = [f"  {name.ljust(width)}  {text}" for name, text in [*stages.items(), *recipes.items()]]
    text = "\n".join(["stages", *lines[: len(stages)], "", "recipes", *lines[len(stages) :]])
    return text, {"stages": stages, "recipes": recipes}


def _render(summary: Summary) -> str:
    loss = f", last loss {summary.loss:.4f}" if summary.loss is not None else ""
    curves = f", curves {summary.curves}" if summary.curves else ""
    return (
        f"trained {summary.steps:,} steps, {summary.tokens:,} tokens in {duration(summary.seconds)}{loss}\n"
        f"model   {summary.model}\njournal {Path(summary.run) / 'log.jsonl'}{curves}"
    )
