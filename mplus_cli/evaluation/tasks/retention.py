"""Knowledge retention: a fact, then more and more other text, then the question (M+ section 4.3, figure 3).

    mplus eval retention --length 160k                       # SQuAD, the paper's reach
    mplus eval retention:dataset=nq,points=16 --length 160k  # Natural Questions, the paper's steps of 10k

The context of an example is remembered first, then distractors, the same ones in the same order for every example but
for those that tell its answer. The question is asked at every distance; asking does not disturb memory, so one pass
over the text serves all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mplus_cli.errors import UsageError
from mplus_cli.evaluation.drop_rule import DropRule
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.metrics import VERSION, contains, contains_words, exact_match, f1
from mplus_cli.evaluation.task import SystemResults, Task, TaskSettings
from mplus_cli.evaluation.tasks.retention_data import BUILD_HINT, Distractor, Options, RetentionSet, load_set

if TYPE_CHECKING:
    from mplus_cli.evaluation.plots import Point

DEFAULT_CHUNKS = 40  # text per item, unless a length is given
NAMES = {"squad": "SQuAD", "nq": "Natural Questions"}


def log_likelihood(sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
    """Nats per token of the reference as the answer, higher is better; None where that was not asked for."""
    extra = sample["extra"]
    return extra["option_logprobs"][0] / extra["option_tokens"][0] if extra.get("option_logprobs") else None


class Retention(Task):
    """Substring accuracy (the paper's) and F1 by distance in tokens."""

    name = "retention"
    options_class = Options
    metrics: ClassVar = {
        "contains": contains,
        "contains_words": contains_words,
        "f1": f1,
        "exact_match": exact_match,
        "log_likelihood": log_likelihood,
    }
    metric_version = VERSION
    group_by = ("distance",)
    default_limit = 100  # the paper's

    def items(self, settings: TaskSettings) -> Iterator[Item]:
        """One item for every example."""
        distances = distances_of(settings)
        data = load_set(settings, distances[-1])
        for example in data.examples:
            yield retention_item(example, data, distances, settings.options.likelihood)

    def context_prompt(self, context: str, question: Question) -> str:
        """The published script marks what was injected: `Context: ...`, then the question."""
        return f"Context: {context}\n{question.prompt}" if context else question.prompt

    def plot(self, results: Sequence[SystemResults], folder: Path) -> list[Path] | None:
        """Figure 3: accuracy by distance, the closed-book line, and what random dropping alone would leave."""
        from mplus_cli.evaluation import plots

        figure, (axes,) = plots.new_figure()
        first, chosen = next(iter(self.metrics)), [one for one in results if one.name != "closed-book"]
        plots.draw_curves(
            axes,
            {one.label: plots.points(one, "distance", first) for one in chosen},
            "tokens of other text since the fact",
            "accuracy (answer contains the gold answer)",
        )
        border = next((one.results["scores"][first]["mean"] for one in results if one.name == "closed-book"), None)
        if border is not None:
            axes.axhline(border, color="#8a8a8a", linestyle="--", linewidth=1, label="closed-book")
        for label, curve in theory(results, first, border or 0.0):
            axes.plot(
                [p.x for p in curve],
                [p.mean for p in curve],
                color="#333333",
                linestyle=":",
                linewidth=1.2,
                label=label,
            )
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
        kinds = sorted({str(sample["metadata"].get("dataset")) for one in results for sample in one.samples})
        items = max((one.results["scores"][first]["items"] for one in results), default=0)
        axes.set_title(f"{', '.join(NAMES.get(kind, kind) for kind in kinds)}: {items} questions, 95% intervals")
        return [plots.save(figure, folder / "retention.png")]


def distances_of(settings: TaskSettings) -> list[int]:
    """Ascending distances in tokens.

    Raises:
        UsageError: there is none within the length.
    """
    options: Options = settings.options
    length = settings.length
    if options.distances is not None:
        found = sorted({d for d in options.distances if length is None or d <= length})
        if not found:
            raise UsageError("retention: no distance is within --length", f"distances={list(options.distances)}")
        return found
    length = DEFAULT_CHUNKS * settings.config.chunk_size if length is None else length
    return sorted({round(length * step / options.points) for step in range(options.points + 1)})


def retention_item(
    example: Mapping[str, Any], data: RetentionSet, distances: Sequence[int], likelihood: bool = False
) -> Item:
    """The context, then distractors; the question after the distractor whose end is nearest to each distance.

    Args:
        likelihood: ask how likely the reference is too.

    Raises:
        UsageError: the distractors do not reach the largest distance.
    """
    between = data.between(dict(example))
    tokens = [0, *accumulate(one.tokens for one in between)]
    if tokens[-1] < distances[-1]:
        raise UsageError(
            f"retention: the other texts hold {tokens[-1]:,} tokens, and --length asks for {distances[-1]:,}",
            f"--length {tokens[-1]}, or more of them: {BUILD_HINT.format('squad')} (--distractor-count)",
        )
    writes = [0, *accumulate(one.writes for one in between)]
    places = [_nearest(tokens, distance) for distance in distances]
    return Item(
        id=example["id"],
        documents=(Document(example["context"], "context"), *_documents(between[: places[-1]])),
        questions=tuple(
            Question(
                id=f"d{distance}",
                prompt=f"Question: {example['question']} Answer:",
                references=(example["answer"],),
                after=1 + place,
                options=(f" {example['answer']}",) if likelihood else (),
                metadata={"distance": distance, "tokens": tokens[place], "writes": writes[place], "told": [0]},
            )
            for distance, place in zip(distances, places, strict=True)
        ),
        metadata={"dataset": example["source"], "title": example.get("title", "")},
    )


def _nearest(tokens: Sequence[int], distance: int) -> int:
    return min(range(len(tokens)), key=lambda place: abs(tokens[place] - distance))


def _documents(distractors: Sequence[Distractor]) -> Iterator[Document]:
    for number, distractor in enumerate(distractors):
        yield Document(distractor.text, f"distractor {number}")


def theory(results: Sequence[SystemResults], metric: str, border: float) -> Iterator[tuple[str, list[Point]]]:
    """MemoryLLM's theoretical curve, from where the `memoryllm` system starts (or the first with memory)."""
    from mplus_cli.evaluation.plots import Point, points

    with_memory = [one for one in results if one.name in ("memoryllm", "mplus")]
    for one in sorted(with_memory, key=lambda one: one.name != "memoryllm")[:1]:
        curve = points(one, "distance", metric)
        if len(curve) < 2:
            continue
        rule, writes = DropRule.of(one.run["model"]["config"]), _writes(one.samples)
        start = writes[curve[0].x]
        drawn = []
        for left, right in zip(curve, curve[1:], strict=False):
            for step in range(20):
                part = step / 20
                since = writes[left.x] + part * (writes[right.x] - writes[left.x]) - start
                x = left.x + part * (right.x - left.x)
                drawn.append(Point(x, rule.accuracy(curve[0].mean, border, since)))
        drawn.append(Point(curve[-1].x, rule.accuracy(curve[0].mean, border, writes[curve[-1].x] - start)))
        yield f"random dropping, theory (N={rule.size:,}, K={rule.write:,})", drawn


def _writes(samples: Sequence[Mapping[str, Any]]) -> dict[float, float]:
    """Mean writes between fact and question, by distance in tokens."""
    found: dict[float, list[float]] = defaultdict(list)
    for sample in samples:
        found[float(sample["metadata"]["distance"])].append(sample["metadata"]["writes"])
    return {distance: sum(counts) / len(counts) for distance, counts in found.items()}
