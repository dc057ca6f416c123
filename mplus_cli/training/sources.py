"""What `data.sources` of a recipe means: builds, files of rows, texts, globs and data sets on the hub.

    sources = open_sources(("builds/mix", "books/*.txt", "owner/name"), text_field="text", revision=None)

All sources together are one corpus, read in an order of its own in each epoch. How much of each is read is decided
where it can be seen and repeated: `mplus build-data mix` writes a set with given proportions.

Questions come with chronicles, and with anybody's own rows: beside `text-ANY.jsonl`, whose rows have a `name` and a
`text`, lies `questions-ANY.jsonl` with a row for every question, those of a text together, in the order of the texts:

    {"document": "name of the text", "question": "...", "answer": "...", "passages": [[263, 269]]}

where passages are the characters [start, end) of the text that answer it. Both files may be compressed (.gz).

Hub data sets are read through `build-data`'s reader: the files of one commit, streamed, never a loading script.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mplus_cli.data.building.corpus import open_corpus
from mplus_cli.data.building.files import SUFFIXES
from mplus_cli.data.building.folder import find_builds
from mplus_cli.data.building.manifest import MANIFEST, Manifest, Shard, read_manifest
from mplus_cli.data.building.rows import Fields
from mplus_cli.data.building.shards import file_sha256
from mplus_cli.data.sources import expand
from mplus_cli.errors import UsageError

_HELD_OUT = ("held-out", "test")
_QUESTIONS = "-questions"
_RECIPE_WORDS = {
    "--text-field": "data.text_field",
    "--revision": "data.revision",
    "until the build is complete": "while a run reads them",
}


@dataclass(frozen=True)
class TextFile:
    """One file of training text.

    Attributes:
        name: as messages and the order of files call it; unique among all sources.
        path: local path or `hf://` address at a commit.
        bytes: size.
        fields: of its rows; None: the whole file is one document.
        questions: file with the questions about its documents, which name them by `fields.source`.
    """

    name: str
    path: str
    bytes: int
    fields: Fields | None = None
    questions: str | None = None


@dataclass(frozen=True)
class OpenSource:
    """One entry of `data.sources`.

    Attributes:
        name: as the recipe has it.
        revision: what it is today: `manifest:sha256` of a build, a commit, or a sha256 over file names and sizes.
        files: with documents to train on.
        build: the manifest, for builds; `folder`: where it lies.
    """

    name: str
    revision: str
    files: tuple[TextFile, ...]
    build: Manifest | None = None
    folder: Path | None = None

    def described(self) -> dict[str, Any]:
        """For the journal of a run."""
        size = sum(file.bytes for file in self.files)
        return {"name": self.name, "revision": self.revision, "files": len(self.files), "bytes": size}


@dataclass(frozen=True)
class Sources:
    """All training text of a run.

    Attributes:
        opened: the sources in the order of the recipe.
        files: of all of them, sorted by name.
    """

    opened: tuple[OpenSource, ...]
    files: tuple[TextFile, ...]

    @property
    def digest(self) -> str:
        """sha256 over what was opened: a run can go on only with the same."""
        lines = [f"{source.name}\t{source.revision}\n" for source in self.opened]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def open_sources(names: Iterable[str], text_field: str = "text", revision: str | None = None) -> Sources:
    """Find the files of all sources.

    Args:
        names: each a build (`FOLDER`, or `FOLDER:BUCKET` for one of its buckets), a folder of builds, of row files or
            of texts, a file, a glob, or the id of a data set on the hub. Buckets that are held out or for tests are
            read only when named. A folder with row files is read as rows, and other files in it are not read.
        text_field: of rows; builds have their own.
        revision: branch, tag or commit of hub sources.

    Raises:
        UsageError: a source is missing, incomplete, without texts, or given twice.
    """
    opened: list[OpenSource] = []
    for name in names:
        with recipe_words():
            opened += _open(name, text_field, revision)
    if not opened:
        raise UsageError("The recipe names no training text.", "data.sources=[FOLDER]")
    if revision is not None and not any(file.path.startswith("hf://") for source in opened for file in source.files):
        raise UsageError(f"data.revision is {revision!r}, and no source is on the hub.", "Leave out data.revision.")
    files = sorted((file for source in opened for file in source.files), key=lambda file: file.name)
    places: dict[str, str] = {}
    for file in files:
        if file.path in places:
            raise UsageError(
                f"{file.name} is given twice in data.sources (also as {places[file.path]}).",
                "Give each text once; proportions are the job of `mplus build-data mix`.",
            )
        places[file.path] = file.name
    return Sources(tuple(opened), tuple(files))


@contextlib.contextmanager
def recipe_words() -> Iterator[None]:
    """Messages of the readers of `mplus build-data`, with the recipe's keys in place of its options."""
    try:
        yield
    except UsageError as error:
        hint = error.hint
        for option, key in _RECIPE_WORDS.items():
            hint = hint and hint.replace(option, key)
        if hint == error.hint:
            raise
        raise UsageError(error.message, hint) from error


