"""LongBench: questions about long texts, passages and code, with LongBench's own prompts, answer lengths and metrics.

    mplus eval longbench --length 16k
    mplus eval longbench:datasets=[gov_report,trec],cut=middle --length 8k --data data.zip

The six question answering sets of the M+ paper (tables 2 and 3) unless others of the sixteen English ones are named.
`--length` counts instruction, text, question and answer. What is beyond is cut away at the left, instruction included,
as in the paper's code; `cut=middle` cuts in the middle, as LongBench does. A memory system writes the text and reads
its end with the question (`keep`); other systems read all of it, as far as their own window reaches.

The score of an answer that should be a phrase is that of its first line, since a base model goes on writing;
`score_whole` takes all of it, as LongBench does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from mplus_cli.config import Range
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.long_input import KEPT_CHUNKS, cut_away, long_input
from mplus_cli.evaluation.plots import COLOURS, new_figure, save
from mplus_cli.evaluation.task import SystemResults, Task, TaskSettings
from mplus_cli.evaluation.tasks.longbench_data import find_set
from mplus_cli.evaluation.tasks.longbench_metrics import VERSION, rouge_scorer, score, score_whole
from mplus_cli.evaluation.tasks.longbench_sets import SETS, SIX

DEFAULT_LENGTH = 16_384
_WORDS = ((4_000, "0-4k"), (8_000, "4-8k"))  # the parts of LongBench-E
Name = Literal[
    "narrativeqa",
    "qasper",
    "multifieldqa_en",
    "hotpotqa",
    "2wikimqa",
    "musique",
    "gov_report",
    "qmsum",
    "multi_news",
    "trec",
    "triviaqa",
    "samsum",
    "passage_count",
    "passage_retrieval_en",
    "lcc",
    "repobench-p",
]


@dataclass(frozen=True)
class Options:
    """Settings of `longbench`.

    Attributes:
        datasets: names of sets.
        cut: where a text that is too long is cut away.
        keep: tokens of the end of the text, the question and the answer that a memory system reads and does not write;
            None for four chunks, which are the paper's 2,048 tokens.
    """

    datasets: tuple[Name, ...] = SIX  # type: ignore[assignment]
    cut: Literal["left", "middle"] = "left"
    keep: Annotated[int, Range(low=0)] | None = None


class LongBench(Task):
    """Questions about long texts, summaries, classification, retrieval, code: one item per record.

    `score` is the metric of each set, of phrases on the first line of the answer; `score_whole` on all of it, as
    LongBench has it; `cut_away` is the share of the texts beyond `--length` (16k), which counts everything:
    instruction, text, question, answer.
    """

    name, options_class = "longbench", Options
    metrics: ClassVar = {"score": score, "score_whole": score_whole, "cut_away": cut_away}
    metric_version = VERSION
    group_by = ("dataset", "words")
    stop = "none"
    default_limit = 10_000

    def items(self, settings: TaskSettings) -> Iterator[Item]:
        """One record of each set in turn, so that a limit takes as many of each."""
        names = tuple(dict.fromkeys(settings.options.datasets))
        if not names:
            raise UsageError("longbench: no dataset is named", hint=f"datasets=[{','.join(SIX)}]")
        if any(SETS[name].metric == "rouge_l" for name in names):
            rouge_scorer()
        return islice(_in_turn([_items(name, settings) for name in names]), settings.limit)

    def context_prompt(self, context: str, question: Question) -> str:
        """LongBench's prompt: the instruction is the beginning of the text."""
        return context + question.prompt

    def plot(self, results: Sequence[SystemResults], folder: Path) -> list[Path]:
        """`longbench.png`: every set and their mean, one bar for each system."""
        return [_plot(results, folder / "longbench.png")]


def _in_turn(sources: Sequence[Iterator[Item]]) -> Iterator[Item]:
    left = deque(sources)
    while left:
        source = left.popleft()
        item = next(source, None)
        if item is not None:
            yield item
            left.append(source)


