"""The bundled model's own exam: fresh chronicles with names never seen in training, asked at many distances.

    mplus eval chronicle                         # facts, updated facts, questions that need two passages
    mplus eval chronicle:parts=[facts] --limit 130   # more than 1,000 answers at every distance

An item is one chronicle, read write by write. Distance is the number of writes after the one that completed the fact. A
chronicle is asked at several times, seven writes apart, about facts at every distance; by default distances are those
around the newest write and multiples of the half-life of random dropping.

Parts: `facts` told within one write; `cut facts`, whose sentence a border of two writes cuts; `updates`, where somebody
has moved house and the new town is right (`stale` counts the old one); `two passages`, where one fact leads to another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, ClassVar, Literal

from mplus_cli.config import Range
from mplus_cli.data.chronicle import question_prompt
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.drop_rule import DropRule
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.metrics import VERSION, exact_match, f1, verbatim
from mplus_cli.evaluation.task import SystemResults, Task, TaskSettings
from mplus_cli.evaluation.tasks.chronicle_stream import Stream, Told

Part = Literal["facts", "updates", "two_passages"]
NEAR = (0, 1, 2, 4)
HALF_LIVES = (1, 2, 5, 10, 20, 40)
APART = 7  # writes between two times a chronicle is asked
FIRST = {"facts": 8, "updates": 40, "two_passages": 40}  # writes before which there is little of it to ask about


@dataclass(frozen=True)
class Options:
    """Settings of `chronicle`.

    Attributes:
        parts: what consecutive items are about, over and over.
        distances: in writes; None for 0, 1, 2, 4 and 1 to 40 half-lives of the drop rule.
        times: how often each chronicle is asked.
        questions: most questions per time and distance.
    """

    parts: tuple[Part, ...] = ("facts", "updates", "facts", "two_passages")
    distances: tuple[Annotated[int, Range(low=0)], ...] | None = None
    times: Annotated[int, Range(low=1, high=100)] = 4
    questions: Annotated[int, Range(low=1)] = 3


def stale(sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
    """1 where the answer is the one that was right before the update."""
    old = sample["metadata"].get("old")
    return None if old is None else verbatim(sample, [old])


class Chronicle(Task):
    """Exact match by part and distance in writes."""

    name = "chronicle"
    options_class = Options
    metrics: ClassVar = {"exact_match": exact_match, "verbatim": verbatim, "f1": f1, "stale": stale}
    metric_version = VERSION
    group_by = ("part", "distance")
    joint: ClassVar[str] = ""  # documents are pieces of one text
    default_limit = 24

    def items(self, settings: TaskSettings) -> Iterator[Item]:
        """One item for every chronicle."""
        options: Options = settings.options
        if not options.parts:
            raise UsageError("chronicle: parts is empty", "parts=[facts,updates,two_passages]")
        for number in range(settings.limit):
            part = options.parts[number % len(options.parts)]
            done, place = divmod(number, len(options.parts))
            within = options.parts[:place].count(part) + done * options.parts.count(part)
            yield chronicle_item(part, within, settings)

    def plot(self, results: Sequence[SystemResults], folder: Path) -> list[Path] | None:
        """Curves of every part, and their numbers with both kinds of intervals as JSON."""
        from mplus_cli.evaluation.runs import write_json
        from mplus_cli.evaluation.tasks.chronicle_plot import plot_exam, table

        write_json(folder / "chronicle.json", table(results))
        return plot_exam(results, folder)


def distances_of(settings: TaskSettings, part: str) -> list[int]:
    """Ascending distances in writes that fit the length.

    Raises:
        UsageError: none does.
    """
    options: Options = settings.options
    half_life = DropRule.of(settings.config).half_life
    wanted = options.distances or sorted({*NEAR, *(round(times * half_life) for times in HALF_LIVES)})
    if settings.length is None:
        return sorted(set(wanted))
    most = settings.length // settings.config.chunk_size - FIRST[part] - APART * (options.times - 1)
    found = sorted({distance for distance in wanted if distance <= most})
    if not found:
        need = (FIRST[part] + APART * (options.times - 1) + min(wanted)) * settings.config.chunk_size
        raise UsageError(f"chronicle: --length {settings.length} is too short", f"--length {need}, or times=1")
    return found


def chronicle_item(part: str, number: int, settings: TaskSettings) -> Item:
    """Chronicle `number` of a part, with its questions in the order in which they are asked."""
    options, size = settings.options, settings.config.chunk_size
    distances = distances_of(settings, part)
    name = f"{part}-{number:04d}"
    digest = hashlib.blake2b(f"chronicle/{settings.seed}/{name}".encode(), digest_size=7).digest()
    rng = Random(int.from_bytes(digest, "big"))
    count = distances[-1] + FIRST[part] + APART * (options.times - 1)
    stream = Stream.write(part, rng.randrange(1 << 48), count, settings.tokenizer, size)
    told = list(stream.told(part, rng))
    half_life = DropRule.of(settings.config).half_life
    questions = []
    for after in range(count - APART * (options.times - 1), count + 1, APART):
        for distance in distances:
            near = [one for one in told if _is_near(one, after, distance)]
            for place, one in enumerate(rng.sample(near, min(options.questions, len(near)))):
                questions.append(_question(one, after, distance, place, half_life))
    documents = tuple(Document(piece, f"write {index}") for index, piece in enumerate(stream.pieces))
    return Item(name, documents, tuple(questions), {"part": part})


def _is_near(one: Told, after: int, distance: int) -> bool:
    """Plain facts at exactly that distance; of the rarer kinds, those within an eighth of it."""
    room = 0 if one.part in ("facts", "cut facts") else distance // 8
    is_true = one.valid_until is None or one.valid_until >= after
    return is_true and one.pieces[-1] < after and abs(after - 1 - one.pieces[-1] - distance) <= room


def _question(one: Told, after: int, distance: int, place: int, half_life: float) -> Question:
    writes = after - 1 - one.pieces[-1]
    metadata = {
        "part": one.part,
        "distance": distance,
        "writes": writes,
        "half_lives": round(writes / half_life, 2) if half_life else None,
        "gap": one.gap,
        "told": list(one.pieces),
    }
    return Question(
        id=f"w{after}-d{distance}-{place}",
        prompt=question_prompt(one.question),
        references=(one.answer,),
        after=after,
        max_new_tokens=16,
        metadata=metadata | ({} if one.old is None else {"old": one.old}),
    )
