"""Long-document loss: a long text read chunk by chunk, the loss of each chunk given what came before (M+ figure 4).

    mplus eval longdoc-loss --length 64k --system mplus --system memoryllm --system window
    mplus eval longdoc-loss:file=eltec_eng_valid.jsonl.xz,blocks=8 --data FOLDER --length 128k
    mplus eval longdoc-loss:ahead=4 --length 32k     # the paper's: the loss of the next 2,048 tokens, 512 are written

At every chunk its loss is measured behind the memory of all chunks before it; then it is written. `memoryllm` is the
same without long-term memory; `window` and `full` read as much of the text before the chunk as they take, and
`closed-book` the chunk alone. All of them count the same tokens: those of the chunk but its first. Texts are those of
`--data` or `file`; without either they are generated chronicles, as the metadata of every sample says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

from mplus_cli.config import Range
from mplus_cli.errors import UsageError
from mplus_cli.evaluation import plots
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.loss_texts import passages
from mplus_cli.evaluation.task import SystemResults, TaskSettings
from mplus_cli.evaluation.tasks.loss_task import LossTask

LENGTH = 65_536


@dataclass(frozen=True)
class Options:
    """Settings of `longdoc-loss`.

    Attributes:
        file: with the texts, as named from here or from the data folder; field: of its rows that holds a text.
        ahead: chunks whose loss is measured at each place, of which the first is then written; 4 in the paper.
        blocks: equal parts of the text that the table and the curves have a mean for.
        lead: tokens at the beginning of what is measured whose loss is not counted, and that alone search long-term
            memory.
    """

    file: str | None = None
    field: str = "text"
    ahead: Annotated[int, Range(low=1)] = 1
    blocks: Annotated[int, Range(low=1)] = 16
    lead: Annotated[int, Range(low=0)] = 0


class LongdocLoss(LossTask):
    """Loss by position. `position` is the number of tokens before what is measured, `block` the middle of its part."""

    name, options_class, group_by = "longdoc-loss", Options, ("block",)
    metric_version = "mean over places of the loss per token, all tokens of a place but the first, 1"
    default_limit = 8

    def items(self, settings: TaskSettings) -> Iterator[Item]:
        """A text per item; a document for each chunk, and a point of measurement before it."""
        from mplus_cli.evaluation.losses import check_room

        options: Options = settings.options
        size, length = settings.config.chunk_size, settings.length or LENGTH
        count = length // size
        if count <= options.ahead:
            raise UsageError(
                f"--length {length:,} is {count} chunks of {size} tokens, of which {options.ahead} are measured",
                f"give a --length of {(options.ahead + 1) * size:,} or more",
            )
        if options.lead >= options.ahead * size - 1:
            raise UsageError(f"lead={options.lead} leaves nothing to be measured", "lower it")
        check_room(settings, options.ahead * size)
        places = count - options.ahead + 1
        for number, passage in enumerate(passages(settings, options.file, options.field, size, count)):
            before = [0, *accumulate(passage.tokens)]
            questions = tuple(
                Question(
                    f"chunk-{place}",
                    "",
                    (),
                    place,
                    metadata={
                        "chunk": place,
                        "position": before[place],
                        "block": middle(place, places, options.blocks, size),
                    },
                )
                for place in range(places)
            )
            metadata = passage.metadata | {"length": before[-1], "ahead": options.ahead, "lead": options.lead}
            documents = tuple(Document(piece, passage.text) for piece in passage.pieces)
            yield Item(f"text-{number}", documents, questions, metadata)

    def pieces(self, item: Item, question: Question) -> list[str]:
        """See `LossTask.pieces`."""
        return [each.text for each in item.documents[question.after : question.after + item.metadata["ahead"]]]

    def plot(self, results: Sequence[SystemResults], folder: Path) -> list[Path]:
        """Loss against position: means over blocks with their intervals, and behind them those of single places."""
        figure, (axes,) = plots.new_figure(width=8.0)
        plots.draw_curves(
            axes,
            {one.label: plots.points(one, "block", "nll") for one in results},
            "tokens of the text before",
            "loss per token (nats)",
            bounded=False,
        )
        for number, one in enumerate(results):
            x, y = zip(*by_position(one.samples), strict=True)
            axes.plot(x, y, color=plots.COLOURS[number % len(plots.COLOURS)], linewidth=0.6, alpha=0.4, zorder=1)
        axes.set_xscale("linear")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        texts = max(one.results["scores"]["nll"]["items"] for one in results)
        many = "1 text (no interval)" if texts == 1 else f"{texts} texts, 95% intervals"
        figure.suptitle(f"longdoc-loss: {many}; thick: means over blocks, thin: single places", fontsize=11)
        return [plots.save(figure, folder / "longdoc-loss.png")]


def middle(place: int, places: int, blocks: int, size: int) -> int:
    """Tokens before the middle of the block that a place is in: the places are parted as evenly as can be."""
    blocks = min(blocks, places)
    block = place * blocks // places
    first, last = -(-block * places // blocks), -(-(block + 1) * places // blocks) - 1
    return (first + last) * size // 2


def by_position(samples: Sequence[Any]) -> list[tuple[float, float]]:
    """Mean position and loss over texts of every place."""
    places: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for sample in samples:
        metadata = sample["metadata"]
        places[metadata["chunk"]].append((metadata["position"], sample["scores"]["nll"]))
    return [
        (sum(p for p, _ in at) / len(at), sum(loss for _, loss in at) / len(at)) for _, at in sorted(places.items())
    ]
