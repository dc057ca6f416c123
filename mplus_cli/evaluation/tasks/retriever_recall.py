"""Retriever recall: of what a context wrote into memory, how much is retrieved when it is asked for (M+ figure 6)?

    mplus eval retriever-recall                  # contexts of SQuAD, as in the paper
    mplus eval retriever-recall:of=chronicle     # facts of a chronicle, for the bundled model

At every question the memory tokens of the asked-for context are counted: how many are in long-term memory by now, and
how many of these the question retrieves, in every layer. Chance is what a random draw of as many tokens would give. Not
every token of the context matters; so those that hold the asked fact are counted apart (see `told_tokens.fact_tokens`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mplus_cli.errors import UsageError
from mplus_cli.evaluation.items import Answer, Item, Question
from mplus_cli.evaluation.metrics import measured
from mplus_cli.evaluation.task import SystemResults, Task, TaskSettings
from mplus_cli.evaluation.tasks import chronicle, retention

if TYPE_CHECKING:
    from mplus_cli.core.memory import Memory
    from mplus_cli.evaluation.system import System
    from mplus_cli.evaluation.systems.memory_system import MemorySystem
    from mplus_cli.evaluation.systems.walk import Stand

SYSTEMS = ("mplus", "random")  # those that retrieve what the counts are about


@dataclass(frozen=True)
class FactOptions(chronicle.Options):
    """Settings of `chronicle`, for plain facts unless other parts are named."""

    parts: tuple[chronicle.Part, ...] = ("facts",)


@dataclass(frozen=True)
class Options:
    """Settings of `retriever-recall`.

    Attributes:
        of: the task whose contexts and questions are used, with its settings in `retention` or `chronicle`.
        facts: count the tokens that hold the asked fact too; costs a backward pass per question.
    """

    of: Literal["retention", "chronicle"] = "retention"
    facts: bool = True
    retention: retention.Options = field(default_factory=retention.Options)
    chronicle: FactOptions = field(default_factory=FactOptions)


class RetrieverRecall(Task):
    """Recall against chance by distance, and by layer in its plot and `extra`."""

    name = "retriever-recall"
    options_class = Options
    metrics: ClassVar = {
        name: measured(name)
        for name in ("recall", "chance", "lift", "fact_recall", "fact_chance", "fact_lift", "in_short_term", "lost")
    }
    metric_version = "memory tokens of all layers, 1"
    group_by = ("distance",)
    measures = True

    def items(self, settings: TaskSettings) -> Iterator[Item]:
        """Those of the task that the options name; the measure is told with every question what it needs."""
        options: Options = settings.options
        task: Task = retention.Retention() if options.of == "retention" else chronicle.Chronicle()
        inner = replace(settings, options=getattr(options, options.of))
        for item in task.items(inner):
            yield replace(item, metadata=dict(item.metadata) | {"of": options.of, "facts": options.facts})

    def check(self, system: System) -> None:
        """See `Task.check`.

        Raises:
            UsageError: it retrieves nothing, or not from its own memory.
        """
        if system.name not in SYSTEMS:
            raise UsageError(
                f"{self.name} counts what is retrieved from memory; {system.name} retrieves nothing of its own",
                "--system " + " --system ".join(SYSTEMS),
            )

    def measure(self, system: System, items: Sequence[Item]) -> Iterator[Answer]:
        """See `Task.measure`.

        Raises:
            UsageError: the system cannot be measured, see `check`.
        """
        self.check(system)
        asking: MemorySystem = system  # type: ignore[assignment]  # those that pass the check are memory systems
        walk = asking.walk(items)
        for stands in walk.stands():
            for number in range(max(len(stand.questions) for stand in stands)):
                here = [stand for stand in stands if number < len(stand.questions)]
                memory = asking.view(walk.memory.rows([stand.row for stand in here]))
                yield from _count(asking, memory, here, [stand.questions[number] for stand in here])

    def plot(self, results: Sequence[SystemResults], folder: Path) -> list[Path] | None:
        """Recall by distance and by layer, with chance; the numbers by layer as JSON."""
        from mplus_cli.evaluation import plots
        from mplus_cli.evaluation.runs import write_json

        layers = {one.label: by_layer(one.samples) for one in results}
        write_json(folder / "retriever_recall_by_layer.json", layers)
        figure, (left, right) = plots.new_figure(2)
        distances, depths = {}, {}
        for one in results:
            shown = {"recall": "context", "fact_recall": "fact"} | ({"chance": "chance"} if one is results[-1] else {})
            for metric, title in shown.items():
                distances[f"{one.label}: {title}"] = plots.points(one, "distance", metric)
                rows = [(row["layer"], row[metric]) for row in layers[one.label] if row[metric] is not None]
                depths[f"{one.label}: {title}"] = [plots.Point(*row) for row in rows]
        plots.draw_curves(left, distances, "distance", "share of long-term tokens retrieved")
        plots.draw_curves(right, depths, "layer", "share of long-term tokens retrieved")
        count = max(map(len, layers.values()), default=0)
        right.set_xscale("linear")
        right.set_xticks(range(0, count, 1 + count // 12))
        return [plots.save(figure, folder / "retriever_recall.png")]


def by_layer(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For every layer, over all samples: tokens held and found, and their shares; None where none was held."""
    rows = []
    for number, layers in enumerate(zip(*(sample["extra"]["layers"] for sample in samples), strict=True)):
        total = {key: sum(layer[key] for layer in layers) for key in layers[0]}
        rows.append({"layer": number} | total | _shares(total))
    return rows


