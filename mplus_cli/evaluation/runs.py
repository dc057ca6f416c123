"""The folder of an evaluation: one folder for every task and system in it, each complete in itself.

DIR/request.json                         what was asked for, to go on with
DIR/results.md                           the tables
DIR/output.log                           what launched processes print
DIR/TASK/*.png                           plots
DIR/TASK/SYSTEM/run.json                 settings, model, items; versions and machine of every session
DIR/TASK/SYSTEM/samples.txt              ids of the samples, in order
DIR/TASK/SYSTEM/predictions.jsonl        one line per finished sample
DIR/TASK/SYSTEM/results.json             scores, made of the files above by `mplus eval score`
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mplus_cli.data.building.shards import atomic_write
from mplus_cli.errors import UsageError
from mplus_cli.evaluation import predictions
from mplus_cli.evaluation.items import Item
from mplus_cli.evaluation.request import NAME as REQUEST
from mplus_cli.evaluation.request import Request

RUN, SAMPLES, RESULTS, LOCK, LOG = "run.json", "samples.txt", "results.json", ".lock", "output.log"
FORMAT = 1
_ID = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Pair:
    """The folder of one task and one system."""

    path: Path

    @property
    def exists(self) -> bool:
        return (self.path / RUN).is_file()

    def run(self) -> dict[str, Any]:
        """run.json.

        Raises:
            UsageError: missing or damaged.
        """
        return read_json(self.path / RUN)

    def results(self) -> dict[str, Any]:
        """results.json.

        Raises:
            UsageError: missing or damaged.
        """
        return read_json(self.path / RESULTS)

    def samples(self) -> list[str]:
        """Ids of all samples, finished or not, in order."""
        try:
            return (self.path / SAMPLES).read_text(encoding="utf-8").split()
        except OSError as error:
            raise UsageError(f"{self.path / SAMPLES} cannot be read: {error.strerror}.") from error

    def begin(self, settings: Mapping[str, Any], about: Mapping[str, Any], ids: Sequence[str]) -> None:
        """Write run.json before any work.

        Args:
            settings: what decides the answers; resuming with others is refused.
            about: further facts.
            ids: of all samples.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path / SAMPLES) as file:
            file.write("".join(f"{id}\n" for id in ids).encode())
        write_json(self.path / RUN, {"format": FORMAT, "settings": settings, **about, "sessions": []})

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raises UsageError where the run was begun with other settings, and names them."""
        old, new = _flat(self.run()["settings"]), _flat(settings)
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if changed:
            lines = "".join(f"\n  {key}: {old.get(key)!r} is now {new.get(key)!r}" for key in changed)
            raise UsageError(
                f"{self.path} was begun with other settings:{lines}",
                "Use another --out, or resume with the old settings.",
            )

    def add_session(self, session: Mapping[str, Any]) -> int:
        """Note who goes on with the run; returns the session's number."""
        run = self.run()
        run["sessions"].append({"begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **session})
        write_json(self.path / RUN, run)
        return len(run["sessions"]) - 1


def pair_folder(out: Path, task: str, system: str) -> Pair:
    """The folder of a task and a system, by `Spec.folder` of both."""
    return Pair(out / task / system)


def find_pairs(folders: Sequence[Path]) -> list[Pair]:
    """All tasks and systems in these folders, in the order in which they were asked for.

    Raises:
        UsageError: a folder is missing or holds none.
    """
    found: list[Pair] = []
    for folder in folders:
        inside = [Pair(path.parent) for path in folder.rglob(RUN)]
        if not inside:
            what = "holds no evaluation" if folder.is_dir() else "is no folder"
            raise UsageError(f"{folder} {what}.", "mplus eval TASK... --out DIR makes one")
        found += sorted(inside, key=lambda pair: (pair.run().get("order", []), str(pair.path)))
    return list({pair.path.resolve(): pair for pair in found}.values())


@contextlib.contextmanager
def opened(request: Request) -> Iterator[None]:
    """Begin or go on with a request's folder, and hold it against other commands.

    Raises:
        UsageError: the folder is in use, is not empty and not to be gone on with, or is not one of an evaluation.
    """
    out = request.out
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file.", "Give a folder.")
    begun = out.is_dir() and any(path.name[0] != "." and path.name != LOG for path in out.iterdir())
    if begun and not (out / REQUEST).is_file():
        raise UsageError(f"--out {out} is not empty, and holds no evaluation.", "Give a new folder.")
    if begun and not request.resume:
        raise UsageError(f"--out {out} holds an evaluation already.", f"{request.resume_command}, or another --out")
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("a") as file:
        with contextlib.suppress(ImportError):  # Windows has no such lock
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UsageError(f"{out} is being written by another `mplus eval`.") from error
        yield


def discard_if_unused(out: Path) -> None:
    """Remove a folder in which nothing was begun."""
    if not any(out.rglob(RUN)):
        (out / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something else
            out.rmdir()


def sample_ids(items: Sequence[Item]) -> list[str]:
    """Ids of all samples in order.

    Raises:
        ValueError: a mistake of the task: ids that are not unique or no plain words, questions beyond the documents.
    """
    ids = []
    for item in items:
        for question in item.questions:
            if not (_ID.fullmatch(item.id) and _ID.fullmatch(question.id)):
                raise ValueError(f"id {item.sample_id(question)!r} has other characters than letters, digits and ._-")
            if not 0 <= question.after <= len(item.documents):
                raise ValueError(f"{item.sample_id(question)} is asked after {question.after} documents")
            ids.append(item.sample_id(question))
    if len(set(ids)) != len(ids):
        raise ValueError(f"sample id {next(id for id in ids if ids.count(id) > 1)!r} is not unique")
    return ids


def items_sha256(items: Sequence[Item]) -> str:
    """Of all documents, prompts and references."""
    digest = hashlib.sha256()
    for item in items:
        questions = [asdict(question) for question in item.questions]
        digest.update(json.dumps([item.id, dict(item.metadata), questions], sort_keys=True).encode())
        for document in item.documents:
            digest.update(hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()


def finished(pair: Pair) -> tuple[dict[str, dict[str, Any]], list[predictions.Damage]]:
    """Samples by id, and damaged lines; changes nothing."""
    return predictions.read(predictions.files(pair.path))


def read_json(path: Path) -> dict[str, Any]:
    """An object in a file.

    Raises:
        UsageError: missing or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", f"mplus eval score {path.parent}") from error
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} is damaged: it holds no object")
    return value


def write_json(path: Path, value: Any) -> None:
    """A whole file or nothing."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found
