"""The builders that sample documents from a corpus: SlimPajama by length, FineWeb with a held-out beginning.

    index (n tasks) -> choose (1) -> collect (n) -> write (n) -> manifest

Memory does not grow with the corpus. The corpus is read twice: once to choose, once (only files that hold winners, and
without tokenizing) to copy what was chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mplus_cli.data.building import cluster, engine
from mplus_cli.data.building.choosing import ByLength, ByPosition, ChooseStep, read_chosen
from mplus_cli.data.building.collecting import CollectStep, WriteStep, all_places, winners_count
from mplus_cli.data.building.corpus import Corpus, open_corpus
from mplus_cli.data.building.engine import Stage, Step
from mplus_cli.data.building.folder import BuildFolder, require_disk
from mplus_cli.data.building.index import IndexStep, Lengths
from mplus_cli.data.building.lengths import fetch_tokenizer
from mplus_cli.data.building.manifest import Manifest, Tokenizer, read_manifest
from mplus_cli.data.building.plot import plot_counts
from mplus_cli.data.building.rows import Fields
from mplus_cli.data.building.shards import atomic_write, file_sha256
from mplus_cli.errors import MPlusError, UsageError
from mplus_cli.machine import usable_cores

_PACKAGES = ("datatrove", "tokenizers", "pyarrow", "zstandard", "huggingface_hub")
_MOST_TASKS = 1000
_BYTES_PER_TOKEN = 5


@dataclass(frozen=True)
class Running:
    """How a build is run; nothing of this changes its bytes.

    Attributes:
        processes: at the same time on this machine.
        tasks: pieces the corpus is cut into; None: one per file, at most 1000.
        executor: "local", "slurm" or "ray"; `options` go to datatrove's executor.
        max_bad_rows: unreadable rows that are put up with.
    """

    processes: int = field(default_factory=usable_cores)
    tasks: int | None = None
    executor: str = "local"
    options: dict[str, str] = field(default_factory=dict)
    max_bad_rows: int = 100

    def __post_init__(self) -> None:
        if self.executor not in cluster.EXECUTORS:
            raise UsageError(f"Unknown executor {self.executor!r}.", f"Choose from {', '.join(cluster.EXECUTORS)}.")
        for name in ("processes", "tasks"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1.")


@dataclass(frozen=True)
class Selection:
    """Which documents of which corpus are wanted.

    Attributes:
        builder: "slimpajama" or "fineweb".
        source, revision, files: see `open_corpus`.
        fields: of a row.
        licence: of a local source, for the manifest.
        tokenizer: file, folder or hub id; None: lengths are not counted (only with `held_out`).
        edges: of the buckets of lengths, ascending; empty with `held_out`.
        held_out: so many first rows make the bucket "held-out", the others "train"; None: buckets of lengths.
        quota: documents per bucket (of `edges`), or rows of the training range (with `held_out`); None: all.
        limit: only the first rows of the corpus, for a trial.
        exclude: builds whose documents are not taken.
        seed: of the sampling order.
    """

    builder: str
    source: str
    revision: str | None = None
    files: str | None = None
    fields: Fields = Fields()
    licence: str | None = None
    tokenizer: str | None = None
    edges: tuple[int, ...] = ()
    held_out: int | None = None
    quota: int | None = None
    limit: int | None = None
    exclude: tuple[Path, ...] = ()
    seed: int = 0
    rows_per_shard: int = 1000

    def __post_init__(self) -> None:
        if self.held_out is None and (len(self.edges) < 2 or list(self.edges) != sorted(set(self.edges))):
            raise UsageError("Edges must be two or more ascending numbers.", "For example --edges 4k,8k,16k,32k,64k")
        for name in ("quota", "limit", "rows_per_shard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name.replace('_', '-')} is {value}; it must be at least 1.")

    def parameters(self) -> dict[str, Any]:
        """What decides the bytes."""
        exclude = [{"build": str(path), "ids": file_sha256(path / "ids.txt")} for path in self.exclude]
        return {**asdict(self), "exclude": exclude}

    @property
    def buckets(self) -> list[str]:
        return ["held-out", "train"] if self.held_out is not None else Lengths(self.edges).names

    def rows_wanted(self) -> int | None:
        """How many first rows of the corpus can matter."""
        ranged = self.held_out + self.quota if self.held_out is not None and self.quota is not None else None
        given = [rows for rows in (ranged, self.limit) if rows is not None]
        return min(given) if given else None


def build_documents(out: Path, wanted: Selection, running: Running) -> Manifest | list[str]:
    """Build, or go on building, in `out`. With Slurm: submit, and return the ids of the jobs.

    Raises:
        UsageError: bad input of any kind (see the modules of the stages).
    """
    for build in wanted.exclude:
        read_manifest(build)
        if not (build / "ids.txt").is_file():
            raise UsageError(f"{build} has no ids.txt to exclude by.", "Exclude a build of documents.")
    require_disk(out, 0)
    with BuildFolder.open(out, wanted.builder, wanted.parameters()) as folder:
        try:
            plan = _plan(folder, wanted, running)
        except MPlusError:
            if not (folder.work / "corpus.json").is_file():
                folder.abandon()
            raise
        if running.executor == "slurm":
            return cluster.submit_to_slurm([*plan.stages(), plan.last()], folder.path, running.options)
        try:
            for stage in plan.stages():
                if running.executor == "ray":
                    cluster.run_on_ray(stage, folder.path, running.options)
                else:
                    engine.run_local(stage, folder.path, running.processes)
        except UsageError:
            if not any((folder.work / "index").glob("*.json")):
                folder.abandon()  # bad input from the start: the next attempt may have other parameters
            raise
        return finish(folder.path, plan.tokenizer, wanted.buckets)


@dataclass(frozen=True)
class _Plan:
    folder: BuildFolder
    wanted: Selection
    running: Running
    corpus: Corpus
    tokenizer: Tokenizer | None
    tasks: int

    def stages(self) -> Iterator[Stage]:
        """The stages in their order; the amounts of later ones are known when earlier ones are done."""
        path, wanted, bad = self.folder.path, self.wanted, self.running.max_bad_rows
        index = IndexStep(path, self.tokenizer, wanted.edges, wanted.seed, wanted.fields, bad)
        yield Stage(index, self.tasks, "reading documents", self.corpus.bytes)
        yield Stage(ChooseStep(path, self._policy(), wanted.exclude, wanted.seed, bad), 1, "choosing", 1, "documents")
        collect = CollectStep(path, wanted.buckets, wanted.fields, wanted.seed)
        yield Stage(collect, self.tasks, "collecting documents", self.corpus.bytes)
        rows = winners_count(path / ".work") if self.running.executor != "slurm" else 1
        write = WriteStep(path, wanted.buckets, wanted.rows_per_shard)
        yield Stage(write, self.tasks, "writing shards", rows, "documents")

    def last(self) -> Stage:
        return Stage(FinishStep(self.folder.path, self.tokenizer, self.wanted.buckets), 1, "finishing", 1)

    def _policy(self) -> ByLength | ByPosition:
        if self.wanted.held_out is None:
            return ByLength(Lengths(self.wanted.edges), self.wanted.quota)
        starts, position = [], 0
        for file in self.corpus.files:
            starts.append(position)
            position += file.rows or 0
        return ByPosition(self.wanted.held_out, tuple(starts))


def _plan(folder: BuildFolder, wanted: Selection, running: Running) -> _Plan:
    """Look up the corpus and the tokenizer once; a resumed build goes on with what was found then."""
    path = folder.work / "corpus.json"
    tokenizer = fetch_tokenizer(wanted.tokenizer, folder.work / "tokenizer.json") if wanted.tokenizer else None
    if path.is_file():
        corpus = Corpus.load(path)
    else:
        corpus = open_corpus(wanted.source, revision=wanted.revision, files=wanted.files, licence=wanted.licence)
        rows = wanted.rows_wanted()
        if rows is not None:
            corpus = corpus.first_rows(rows)
        elif wanted.held_out is not None:
            corpus = corpus.first_rows(1 << 62)
        require_disk(folder.path, _need_bytes(corpus, wanted))
        corpus.save(path)
    tasks = engine.fixed_tasks(folder.work, min(running.tasks or _MOST_TASKS, len(corpus.files)) or 1)
    return _Plan(folder, wanted, running, corpus, tokenizer, tasks)


def _need_bytes(corpus: Corpus, wanted: Selection) -> float:
    """Upper estimate: what is kept, once as it is and once compressed; never more than the corpus unpacked."""
    unpacked = sum(file.bytes * (1 if file.name.endswith(".jsonl") else 4) for file in corpus.files)
    if wanted.held_out is None and wanted.quota is not None:
        return 1.4 * min(unpacked, wanted.quota * sum(wanted.edges[1:]) * _BYTES_PER_TOKEN)
    return 1.4 * unpacked


class FinishStep(Step):
    """The manifest, as the last job on a cluster."""

    name = "finish"

    def __init__(self, folder: Path, tokenizer: Tokenizer | None, buckets: list[str]) -> None:
        super().__init__(folder)
        self.tokenizer, self.buckets = tokenizer, buckets

    def task(self, rank: int, tasks: int) -> None:
        finish(self.folder, self.tokenizer, self.buckets, keep_jobs=True)


def finish(path: Path, tokenizer: Tokenizer | None, buckets: list[str], keep_jobs: bool = False) -> Manifest:
    """Identities, plot and manifest of a build whose shards are all written."""
    folder = BuildFolder.attach(path)
    chosen, corpus = read_chosen(folder.work), Corpus.load(folder.work / "corpus.json")
    with atomic_write(path / "ids.txt") as file:
        for identity in sorted(all_places(folder.work)["id"].tolist()):
            file.write(identity + b"\n")
    reading, tally = chosen["reading"], chosen["tally"]
    counts = {
        "documents": {name: sum(tally["kept"][name].values()) for name in buckets},
        "tokens": tally["kept_tokens"] if tokenizer else None,
        "found": tally["found"],
        "kept": tally["kept"],
        "duplicates_dropped": tally["duplicates"],
        "excluded": tally["excluded"],
        "reading": reading,
    }
    what = "part of the corpus" if "held-out" in buckets else "tokens per document"
    plot_counts(tally["found"], tally["kept"], path / "histogram.png", what)
    manifest = folder.finish(sources=[corpus.source], counts=counts, tokenizer=tokenizer, packages=_PACKAGES)
    if not keep_jobs:
        engine.forget_jobs(path)
    return manifest
