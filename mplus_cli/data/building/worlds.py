"""Chronicles as data sets: texts, the questions about them, and which characters of the text hold the answers.

Each chronicle is a function of the seed and its number, so shards are independent of each other, whoever writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mplus_cli import __version__
from mplus_cli.data.building import engine
from mplus_cli.data.building.documents import Running
from mplus_cli.data.building.engine import Stage, Step
from mplus_cli.data.building.folder import BuildFolder
from mplus_cli.data.building.index import document_id
from mplus_cli.data.building.lengths import fetch_tokenizer, load_counter
from mplus_cli.data.building.manifest import Manifest, Source, Tokenizer
from mplus_cli.data.building.shards import atomic_write, iter_rows
from mplus_cli.data.chronicle import Chronicle, ChronicleConfig
from mplus_cli.data.chronicle.names import SPLITS
from mplus_cli.errors import UsageError

_SHARD_CHARACTERS = 5_000_000
_PLAIN: dict[str, Any] = {
    "syllables": (2,),
    "family_names": False,
    "first_name_rate": 0.0,
    "wordings": 2,
    "question_forms": 1,
}
_SUMMED = ("two_passage_questions", "facts", "moves", "characters", "tokens")


@dataclass(frozen=True)
class Worlds:
    """What to write.

    Attributes:
        train, test: number of chronicles; their names come from disjoint spaces.
        characters: least length of each; a chronicle ends with a chapter.
        move_rate, two_passage_rate, filler, facts_per_person: see `ChronicleConfig`.
        plain: one-word names of two syllables, always in full; two wordings and one question form of each kind.
        tokenizer: to count tokens with, or None.
    """

    train: int = 100
    test: int = 10
    characters: int = 50_000
    move_rate: float = 0.2
    two_passage_rate: float = 0.2
    filler: float = 1.0
    facts_per_person: int = 3
    plain: bool = False
    tokenizer: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.train + self.test < 1:
            raise UsageError("Nothing to write: neither train nor test chronicles.", "--train 100 --test 10")
        self.config()

    def config(self) -> ChronicleConfig:
        return ChronicleConfig(
            move_rate=self.move_rate,
            two_passage_rate=self.two_passage_rate,
            filler=self.filler,
            facts_per_person=self.facts_per_person,
            **(_PLAIN if self.plain else {}),
        )

    def shards(self) -> list[tuple[str, int, range]]:
        """Split, number of the shard, numbers of its chronicles."""
        each = max(1, _SHARD_CHARACTERS // self.characters)
        return [
            (split, start // each, range(start, min(start + each, count)))
            for split, count in (("train", self.train), ("test", self.test))
            for start in range(0, count, each)
        ]


class WorldsStep(Step):
    """Writes `SPLIT/text-NUMBER.jsonl.gz` and `SPLIT/questions-NUMBER.jsonl.gz`."""

    name = "chronicle"

    def __init__(self, folder: Path, wanted: Worlds, tokenizer: Tokenizer | None) -> None:
        super().__init__(folder)
        self.wanted, self.tokenizer = wanted, tokenizer

    def task(self, rank: int, tasks: int) -> None:
        build = BuildFolder.attach(self.folder)
        done = 0
        for split, number, members in self.wanted.shards()[rank::tasks]:
            texts: list[dict[str, Any]] = []
            questions: list[dict[str, Any]] = []
            for member in members:
                name = f"{split}-{member:06d}"
                chronicle = self._chronicle(split, name, partial(self._tick_from, rank, done))
                texts.append(self._text_row(chronicle, name, split))
                questions += question_rows(chronicle, name, split)
                done += len(chronicle.text)
                self.tick(rank, done)
            build.write_shard(f"{split}/text-{number:05d}.jsonl.gz", texts, bucket=split)
            build.write_shard(f"{split}/questions-{number:05d}.jsonl.gz", questions, bucket=f"{split}-questions")
        self.tick(rank, done, last=True)

    def _tick_from(self, rank: int, before: int, length: int) -> None:
        self.tick(rank, before + length)

    def _chronicle(self, split: str, name: str, on_progress: Callable[[int], None]) -> Chronicle:
        # A string seeds Random by its sha512: the same on every machine and for every number of chronicles.
        seed: Any = f"{self.wanted.seed}/{name}"
        which = next(s for s in SPLITS if s == split)
        return Chronicle.generate(
            seed, self.wanted.config(), min_chars=self.wanted.characters, split=which, on_progress=on_progress
        )

    def _text_row(self, chronicle: Chronicle, name: str, split: str) -> dict[str, Any]:
        row: dict[str, Any] = {
            "text": chronicle.text,
            "id": document_id(chronicle.text),
            "bucket": split,
            "source": "chronicle",
        }
        row |= {"name": name, "title": chronicle.title, "facts": len(chronicle.facts)}
        row["moves"] = sum(fact.superseded_by is not None for fact in chronicle.facts)
        row["two_passage_questions"] = sum(len(question.facts) == 2 for question in chronicle.questions)
        if self.tokenizer is not None:
            counter = load_counter(self.work / "tokenizer.json", self.tokenizer.sha256)
            row["tokens"] = counter.counts([chronicle.text])[0]
        return row


def question_rows(chronicle: Chronicle, name: str, split: str) -> Iterator[dict[str, Any]]:
    """One row per question: `passages` are the [start, end) of the values of the facts it needs, in characters."""
    for question in chronicle.questions:
        facts = [chronicle.facts[i] for i in question.facts]
        yield {
            "document": name,
            "question": question.text,
            "answer": question.answer,
            "kinds": [fact.kind for fact in facts],
            "passages": [[fact.start, fact.end] for fact in facts],
            "split": split,
        }


def build_worlds(out: Path, wanted: Worlds, running: Running) -> Manifest:
    """Write chronicles with their questions to `out`, and the first of each split as plain text to read.

    Raises:
        UsageError: knobs out of range, or an unusable tokenizer.
    """
    characters = (wanted.train + wanted.test) * wanted.characters
    with BuildFolder.open(out, "chronicle", asdict(wanted), need_bytes=characters) as folder:
        work = folder.work
        tokenizer = fetch_tokenizer(wanted.tokenizer, work / "tokenizer.json") if wanted.tokenizer else None
        tasks = engine.fixed_tasks(work, max(1, min(len(wanted.shards()), 8 * running.processes)))
        stage = Stage(WorldsStep(out, wanted, tokenizer), tasks, "writing chronicles", characters, "characters")
        engine.run_local(stage, out, running.processes)
        counts = _counts(folder)
        manifest = folder.finish(
            sources=[
                Source(
                    "mplus chronicle generator", f"mplus {__version__}", "MIT", note="invented text, no outside source"
                )
            ],
            counts=counts,
            tokenizer=tokenizer,
            packages=("tokenizers",) if tokenizer else (),
        )
        engine.forget_jobs(out)
        return manifest


def _counts(folder: BuildFolder) -> dict[str, Any]:
    """Chronicles, questions, characters and tokens of each split; writes `SPLIT/sample.txt` on the way."""
    counts: dict[str, dict[str, int]] = {}
    for shard in folder.shards():
        split, _, kind = shard.labels["bucket"].partition("-")
        tally = counts.setdefault(split, dict.fromkeys(("chronicles", "questions", *_SUMMED), 0))
        if kind == "questions":
            tally["questions"] += shard.rows
            continue
        for row in iter_rows(folder.path / shard.path):
            if tally["chronicles"] == 0:
                with atomic_write(folder.path / split / "sample.txt") as file:
                    file.write(row["text"].encode())
            tally["chronicles"] += 1
            for name in _SUMMED:
                tally[name] += len(row["text"]) if name == "characters" else row.get(name, 0)
    if not any(tally["tokens"] for tally in counts.values()):  # no tokenizer was given
        for tally in counts.values():
            del tally["tokens"]
    return counts
