"""What a build consists of and was made from: `manifest.json`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mplus_cli.data.building.shards import atomic_write, file_sha256
from mplus_cli.errors import UsageError

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Source:
    """Where rows came from.

    Attributes:
        name: hub id, folder as it was given, or the name of another build.
        revision: commit of the hub repository, or sha256 over the names and sizes (or bytes) of local files.
        licence: as stated by the source; None where it states none.
        note: anything else that a user of the data should know.
    """

    name: str
    revision: str | None = None
    licence: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Tokenizer:
    """What the token counts of a build refer to: name as it was given, sha256 of its tokenizer.json."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Shard:
    """One file of a build.

    Attributes:
        path: relative to the build, with `/`.
        rows: lines.
        bytes: size of the file.
        sha256: of the file.
        labels: what all its rows have in common, such as {"bucket": "4k-8k"}.
    """

    path: str
    rows: int
    bytes: int
    sha256: str
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """A complete build.

    Attributes:
        builder: name of the command, such as "slimpajama".
        parameters: everything that decides the bytes, the seed among them.
        sources: where the rows came from.
        counts: numbers the builder reports (kept, seen, skipped, by bucket and source...).
        shards: in the order of their paths.
        tokenizer: which tokenizer counted tokens, if any.
        created: when, by which versions of what, in how many seconds. The only part that differs between two equal
            builds.
    """

    builder: str
    parameters: dict[str, Any]
    sources: tuple[Source, ...]
    counts: dict[str, Any]
    shards: tuple[Shard, ...]
    tokenizer: Tokenizer | None = None
    created: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    def buckets(self) -> dict[str, list[Shard]]:
        """Shards by their label "bucket" ("" where they have none), in the order of the manifest."""
        groups: dict[str, list[Shard]] = {}
        for shard in self.shards:
            groups.setdefault(shard.labels.get("bucket", ""), []).append(shard)
        return groups

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    def write(self, folder: Path) -> None:
        with atomic_write(folder / MANIFEST) as file:
            file.write(json.dumps(self.to_json(), ensure_ascii=False, indent=2).encode() + b"\n")

    def verify(self, folder: Path, progress: Callable[[float], None] = lambda done: None) -> list[str]:
        """Names of shards that are missing or not what was written; `progress` is told how many bytes are checked."""
        bad = []
        done = 0
        for shard in self.shards:
            path = folder / shard.path
            if not path.is_file() or path.stat().st_size != shard.bytes or file_sha256(path) != shard.sha256:
                bad.append(shard.path)
            done += shard.bytes
            progress(done)
        return bad


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a complete build.

    Raises:
        UsageError: the folder is missing, not a build, incomplete, or its manifest is damaged or of a newer version.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / ".work" / "build.json").is_file():
            raise UsageError(f"{folder} is an incomplete build.", "Run the same build-data command again to finish it.")
        raise UsageError(f"{folder} is not a build: it has no {MANIFEST}.", "mplus build-data list shows what there is")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] > FORMAT:
            raise UsageError(f"{path} was written by a newer version of mplus.", "pip install --upgrade mplus")
        return Manifest(
            builder=raw["builder"],
            parameters=raw["parameters"],
            sources=tuple(Source(**source) for source in raw["sources"]),
            counts=raw["counts"],
            shards=tuple(Shard(**shard) for shard in raw["shards"]),
            tokenizer=Tokenizer(**raw["tokenizer"]) if raw["tokenizer"] else None,
            created=raw["created"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged: {error}.") from error


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