def _open(name: str, text_field: str, revision: str | None) -> list[OpenSource]:
    path = Path(name)
    if path.is_dir() and (builds := list(find_builds(path))):
        return [_build(build, None, str(build)) for build in builds]
    if path.exists():
        return [_local(path, name, text_field)]
    folder, colon, bucket = name.rpartition(":")
    if colon and (Path(folder) / MANIFEST).is_file():
        return [_build(Path(folder), bucket, name)]
    if glob.has_magic(name):
        matches = sorted(glob.glob(name, recursive=True))
        chosen = [match for match in matches if os.path.isfile(match)] or matches
        if not chosen:
            raise UsageError(f"{name}: no file matches.")
        return [source for match in chosen for source in _open(match, text_field, None)]
    if "=" in name and Path(name.rpartition("=")[0]).exists():
        raise UsageError(f"data.sources: {name} has a weight.", "Weights are the job of `mplus build-data mix`.")
    return [_rows(name, name, text_field, revision)]


def _local(path: Path, name: str, text_field: str) -> OpenSource:
    files = [path] if path.is_file() else path.rglob("*")
    if any(file.name.endswith(SUFFIXES) for file in files):
        return _rows(name, name, text_field, None)
    texts = [(text, os.path.realpath(text)) for text in expand(name)]
    found = tuple(TextFile(Path(text).as_posix(), real, os.path.getsize(real)) for text, real in texts)
    digest = hashlib.sha256("".join(f"{file.name}\t{file.bytes}\n" for file in found).encode()).hexdigest()
    return OpenSource(name, f"files:{digest}", found)


def _rows(name: str, prefix: str, text_field: str, revision: str | None) -> OpenSource:
    corpus = open_corpus(name, revision=revision)
    asked = {file.path: _questions_beside(file.path) for file in corpus.files}
    files = [
        TextFile(
            _joined(prefix, file.name),
            file.path,
            file.bytes,
            Fields(text_field) if asked[file.path] is None else Fields(text_field, "name"),
            asked[file.path],
        )
        for file in corpus.files
        if os.path.realpath(file.path) not in asked.values()
    ]
    return OpenSource(name, str(corpus.source.revision), tuple(files))


def _questions_beside(path: str) -> str | None:
    """The file with the questions about the texts of a local `text-*.jsonl` or `text-*.jsonl.gz`, if it has one."""
    name = os.path.basename(path)
    if not (name.startswith("text-") and name.endswith((".jsonl", ".jsonl.gz"))):
        return None
    beside = os.path.join(os.path.dirname(path), name.replace("text-", "questions-", 1))
    return os.path.realpath(beside) if os.path.isfile(beside) else None


def _joined(prefix: str, name: str) -> str:
    return prefix if Path(prefix).is_file() else f"{prefix.rstrip('/')}/{name}"


def _build(folder: Path, bucket: str | None, name: str) -> OpenSource:
    manifest = read_manifest(folder)
    buckets = {key: shards for key, shards in manifest.buckets().items() if not key.endswith(_QUESTIONS)}
    if bucket is not None and bucket not in buckets:
        raise UsageError(f"{folder} has no bucket {bucket!r}.", f"It has {', '.join(map(repr, buckets))}.")
    chosen = [bucket] if bucket is not None else [key for key in buckets if key not in _HELD_OUT]
    files = [_shard(folder, manifest, shard, name) for key in chosen for shard in buckets[key]]
    if not files:
        raise UsageError(f"{folder} has no documents to train on.", f"mplus build-data show {folder}")
    revision = f"manifest:{file_sha256(folder / MANIFEST)}" + (f":{bucket}" if bucket is not None else "")
    return OpenSource(name, revision, tuple(files), manifest, folder)


def _shard(folder: Path, manifest: Manifest, shard: Shard, name: str) -> TextFile:
    """A shard; those of chronicles lie beside one with the questions about them."""
    path = os.path.realpath(folder / shard.path)
    questions = _questions_beside(path) if manifest.builder == "chronicle" else None
    fields = Fields("text", "source" if questions is None else "name")
    return TextFile(f"{name}/{shard.path}", path, shard.bytes, fields, questions)
