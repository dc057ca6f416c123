"""Where documents come from: a folder, a file, or a data set on the hub at one commit; which files, in which order."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mplus_cli.data.building.files import SUFFIXES, count_rows
from mplus_cli.data.building.manifest import Source
from mplus_cli.data.building.shards import atomic_write
from mplus_cli.errors import UsageError


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus.

    Attributes:
        name: relative to the corpus, with `/`; files are read in the order of their names.
        path: local path or `hf://` address at a commit.
        bytes: size, for progress.
        rows: only the rows before this one belong to the corpus; None for all.
    """

    name: str
    path: str
    bytes: int
    rows: int | None = None


@dataclass(frozen=True)
class Corpus:
    """Files with documents, sorted by name.

    Attributes:
        source: as the manifest names it, with revision and licence.
        files: all of them.
    """

    source: Source
    files: tuple[CorpusFile, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def first_rows(self, rows: int) -> Corpus:
        """The corpus that consists of the first `rows` rows, file after file."""
        files = []
        for file in self.files:
            if rows <= 0:
                break
            there = count_rows(file.path, rows)
            files.append(replace(file, rows=there))
            rows -= there
        return replace(self, files=tuple(files))

    def save(self, path: Path) -> None:
        with atomic_write(path) as file:
            file.write(json.dumps({"source": asdict(self.source), "files": [asdict(f) for f in self.files]}).encode())

    @classmethod
    def load(cls, path: Path) -> Corpus:
        raw = json.loads(path.read_bytes())
        return cls(Source(**raw["source"]), tuple(CorpusFile(**file) for file in raw["files"]))


def open_corpus(
    name: str, *, revision: str | None = None, files: str | None = None, licence: str | None = None
) -> Corpus:
    """The files of a corpus.

    Args:
        name: a folder or file here, or the id of a data set on the hub (`owner/name`).
        revision: branch, tag or commit on the hub; what it means today is looked up and recorded.
        files: only files whose name matches this pattern, such as `train/*`.
        licence: as the user states it; None takes what the hub states.

    Raises:
        UsageError: nothing is there, no file is of a readable kind, or the hub cannot be reached.
    """
    local = Path(name)
    if local.exists():
        if revision is not None:
            raise UsageError(f"{name} is a local folder and has no revisions.", "Leave out --revision.")
        return _licensed(_local(local, name, files), licence)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UsageError(f"There is no {name} here.", "Give a folder or file, or the id of a data set on the hub.")
    return _licensed(_hub(name, revision, files), licence)


def _licensed(corpus: Corpus, licence: str | None) -> Corpus:
    return replace(corpus, source=replace(corpus.source, licence=licence)) if licence else corpus


def _local(path: Path, name: str, pattern: str | None) -> Corpus:
    base = path.parent if path.is_file() else path
    paths = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    found = [CorpusFile(p.relative_to(base).as_posix(), os.fspath(p.resolve()), p.stat().st_size) for p in paths]
    chosen = _choose(found, pattern, name)
    digest = hashlib.sha256("".join(f"{file.name}\t{file.bytes}\n" for file in chosen).encode()).hexdigest()
    source = Source(name, revision=f"files:{digest}", note="local; the revision is a sha256 over file names and sizes")
    return Corpus(source, chosen)


def _choose(found: list[CorpusFile], pattern: str | None, name: str) -> tuple[CorpusFile, ...]:
    chosen = [file for file in found if pattern is None or fnmatch.fnmatch(file.name, pattern)]
    readable = [file for file in chosen if file.name.endswith(SUFFIXES)]
    if not readable:
        if len(found) == 1 and Path(name).is_file():
            raise UsageError(f"{name} is of an unknown kind.", f"Readable are {', '.join(SUFFIXES)}.")
        what = f" matching {pattern!r}" if pattern else ""
        there = f"; there are {', '.join(file.name for file in found[:5])}" if found else "; it is empty"
        raise UsageError(f"{name} has no readable file{what}{there}.", f"Readable are {', '.join(SUFFIXES)}.")
    return tuple(sorted(readable, key=lambda file: file.name))


def _hub(name: str, revision: str | None, pattern: str | None) -> Corpus:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    try:
        info = api.dataset_info(name, revision=revision)
        entries = list(api.list_repo_tree(name, repo_type="dataset", revision=info.sha, recursive=True))
    except RevisionNotFoundError as error:
        raise UsageError(f"{name} has no revision {revision!r}.", "Leave out --revision for the newest.") from error
    except RepositoryNotFoundError as error:
        raise UsageError(f"There is no {name}: neither a folder here nor a data set on the hub.") from error
    except Exception as error:  # the hub client's errors of the network have no common class but this one
        raise UsageError(
            f"The hub cannot be reached for {name} ({type(error).__name__}: {_first_line(error)}).",
            "Download the data set elsewhere and give its folder: its jsonl, jsonl.gz, jsonl.zst and parquet files are "
            "read as they are.",
        ) from error
    found = [
        CorpusFile(entry.path, f"hf://datasets/{name}@{info.sha}/{entry.path}", entry.size)
        for entry in entries
        if isinstance(entry, RepoFile)
    ]
    card: Any = info.card_data or {}
    return Corpus(Source(name, revision=info.sha, licence=_licence(card)), _choose(found, pattern, name))


def _licence(card: Any) -> str | None:
    licence = card.get("license")
    return ", ".join(licence) if isinstance(licence, list) else licence


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
