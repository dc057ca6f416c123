"""The folder a build is made in: who may write it, what is kept for resuming, how it becomes complete."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from mplus_cli.console import size
from mplus_cli.data.building.manifest import MANIFEST, Manifest, Shard, Source, Tokenizer, now
from mplus_cli.data.building.shards import atomic_write, file_sha256, write_rows
from mplus_cli.errors import UsageError
from mplus_cli.machine import versions

try:
    import fcntl
except ImportError:  # not a POSIX system: two builds into one folder are then not prevented
    fcntl = None  # type: ignore[assignment]


class BuildFolder:
    """A build in the making. Use `open` in the command that makes it, `attach` in processes that help it.

    Attributes:
        path: the folder.
        work: for the builder's own files until the build is complete.
        builder, parameters: what it was started with.
        resumed: True when an earlier run left something to go on from.
    """

    def __init__(self, path: Path, builder: str, parameters: dict[str, Any], started: float, resumed: bool) -> None:
        self.path, self.work = path, path / ".work"
        self.builder, self.parameters = builder, parameters
        self.started, self.resumed = started, resumed
        self._lock: int | None = None

    @classmethod
    def open(cls, path: str | Path, builder: str, parameters: dict[str, Any], *, need_bytes: float = 0) -> BuildFolder:
        """Start a build in a new or empty folder, or go on with an incomplete one of the same parameters.

        Args:
            need_bytes: estimate of what the build will write; refused when the disk has less.

        Raises:
            UsageError: the folder holds a complete build, another build, or something else; it is being written by
                another process; the disk has too little room.
        """
        path = Path(path)
        parameters = json.loads(json.dumps(parameters))  # as they will be read back
        record = _check(path, builder, parameters)
        require_disk(path, need_bytes)
        folder = cls(path, builder, parameters, record["started"] if record else time.time(), record is not None)
        try:
            folder.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}.", "Choose another folder.") from error
        folder._acquire()
        if record is None:
            record = {"builder": builder, "parameters": parameters, "started": folder.started}
            with atomic_write(folder.work / "build.json") as file:
                file.write(json.dumps(record, indent=2).encode())
        return folder

    @classmethod
    def attach(cls, path: str | Path) -> BuildFolder:
        """The build that another process opened."""
        path = Path(path)
        record = json.loads((path / ".work" / "build.json").read_bytes())
        return cls(path, record["builder"], record["parameters"], record["started"], True)

    def write_shard(self, name: str, rows: Iterable[dict[str, Any] | bytes], **labels: str) -> Shard:
        """Write a shard, or leave it when an earlier run wrote it. `rows` are then not read."""
        note, path = self._note(name), self.path / name
        if self.has_shard(name):
            return Shard(**json.loads(note.read_bytes()))
        count = write_rows(path, rows)
        shard = Shard(name, count, path.stat().st_size, file_sha256(path), labels)
        with atomic_write(note) as file:
            file.write(json.dumps(asdict(shard)).encode())
        return shard

    def has_shard(self, name: str) -> bool:
        """Whether a shard is written."""
        return self._note(name).is_file() and (self.path / name).is_file()

    def _note(self, name: str) -> Path:
        return self.work / "shards" / (name.replace("/", "__") + ".json")

    def shards(self) -> list[Shard]:
        """The shards written so far, by path."""
        notes = (self.work / "shards").glob("*.json")
        return sorted((Shard(**json.loads(note.read_bytes())) for note in notes), key=lambda shard: shard.path)

    def finish(
        self,
        *,
        sources: Iterable[Source],
        counts: dict[str, Any],
        tokenizer: Tokenizer | None = None,
        packages: Iterable[str] = (),
    ) -> Manifest:
        """Write the manifest, which makes the build complete, and remove `work`."""
        created = {"at": now(), "seconds": round(time.time() - self.started, 1), "versions": versions(*packages)}
        shards = tuple(self.shards())
        manifest = Manifest(self.builder, self.parameters, tuple(sources), counts, shards, tokenizer, created)
        for left in self.path.rglob("*.tmp"):  # by a process that was killed while writing
            left.unlink(missing_ok=True)
        manifest.write(self.path)
        shutil.rmtree(self.work, ignore_errors=True)
        return manifest

    def abandon(self) -> None:
        """Leave no trace of a build that failed before anything of worth was done: other parameters may follow."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.rmtree(self.path / ".jobs", ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty
            self.path.rmdir()

    def __enter__(self) -> BuildFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if isinstance(error, UsageError) and {entry.name for entry in self.work.glob("*")} <= {"build.json", "lock"}:
            self.abandon()

    def _acquire(self) -> None:
        if fcntl is None:
            return
        descriptor = os.open(self.work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UsageError(
                f"{self.path} is being built by another process.", "Wait for it, or choose another folder."
            ) from error
        except OSError:  # a file system without locks: build anyway
            pass
        self._lock = descriptor


def _check(path: Path, builder: str, parameters: dict[str, Any]) -> dict[str, Any] | None:
    """The record of the incomplete build to go on with, None for a fresh folder, UsageError for anything else."""
    if not path.exists():
        return None
    if not path.is_dir():
        raise UsageError(f"{path} is a file.", "Give a folder to build in.")
    if (path / MANIFEST).exists():
        raise UsageError(
            f"{path} already holds a complete build; builds are never overwritten.",
            f"mplus build-data show {path}, or choose another folder",
        )
    try:
        record = json.loads((path / ".work" / "build.json").read_bytes())
        there, started_with = record["builder"], record["parameters"]
    except FileNotFoundError as error:
        if any(entry.name != ".work" for entry in path.iterdir()):
            raise UsageError(f"{path} is not empty and not a build.", "Give a new folder.") from error
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}/.work/build.json is damaged.", "Remove the folder and build again.") from error
    if there != builder:
        raise UsageError(
            f"{path} holds an incomplete build of {there!r}.", "Choose another folder, or remove that one."
        )
    different = sorted(
        key for key in parameters.keys() | started_with.keys() if parameters.get(key) != started_with.get(key)
    )
    if different:
        details = ", ".join(f"{key}: {started_with.get(key)!r} there, {parameters.get(key)!r} now" for key in different)
        raise UsageError(
            f"{path} holds an incomplete build with other parameters ({details}).",
            "Repeat the parameters it was started with to resume it, choose another folder, or remove that one.",
        )
    return record


def require_disk(path: Path, need_bytes: float) -> None:
    """Refuse to start what the disk under `path` (which need not exist) has no room for.

    Raises:
        UsageError: with what is needed and what is free.
    """
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < need_bytes:
        raise UsageError(
            f"{path} has {size(free)} free, and this build may need {size(need_bytes)}.",
            "Choose a folder on another disk, or build less (--limit, fewer documents).",
        )


def find_builds(root: Path, depth: int = 4) -> Iterator[Path]:
    """Folders of builds under `root`, complete or not, sorted; builds inside builds are not looked for."""
    if (root / MANIFEST).is_file() or (root / ".work" / "build.json").is_file():
        yield root
    elif depth > 0 and root.is_dir():
        for child in sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
            yield from find_builds(child, depth - 1)
