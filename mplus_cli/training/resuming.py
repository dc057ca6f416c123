"""Which run a command is about: a new one, or one that goes on, and from which of its checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mplus_cli import config
from mplus_cli.errors import MPlusError, UsageError
from mplus_cli.training.recipe import Recipe
from mplus_cli.training.recipe_files import default_run, load_recipe, recipe_from, shipped_recipes
from mplus_cli.training.run_dir import RECIPE, RunDirectory
from mplus_cli.training.stages import StageName

AUTO = "auto"
CHECKPOINT = "checkpoint.json"
SET_ASIDE = "set-aside"


@dataclass(frozen=True)
class Request:
    """What a user asked for.

    Attributes:
        stage, recipe: `--stage` and `--config`; one of them, unless a run goes on.
        overrides: `key=value` arguments.
        out: folder of a new run, default `runs/` and the recipe's name.
        resume: None, "auto" (go on if there is something to go on from), or the path of a run or a checkpoint.
    """

    stage: StageName | None = None
    recipe: Path | None = None
    overrides: tuple[str, ...] = ()
    out: Path | None = None
    resume: str | None = None

    @property
    def folder(self) -> Path:
        """Folder of the run.

        Raises:
            UsageError: nothing tells which.
        """
        if self.resume not in (None, AUTO):
            path = Path(str(self.resume))
            return path.absolute().parents[1] if (path / CHECKPOINT).is_file() else path
        if self.out is not None:
            return self.out
        if self.recipe is not None:
            names = {path.resolve(): name for name, path in shipped_recipes().items()}
            return default_run(names.get(self.recipe.resolve(), self.recipe.stem))
        if self.stage is not None:
            return default_run(f"stage{self.stage}" if self.stage != "base" else "default/base")
        raise self._nothing_given()

    @property
    def goes_on(self) -> bool:
        """Whether the run has begun already."""
        return self.resume is not None and (self.resume != AUTO or RunDirectory(self.folder).exists)

    def effective_recipe(self) -> Recipe:
        """The recipe that training would follow.

        Raises:
            UsageError: whatever is wrong with it.
        """
        if self.goes_on and self.recipe is None and self.stage is None:
            mapping = config.read_yaml(RunDirectory.open(self.folder).path / RECIPE)
            return recipe_from(config.override(mapping, self.overrides), f"the recipe of {self.folder}")
        if self.recipe is None and self.stage is None:
            raise self._nothing_given()
        return load_recipe(self.recipe, self.overrides, self.stage)

    @staticmethod
    def _nothing_given() -> UsageError:
        return UsageError(
            "Neither a stage, a recipe nor a run is given.",
            "mplus train --stage 1, or --config RECIPE.yaml, or --resume RUN",
        )


def open_run(request: Request, command: Sequence[str] = ()) -> tuple[RunDirectory, Path | None]:
    """The run's folder, made or found, and the checkpoint to go on from.

    Checkpoints later than the one asked for are set aside: they belong to a course that is left.

    Raises:
        UsageError: the folder of a new run is taken, a run to go on with is not there, or its recipe is another.
    """
    if request.out is not None and request.resume not in (None, AUTO) and request.out != request.folder:
        raise UsageError("--out does not go with --resume PATH: a run goes on in its own folder.")
    recipe = request.effective_recipe()
    if not request.goes_on:
        return RunDirectory.create(request.folder, recipe, command), None
    run = RunDirectory.open(request.folder)
    run.change_recipe(recipe)
    saved = sorted(path.parent for path in run.checkpoints.glob(f"step-*/{CHECKPOINT}"))
    asked = Path(str(request.resume)).absolute()
    if (asked / CHECKPOINT).is_file():
        for later in saved[saved.index(asked) + 1 :]:
            _set_aside(later)
        return run, asked
    return run, saved[-1] if saved else None


@contextmanager
def opened_run(request: Request, command: Sequence[str] = ()) -> Iterator[tuple[RunDirectory, Path | None]]:
    """`open_run`; a new run that bad input ends before its first step is removed, so that it can be begun again."""
    new = not request.goes_on
    run, checkpoint = open_run(request, command)
    try:
        yield run, checkpoint
    except MPlusError as error:
        if new and error.exit_code == 2:
            run.discard()
        raise


def _set_aside(checkpoint: Path) -> None:
    folder = checkpoint.parent / SET_ASIDE
    folder.mkdir(exist_ok=True)
    number = 1
    while (folder / f"{checkpoint.name}.{number}").exists():
        number += 1
    os.replace(checkpoint, folder / f"{checkpoint.name}.{number}")