def _shares(total: Mapping[str, float]) -> dict[str, float | None]:
    """Recall, chance and lift, of all tokens of the context and of those that hold the fact."""
    shares: dict[str, float | None] = {}
    for prefix in ("", "fact_"):
        held, found, chance = (total[f"{prefix}{key}"] for key in ("held", "found", "by_chance"))
        shares[f"{prefix}recall"] = found / held if held else None
        shares[f"{prefix}chance"] = chance / held if held else None
        shares[f"{prefix}lift"] = found / chance if chance else None
    return shares


def _count(
    system: MemorySystem, memory: Memory, stands: Sequence[Stand], questions: Sequence[Question]
) -> Iterator[Answer]:
    """Reads one question per row of `memory`, and counts what each retrieved."""
    import torch

    from mplus_cli.core.padding import left_pad
    from mplus_cli.evaluation.tasks.told_tokens import told_counts

    began = time.perf_counter()
    prompts = [system.prompt(question, memory) for question in questions]
    ids, mask = left_pad([prompt.ids for prompt in prompts], device=system.model.device)
    with torch.inference_mode(), system.reading():
        system.model(input_ids=ids, attention_mask=mask, memory=memory, logits_to_keep=1)
    retrieved = memory.last_retrieval
    for row, (stand, question, prompt) in enumerate(zip(stands, questions, prompts, strict=True)):
        spans = [stand.spans[document] for document in question.metadata["told"]]
        asked = (prompt.ids, question.references[0]) if stand.item.metadata["facts"] else None
        found = [layer[row].created for layer in retrieved] if retrieved else None
        layers = told_counts(system.model, system.tokenizer, memory, row, spans, found, asked)
        total = {key: sum(layer[key] for layer in layers) for key in layers[0]}
        written = len(layers) * sum(end - start for start, end in spans)
        lost = written - total["held"] - total["short_term"]
        seconds, began = time.perf_counter() - began, time.perf_counter()
        remember, stand.seconds = stand.seconds, 0.0
        yield Answer(
            stand.item.id,
            question.id,
            prompt=question.prompt,
            prompt_tokens=len(prompt.ids),
            context_tokens=stand.tokens,
            stop="measured",
            seconds={"remember": remember, "ask": seconds},
            extra={
                "writes": stand.writes,
                "long_term": len(memory.long_term[row]),
                "written": written,
                "in_short_term": total["short_term"] / written,
                "lost": lost / written,
                **_shares(total),
                "layers": layers,
            },
        )
