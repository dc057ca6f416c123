"""Integrity: does memory still work after very many updates (MemoryLLM's test of 650,000, arXiv 2402.04624)?

    mplus eval integrity --system mplus --system memoryllm       # 100,000 updates with new chronicles
    mplus eval integrity:updates=650000,ask=both                 # as many as in the paper; fixed questions too
    mplus eval integrity:every=1000,updates=20000 --data BOOKS   # your texts, over and over

One memory is written to without end. As in the paper a question is asked about the newest write, right after it (the
paper asks after every one; here it is the `questions` writes before each point, which are enough for an interval). The
other way, `ask=fixed`, writes the same probe text into a copy of the memory at each point and asks the same questions
about it, so that what is left of older text, and a full long-term memory, can get in the way. Neither is ever seen by
the stream. Beside the answers there are norms and drift of memory tokens (see `integrity_measures`).

It may take days: the memory is kept in the folder of the results and --resume goes on from there, with the same figures
as if nothing had happened. Long-term memory is as large as the model's configuration says, and then forgets its oldest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from mplus_cli.config import Range
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.drop_rule import DropRule
from mplus_cli.evaluation.items import Answer, Document, Item, Question
from mplus_cli.evaluation.loss_texts import GENERATED, find_texts, texts_of
from mplus_cli.evaluation.metrics import VERSION, measured
from mplus_cli.evaluation.task import SystemResults, Task, TaskSettings, Tell
from mplus_cli.evaluation.tasks.integrity_stream import numbered

if TYPE_CHECKING:
    from mplus_cli.evaluation.system import System

Ask = Literal["newest", "fixed", "both"]
RENEWED = 0.99  # of what short-term memory held is replaced when the start is measured
_CHARS_PER_TOKEN = 6  # of hardly any tokenizer more on running text


@dataclass(frozen=True)
class Options:
    """Settings of `integrity`.

    Attributes:
        updates: writes to each memory.
        per_decade: points of measurement for every tenfold of them; every: a point at all multiples of it instead.
        start: updates of the first point, which drift is measured against; by default 99% of what short-term memory
            held at first has been replaced by then.
        ask: about the `newest` writes (MemoryLLM's test; not with your texts, which come without questions), `fixed`
            questions about a probe text in a copy of the memory, or `both`; by default the first that can be.
        questions: most answers at a point, of each kind.
        probe: chunks of the probe text.
        file, field: texts in place of those of `--data`, and the field of their rows that holds one.
    """

    updates: Annotated[int, Range(low=1)] = 100_000
    per_decade: Annotated[int, Range(low=1, high=50)] = 5
    every: Annotated[int, Range(low=1)] | None = None
    start: Annotated[int, Range(low=1)] | None = None
    ask: Ask | None = None
    questions: Annotated[int, Range(low=1)] = 200
    probe: Annotated[int, Range(low=1, high=1_000)] = 32
    file: str | None = None
    field: str = "text"


class Integrity(Task):
    """Points of measurement on one memory. `accuracy` is exact match about the newest writes, or about the probe text
    where only that is asked; `fixed` is that of the probe text. All else is a mean over layers: `norm` of short-term
    tokens, `long_norm`, and drift since the first point: `cosine` and `shift` of the mean token, `spectrum` of the
    covariance. `not_finite` counts memory tokens with NaN or infinity in them.
    """

    name, options_class, group_by = "integrity", Options, ("updates",)
    metrics: ClassVar = {
        name: measured(name)
        for name in ("accuracy", "fixed", "norm", "long_norm", "cosine", "shift", "spectrum", "rank", "not_finite")
    }
    metric_version = f"{VERSION}; moments of short-term memory tokens, 1"
    measures = True
    default_limit = 1

    def items(self, settings: TaskSettings) -> Iterator[Item]:
        """An item per memory, with the user's texts as its documents, and a question per point of measurement."""
        options: Options = settings.options
        if settings.length is not None:
            chunk = settings.config.chunk_size
            raise UsageError("integrity counts updates, not tokens", f"integrity:updates={settings.length // chunk}")
        texts = _texts(settings)
        ask = options.ask or ("fixed" if texts else "newest")
        if texts and ask != "fixed":
            raise UsageError(
                f"integrity: ask={ask} needs chronicles: your texts come without questions", "integrity:ask=fixed"
            )
        questions = tuple(
            Question(f"u{point}", "", (), after=0, max_new_tokens=16, metadata={"updates": point})
            for point in points(options, DropRule.of(settings.config))
        )
        metadata = {
            "text": ", ".join(dict.fromkeys(text.name.partition(" row ")[0] for text in texts)) or GENERATED,
            "ask": ask,
            "start": questions[0].metadata["updates"],
            "questions": options.questions,
            "probe": options.probe,
        }
        for number in range(settings.limit):
            seed = numbered(settings.seed, "integrity", number)
            yield Item(f"stream-{number}", texts, questions, metadata | {"seed": seed})

    def check(self, system: System) -> None:
        """See `Task.check`.

        Raises:
            UsageError: it has no memory to be updated.
        """
        from mplus_cli.evaluation.systems.memory_system import MemorySystem

        if not isinstance(system, MemorySystem):
            hint = "--system mplus --system memoryllm"
            raise UsageError(f"integrity updates memory, and the system {system.name} has none", hint)

    def measure_long(self, system: System, items: Sequence[Item], folder: Path, tell: Tell) -> Iterator[Answer]:
        """See `Task.measure_long`. One memory after the other."""
        from mplus_cli.evaluation.tasks.integrity_run import Run

        self.check(system)
        for number, item in enumerate(items):

            def tell_all(part: float, words: str, number: int = number) -> None:
                tell((number + part) / len(items), words)

            yield from Run(self, system, item, folder, tell_all).answers()  # type: ignore[arg-type]  # checked

    def plot(self, results: Sequence[SystemResults], folder: Path) -> list[Path]:
        """Accuracy, norms and drift against updates; all numbers by layer as JSON."""
        from mplus_cli.evaluation.tasks.integrity_plot import draw

        return draw(results, folder)


def points(options: Options, rule: DropRule) -> list[int]:
    """Updates at which is measured, ascending: the start, points as far apart as the options say, and the end.

    Raises:
        UsageError: there is nothing between start and end.
    """
    end = options.updates
    start = options.start or min(end, _settled(rule))
    if start > end:
        raise UsageError(f"integrity: start={start:,} comes after all {end:,} updates", f"updates={10 * start}")
    if options.every is not None:
        between = set(range(options.every, end, options.every))
    else:
        between, step = set(), 0
        while (point := end * 10 ** (-step / options.per_decade)) > start:
            between.add(_two_digits(point))
            step += 1
    return sorted({start, end, *(point for point in between if start < point < end)})


def _settled(rule: DropRule) -> int:
    """Writes after which short-term memory has been filled, and then `RENEWED` of it replaced."""
    writes = rule.size // rule.write
    while rule.survival(writes - rule.size // rule.write) > 1 - RENEWED:
        writes += 1
    return writes


def _two_digits(number: float) -> int:
    """A number that can be read off an axis."""
    return int(float(f"{number:.1e}")) if number >= 10 else round(number)


def _texts(settings: TaskSettings) -> tuple[Document, ...]:
    """The user's texts, as many as the updates take; none for chronicles."""
    options: Options = settings.options
    paths = find_texts(settings.data, options.file)
    found: list[Document] = []
    room = options.updates * settings.config.chunk_size * _CHARS_PER_TOKEN
    for file, name, text in texts_of(paths, options.field) if paths else ():
        if text.strip():
            found.append(Document(text, file if file == name else f"{file} {name}"))
            room -= len(text)
        if room <= 0:
            break
    encoded = (settings.tokenizer(one.text[: 1 << 16], add_special_tokens=False)["input_ids"] for one in found)
    if paths and not any(len(ids) >= settings.config.memory_tokens_per_write for ids in encoded):
        need = settings.config.memory_tokens_per_write
        raise UsageError(f"{paths[0].name} has no text of {need} tokens, which a write takes", "give other texts")
    return tuple(found)