def _items(dataset: str, settings: TaskSettings) -> Iterator[Item]:
    place = find_set(dataset, settings.data)
    number = -1
    for number, record in enumerate(place.records(dataset)):
        yield _item(dataset, number, record, place.name, settings)
    if number < 0:
        raise UsageError(f"longbench: {place.name} has no record of {dataset}")


def _item(dataset: str, number: int, record: Mapping[str, Any], source: str, settings: TaskSettings) -> Item:
    one, options = SETS[dataset], settings.options
    frame = one.frame(record)
    given = long_input(
        one.text(record),
        frame,
        one.max_new_tokens,
        settings.tokenizer,
        length=settings.length or DEFAULT_LENGTH,
        keep=KEPT_CHUNKS * settings.config.chunk_size if options.keep is None else options.keep,
        cut=options.cut,
    )
    metadata = {
        "dataset": dataset,
        "metric": one.metric,
        "record": record["id"],
        "source": source,
        "words": next((part for limit, part in _WORDS if record["words"] < limit), "8k+"),
        "text_tokens": given.tokens,
        "dropped_tokens": given.dropped,
        **({"classes": record["classes"]} if one.metric == "classification" else {}),
    }
    documents = (Document(given.document, source),) if given.document else ()
    answers = tuple(record["answers"])
    question = Question("q", frame, answers, len(documents), one.max_new_tokens, metadata=metadata, recent=given.recent)
    return Item(f"{dataset}-{number}", documents, (question,))


def by_set(results: SystemResults, metric: str = "score") -> dict[str, Mapping[str, Any]]:
    """Set -> mean, low and high, in the order of LongBench."""
    groups = [group for group in results.results["groups"] if set(group["by"]) == {"dataset"}]
    of = {group["by"]["dataset"]: group["scores"][metric] for group in groups}
    return {name: of[name] for name in SETS if name in of and of[name]["mean"] is not None}


def mean_of_sets(results: SystemResults, metric: str = "score") -> float | None:
    """The paper's average: every set counts the same, however many records it has."""
    found = [scores["mean"] for scores in by_set(results, metric).values()]
    return sum(found) / len(found) if found else None


def _plot(results: Sequence[SystemResults], path: Path) -> Path:
    scores = [by_set(one) for one in results]
    names = [*(name for name in SETS if any(name in one for one in scores)), "mean"]
    figure, (axes,) = new_figure(width=max(6.4, 0.5 * len(names) * (1 + 0.5 * len(results))))
    width = 0.8 / len(results)
    for number, (one, found) in enumerate(zip(results, scores, strict=True)):
        bars = dict(found)
        if (mean := mean_of_sets(one)) is not None:
            bars["mean"] = {"mean": mean, "low": None, "high": None}
        for name, bar in bars.items():
            place = names.index(name) + (number - (len(results) - 1) / 2) * width
            _bar(axes, place, width * 0.92, bar, COLOURS[number % len(COLOURS)])
        axes.bar([0], [0], color=COLOURS[number % len(COLOURS)], label=one.label)  # for the legend
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.set_ylabel("score x 100")
    if len(results) > 1:
        axes.legend(fontsize=8, frameon=False)
    counts = sorted({one.results["scores"]["score"]["n"] for one in results})
    figure.suptitle(f"longbench: {'-'.join(map(str, counts))} records, 95% intervals; mean over sets", fontsize=11)
    return save(figure, path)


def _bar(axes: Any, place: float, width: float, score: Mapping[str, Any], colour: str) -> None:
    height = 100 * score["mean"]
    axes.bar([place], [height], width, color=colour, alpha=0.85)
    if score["low"] is not None and score["high"] is not None:
        error = [[max(0.0, height - 100 * score["low"])], [max(0.0, 100 * score["high"] - height)]]
        axes.errorbar([place], [height], error, color="#333333", capsize=2, linewidth=1)
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    axes.annotate(f"{height:.1f}", (place, 0), (0, 3), textcoords="offset points", ha="center", fontsize=7, bbox=box)
