"""Checkpoints of a run: whole or not there at all, the last k and the best k kept, resumed bit for bit.

    checkpoints/step-00001000/
        checkpoint.json       step, number of processes, loss, checksums of frozen tensors
        engine/               DeepSpeed's files: trained weights and optimizer, each process its part
        process-00000.pt      memories, cached documents, data position and random numbers of one process

A checkpoint is written beside, flushed to disk and renamed. DeepSpeed's files hold pickled Python objects: resume only
what you trust.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from mplus_cli.console import size
from mplus_cli.errors import CheckpointError, MPlusError
from mplus_cli.training.disk import disk_is_full, flush, write_json
from mplus_cli.training.engine import Engine
from mplus_cli.training.guards import GuardError, digest
from mplus_cli.training.processes import Processes
from mplus_cli.training.random_state import random_state, set_random_state
from mplus_cli.training.recipe import CheckpointSettings

RECORD = "checkpoint.json"


class Stateful(Protocol):
    """Something that can say where it is and go back there; its state is tensors and plain data."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Record:
    """`checkpoint.json`.

    Attributes:
        step: steps done.
        processes: number of processes that wrote it, which must be the number that resumes.
        loss: on the held-out documents, else the mean training loss since the checkpoint before; the lowest are kept.
        frozen: checksums of the tensors that do not learn and are not in the checkpoint.
    """

    step: int
    processes: int
    loss: float
    frozen: dict[str, int]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `checkpoints/` of the run.
        parts: what each process keeps beside DeepSpeed: its rows of memory, its place in the data.
    """

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        parts: Mapping[str, Stateful],
        settings: CheckpointSettings,
        processes: Processes,
    ) -> None:
        self.folder, self.engine, self.parts, self.settings = folder, engine, parts, settings
        self.processes = processes
        self.verified = False

    # -- saving --

    def save(self, step: int, loss: float, frozen: dict[str, int]) -> Path:
        """Write a checkpoint; all processes together. The first one is loaded again and compared.

        Raises:
            MPlusError: the disk is full; what was there before is untouched.
            GuardError: what was read back is not what was written.
        """
        final = self.folder / f"step-{step:08d}"
        partial = self.folder / f".{final.name}.partial"
        if self.processes.first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.processes.wait()
        try:
            self._write(partial, Record(step, self.processes.world, loss, frozen))
        except Exception as error:
            if disk_is_full(error, self.folder):
                shutil.rmtree(partial, ignore_errors=True)
                raise self._disk_full(step) from error
            raise
        if self.processes.first:
            shutil.rmtree(
                final, ignore_errors=True
            )  # of a run that went past here before it was resumed from further back
            os.replace(partial, final)
            flush(self.folder)
            self._prune(final)
        self.processes.wait()
        if not self.verified:
            self._verify(final)
        return final

    def _write(self, folder: Path, record: Record) -> None:
        self.engine.save(folder)
        state = {name: part.state_dict() for name, part in self.parts.items()} | {"random": random_state()}
        torch.save(state, folder / _process_file(self.processes.rank))
        if self.processes.first:
            write_json(folder / RECORD, asdict(record))
        self.processes.wait()
        if self.processes.first:
            for path in [*folder.rglob("*"), folder]:
                flush(path)

    def _verify(self, folder: Path) -> None:
        """Load the checkpoint that was just written: nothing may change by it."""
        before = self._digest()
        self.load(folder)
        after = self._digest()
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        self.verified = True
        if changed:
            raise GuardError(f"{folder} does not read back as it was written: {', '.join(changed[:8])}.")

    def _digest(self) -> dict[str, int | str]:
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        return digest({"engine": self.engine.state(), "parts": parts, "random": random_state()})

    def _disk_full(self, step: int) -> MPlusError:
        saved = self.all()
        kept = f"the last whole one is {saved[-1]}" if saved else "there is none yet"
        free = shutil.disk_usage(self.folder).free
        return MPlusError(
            f"The disk is full ({size(free)} free): the checkpoint of step {step} was not written; {kept}.",
            f"Free some space, then: mplus train --resume {self.folder.parent}",
        )

    def _prune(self, newest: Path) -> None:
        """Keep the last `keep_last` and the `keep_best` with the lowest loss."""
        records = {path: read_record(path) for path in self.all()}
        last = sorted(records, key=lambda path: records[path].step)[-self.settings.keep_last :]
        best = sorted(records, key=lambda path: (records[path].loss, records[path].step))[: self.settings.keep_best]
        for path in records.keys() - {*last, *best, newest}:
            gone = path.with_name(f".{path.name}.old")  # a half deleted checkpoint must not look like a whole one
            shutil.rmtree(gone, ignore_errors=True)
            os.replace(path, gone)
            shutil.rmtree(gone, ignore_errors=True)

    # -- resuming --

    def all(self) -> list[Path]:
        """Whole checkpoints, earliest first."""
        return find_checkpoints(self.folder)

    def resume(self, path: Path, frozen: dict[str, int]) -> int:
        """Go on from a checkpoint; all processes together.

        Args:
            frozen: checksums of the frozen tensors of the model as it was made for this run.

        Returns:
            Steps done.

        Raises:
            CheckpointError: another number of processes wrote it, or the starting model is no longer the same.
        """
        record = read_record(path)
        check_processes(record, path, self.processes.world)
        changed = sorted(k for k in frozen.keys() | record.frozen.keys() if frozen.get(k) != record.frozen.get(k))
        if changed:
            raise CheckpointError(
                f"The model that this run began with has changed: {len(changed)} frozen tensors differ from those of "
                f"{path} ({', '.join(changed[:3])}).",
                "Put the starting model back, or begin a new run.",
            )
        self.load(path)
        self.verified = True
        return record.step

    def load(self, path: Path) -> None:
        """Put everything back to where `path` was written.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        try:
            self.engine.load(path)
            file = path / _process_file(self.processes.rank)
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, KeyError) as error:
            raise CheckpointError(
                f"The checkpoint {path} cannot be read: {str(error).splitlines()[0]}",
                "Resume from an earlier one: mplus train --resume PATH_OF_A_CHECKPOINT",
            ) from error
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        set_random_state(state["random"])


def find_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in `checkpoints/` of a run, earliest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{RECORD}"))


def read_record(path: Path) -> Record:
    """What a checkpoint says of itself.

    Raises:
        CheckpointError: `path` is not one.
    """
    try:
        return Record(**json.loads((path / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of `mplus train`.") from error


def check_processes(record: Record, path: Path, world: int) -> None:
    """Refuse to resume with another number of processes than saved.

    Raises:
        CheckpointError: says why.
    """
    if record.processes != world:
        raise CheckpointError(
            f"{path} was written by {record.processes} process{'es' * (record.processes > 1)}, not {world}: each has "
            "memories, a share of the optimizer and a place in the data of its own, which cannot be dealt out anew "
            "without changing what the run learns.",
            f"Resume with --gpus {record.processes}, or begin a new run from its model/ folder.",
        )


def _process_file(rank: int) -> str:
    return f"process-{rank:05d}.pt"
