"""Perplexity: does memory harm plain language modelling? Short texts, read behind unrelated memory and behind none.

    mplus eval perplexity --system mplus --system memoryllm --system closed-book
    mplus eval perplexity:file=wikitext2_valid.txt.gz --data FOLDER --limit 200

Every text is read twice: behind nothing (`empty`), and after another text, about other things, has been written until
short-term memory is full and as much is in long-term memory as is retrieved (`unrelated`). `closed-book` is the base
model on the text alone; `window` reads the other text before it. Without `--data` or a file the texts are generated
chronicles, as the metadata of every sample says.

`nll` is the mean loss per token in nats, and `perplexity` is e to it. The M+ paper (1.9828, Llama-3.1-8B 1.9734) calls
perplexity what can only be the former. `bits_per_byte` compares models with other tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mplus_cli.config import Range
from mplus_cli.data.sources import read_source
from mplus_cli.errors import UsageError
from mplus_cli.evaluation import plots
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.loss_texts import GENERATED, generated, passages
from mplus_cli.evaluation.task import SystemResults, TaskSettings
from mplus_cli.evaluation.tasks.chronicle_stream import cut
from mplus_cli.evaluation.tasks.loss_task import LossTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNKS = 4  # of a text where no length is given: 2,048 tokens in chunks of 512, as in the paper
_UNRELATED_SEED = 65_000_000
MEMORIES = ("empty", "unrelated")


@dataclass(frozen=True)
class Options:
    """Settings of `perplexity`.

    Attributes:
        file: with the texts, as named from here or from the data folder; field: of its rows that holds a text.
        shortest: tokens that a text must have; longer ones are cut to `--length`.
        unrelated: file whose text is in memory; None for generated chronicles, about other people than any text's.
        writes: chunks of it; None for as many as fill short-term memory and what is retrieved.
        lead: tokens at the beginning of a text whose loss is not counted, and that alone search long-term memory.
    """

    file: str | None = None
    field: str = "text"
    shortest: Annotated[int, Range(low=3)] = 64
    unrelated: str | None = None
    writes: Annotated[int, Range(low=1)] | None = None
    lead: Annotated[int, Range(low=0)] = 0


class Perplexity(LossTask):
    """Loss of short texts with unrelated memory and with none. Every metric is a mean over texts."""

    name, options_class, group_by = "perplexity", Options, ("memory",)
    metric_version = "mean over texts of the loss per token, all tokens but the first, 1"
    bare = True

    def items(self, settings: TaskSettings) -> Iterator[Item]:
        """A text per item, asked for with each memory."""
        from mplus_cli.evaluation.losses import check_room

        options: Options = settings.options
        config = settings.config
        length = settings.length or CHUNKS * config.chunk_size
        if length <= max(options.lead, 1):
            raise UsageError(f"of {length} tokens none has a loss that counts", "raise --length or lower lead")
        check_room(settings, length)
        kept = config.short_term_size + (config.retrieval_budget if config.has_long_term_memory else 0)
        writes = options.writes or -(-kept // config.memory_tokens_per_write)
        shortest = max(min(options.shortest, length), options.lead + 2)
        for number, passage in enumerate(passages(settings, options.file, options.field, length, 1, shortest)):
            other, source = _unrelated(settings, number, writes)
            questions = tuple(
                Question(memory, passage.pieces[0], (), after, metadata={"memory": memory})
                for after, memory in enumerate(MEMORIES)
            )
            metadata = passage.metadata | {
                "length": passage.tokens[0],
                "unrelated_text": source,
                "unrelated_writes": writes,
                "lead": options.lead,
            }
            yield Item(f"text-{number}", (Document(other, source),), questions, metadata)

    def pieces(self, item: Item, question: Question) -> list[str]:
        """See `LossTask.pieces`."""
        return [question.prompt]

    def plot(self, results: Sequence[SystemResults], folder: Path) -> list[Path]:
        """Bars: loss of every system with each memory."""
        bars = {}
        for one in results:
            for group in one.results["groups"]:
                score = group["scores"]["nll"]
                if score["mean"] is not None:
                    label = f"{one.label}\n{group['by']['memory']}"
                    bars[label] = plots.Point(0, score["mean"], score["low"], score["high"])
        figure, (axes,) = plots.new_figure(width=max(6.4, 1.3 * len(bars)))
        plots.draw_bars(axes, bars, "loss per token (nats)", bounded=False)
        texts = max(one.results["scores"]["nll"]["items"] for one in results)
        figure.suptitle(f"perplexity: {texts} texts, 95% intervals", fontsize=11)
        return [plots.save(figure, folder / "perplexity.png")]


def _unrelated(settings: TaskSettings, number: int, writes: int) -> tuple[str, str]:
    """`writes` chunks of another text for item `number`, and what it is of."""
    options: Options = settings.options
    size = settings.config.chunk_size
    if options.unrelated is None:
        seed = _UNRELATED_SEED + 100_000 * settings.seed + number
        return "".join(generated(seed, settings.tokenizer, size, writes).pieces), GENERATED
    text = read_source(options.unrelated).text
    pieces = _pieces(text, settings.tokenizer, size)
    if len(pieces) < writes:
        raise UsageError(
            f"{options.unrelated} has {len(pieces):,} chunks of {size} tokens, and {writes:,} are to be written",
            f"perplexity:writes={len(pieces)}" if pieces else "name a longer text",
        )
    first = number * writes % (len(pieces) - writes + 1)
    return "".join(pieces[first : first + writes]), Path(options.unrelated).name


@lru_cache(maxsize=1)
def _pieces(text: str, tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[str, ...]:
    return tuple(cut(text, tokenizer, size))
