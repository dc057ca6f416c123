"""Memory report: what is in memory tokens? Norms, likeness to text, nearest words, survival, by layer.

    mplus eval memory-report --length 16k
    mplus eval memory-report:book=war_and_peace.txt.gz,chunks=16 --data FOLDER --system mplus --system memoryllm

An excerpt of a book is written into a fresh memory, and its tokens are measured as they lie there (see `memory_anatomy`
for how). The open question of the M+ paper's reviews; beside the pictures there is `memory-report-SYSTEM.json` with all
of it, the nearest vocabulary words of single tokens included.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, ClassVar

from mplus_cli.config import Range
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.drop_rule import DropRule
from mplus_cli.evaluation.haystack import Haystack, find_book, join, passes
from mplus_cli.evaluation.items import Answer, Document, Item, Question
from mplus_cli.evaluation.metrics import measured
from mplus_cli.evaluation.task import SystemResults, Task, TaskSettings

if TYPE_CHECKING:
    from mplus_cli.evaluation.system import System

_LIVES = 3  # half-lives of short-term memory that an excerpt lasts, where no length is given


@dataclass(frozen=True)
class Options:
    """Settings of `memory-report`.

    Attributes:
        chunks: writes of each that are looked at closely, spread from the oldest to the newest.
        words: vocabulary words listed for a token.
        book: what excerpts are taken from; by default the bundled book, or the longest of `--data`.
    """

    chunks: Annotated[int, Range(low=2)] = 8
    words: Annotated[int, Range(low=1, high=50)] = 5
    book: str | None = None


class MemoryReport(Task):
    """Memory tokens measured. Every metric is a mean over the tokens of a layer; the JSON has more of them, by layer.

    `norm_*`: lengths of memory tokens, and of ordinary hidden states of the same layer (`text`). `own_*`: similarity to
    the hidden state at the place of the chunk that a token was made at; `source_*`: to the likest place of its chunk;
    `other_*`: to the likest place of another chunk. `reads_*`: how often the nearest word by the model's own head is
    the word at the token's place. `rank_*`: how many dimensions the tokens fill. `short_to_long`: how far the means of
    short- and long-term tokens lie apart, 0 where by chance alone; they are of other ages, so of other text.

    In the JSON: `predicts_*`, the nearest word is the next one; `in_chunk_*`, one of the chunk; `nearest_is_own_*`,
    no place of the chunk is liker than the own one; `own_by_layer_*`, `own_*` against every layer of the text;
    `offset_*`, from the mean of the tokens to that of text; `to_other_text`, `other_*` for ordinary hidden states;
    `short_to_long_same_write`, among tokens of one write; `words_*`, single tokens and their nearest words.
    """

    name, options_class, group_by = "memory-report", Options, ("layer",)
    metrics: ClassVar = {
        name: measured(name)
        for name in (
            *("norm_short", "norm_long", "norm_text", "own_short", "own_long", "source_short", "other_short"),
            *("reads_short", "reads_text", "rank_short", "rank_text", "short_to_long"),
        )
    }
    metric_version = "memory tokens by layer, 1"
    measures = True
    default_limit = 4

    def items(self, settings: TaskSettings) -> Iterator[Item]:
        """One excerpt per item, one point of measurement for each layer."""
        options: Options = settings.options
        config = settings.config
        lives = _LIVES * config.short_term_size // config.memory_tokens_per_write
        length = settings.length or lives * config.chunk_size
        haystack = Haystack(find_book(settings.data, options.book, length), settings.tokenizer)
        layers = [
            Question(f"layer-{layer}", "", (), after=1, metadata={"layer": layer})
            for layer in range(config.text_config.num_hidden_layers)
        ]
        for number in range(settings.limit):
            sentences = haystack.window(Random(f"{settings.seed}/memory-report/{number}"), length)
            metadata = {
                "length": length,
                "book": haystack.book.name,
                "book_passes": passes(sentences),
                "chunks": options.chunks,
                "words": options.words,
            }
            yield Item(f"excerpt-{number}", (Document(join(sentences), haystack.book.name),), tuple(layers), metadata)

    def measure(self, system: System, items: Sequence[Item]) -> Iterator[Answer]:
        """See `Task.measure`.

        Raises:
            UsageError: the system has no memory to look into.
        """
        from mplus_cli.evaluation.systems.memory_system import MemorySystem
        from mplus_cli.evaluation.tasks.memory_anatomy import examine
        from mplus_cli.evaluation.tasks.memory_writes import writes_of

        if not isinstance(system, MemorySystem):
            raise UsageError(
                f"memory-report looks into memory, and the system {system.name} has none.",
                hint="--system mplus --system memoryllm",
            )
        walk = system.walk(items)
        held = walk.memory.short_term.fill[0]
        for stands in walk.stands():
            for stand in stands:
                began = time.perf_counter()
                chunks = [ids for document in stand.item.documents for ids in system.chunk_ids(document)]
                writes = writes_of(chunks, system.config.memory_tokens_per_write, held)
                settings = stand.item.metadata
                rule = DropRule.of(system.config)
                expected = [round(rule.survival(age), 4) for age in range(len(writes) - 1, -1, -1)]
                layers = examine(
                    system.model,
                    system.tokenizer,
                    walk.memory,
                    stand.row,
                    writes,
                    settings["chunks"],
                    settings["words"],
                )
                seconds = (time.perf_counter() - began) / len(layers)
                for question, layer in zip(stand.questions, layers, strict=True):
                    yield Answer(
                        stand.item.id,
                        question.id,
                        context_tokens=stand.tokens,
                        stop="measured",
                        seconds={"remember": stand.seconds, "ask": seconds},
                        extra={"writes": stand.writes, "survival_expected": expected, **layer},
                    )
                    stand.seconds = 0.0

    def plot(self, results: Sequence[SystemResults], folder: Path) -> list[Path]:
        """`memory-report-SYSTEM.json`, and two pictures of it."""
        from mplus_cli.evaluation.tasks.memory_report_plot import draw

        return [path for one in results for path in draw(one, folder)]
