"""The folder of a run. What is decided before training is written first, and nothing there is ever overwritten.

recipe.yaml        the whole effective recipe      deepspeed.json  the DeepSpeed configuration it names
environment.json   versions, machine, command      data.json       fingerprints of the data
log.jsonl          one line per logging.every      output.log      what launched processes print
checkpoints/       step-00001000/ ...              model/          the result, a Hugging Face checkpoint
curves.png         summary.json                    tensorboard/    by option
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mplus_cli.config import read_yaml, to_yaml
from mplus_cli.errors import UsageError
from mplus_cli.machine import MODEL_PACKAGES, machine, versions
from mplus_cli.training.disk import write_json, write_text
from mplus_cli.training.recipe import Recipe
from mplus_cli.training.recipe_files import as_mapping, deepspeed_file, recipe_from

RECIPE = "recipe.yaml"
# What may differ when a run goes on: how long it lasts and what is kept and shown of it, not what it has learned from.
CHANGEABLE = ("steps", "checkpoint", "logging")


class RunDirectory:
    """Paths of a run and its small files."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.log = self.path / "log.jsonl"
        self.output = self.path / "output.log"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.summary = self.path / "summary.json"
        self.curves = self.path / "curves.png"
        self.tensorboard = self.path / "tensorboard"
        self.stop = self.path / "stop"  # there while a launched run is asked to stop
        self.failures = self.path / "failures"

    @property
    def exists(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / RECIPE).is_file()

    @classmethod
    def create(cls, path: Path, recipe: Recipe, command: Sequence[str] = ()) -> RunDirectory:
        """Begin a run.

        Raises:
            UsageError: there is something at `path` already.
        """
        run = cls(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            hint = f"mplus train --resume {path}" if run.exists else "Give --out a folder that is not there yet."
            raise UsageError(f"{path} exists; a run never overwrites another.", hint)
        settings = deepspeed_file(recipe).read_text(encoding="utf-8")
        run.path.mkdir(parents=True, exist_ok=True)
        write_text(run.path / "deepspeed.json", settings)
        write_json(run.path / "environment.json", environment(command))
        write_text(run.path / RECIPE, to_yaml(recipe))  # last: with it, the folder is a run
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """A run that has begun.

        Raises:
            UsageError: there is none at `path`.
        """
        run = cls(path)
        if not run.exists:
            raise UsageError(f"{path} is not the folder of a training run: it has no {RECIPE}.")
        return run

    def discard(self) -> None:
        """Remove a run in which no step was done; any other stays."""
        if not self.checkpoints.exists() and not (self.log.exists() and self.log.stat().st_size):
            shutil.rmtree(self.path)

    def recipe(self) -> Recipe:
        """The effective recipe, with what later commands changed of it."""
        return recipe_from(read_yaml(self.path / RECIPE), str(self.path / RECIPE))

    def change_recipe(self, recipe: Recipe) -> None:
        """Go on with another recipe; the one so far is kept beside it.

        Raises:
            UsageError: the recipes differ in what the run has already learned from; names the keys.
        """
        old = self.recipe()
        if recipe == old:
            return
        before, after = _flat(as_mapping(old)), _flat(as_mapping(recipe))
        keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        fixed = [key for key in keys if key.split(".")[0] not in CHANGEABLE]
        if fixed:
            lines = "".join(f"\n  {key}: {before.get(key)!r} is now {after.get(key)!r}" for key in fixed)
            raise UsageError(
                f"{self.path} was begun with another recipe:{lines}",
                f"Only {', '.join(CHANGEABLE)} may change in a run. Begin a new one with another --out, "
                "or resume without the changes.",
            )
        number = 1
        while (self.path / f"recipe-{number}.yaml").exists():
            number += 1
        write_text(self.path / f"recipe-{number}.yaml", to_yaml(old))
        write_text(self.path / RECIPE, to_yaml(recipe))

    def write_data(self, report: dict[str, Any], rank_count: int) -> None:
        """Fingerprints of the data, once per run; a file that is there stays."""
        if not (self.path / "data.json").exists():
            write_json(self.path / "data.json", {"processes": rank_count, **report})

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run, so that two commands never write to it at once.

        Raises:
            UsageError: another process of this machine holds it.
        """
        with (self.path / "lock").open("a+") as file:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:  # no such lock on Windows, where DeepSpeed does not train either
                pass
            except OSError as error:
                raise UsageError(f"{self.path} is being trained by another process.") from error
            yield


def environment(command: Sequence[str]) -> dict[str, Any]:
    """Versions, machine and command of this run; nothing of it is needed to resume."""
    return {
        **versions(*MODEL_PACKAGES),
        **machine(),
        "command": list(command) or sys.argv,
        "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _flat(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> dotted keys."""
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
