"""What a task of `mplus eval` is, and the table of them.

A task is one file under `tasks/` and one row of `TASKS`. It yields items and owns prompts, stop rule and metrics:

    @dataclass(frozen=True)
    class Options:
        paragraphs: Annotated[int, Range(low=1)] = 4

    class Parrot(Task):
        name, options_class, group_by = "parrot", Options, ("distance",)
        metrics: ClassVar = {"exact_match": metrics.exact_match}
        metric_version = metrics.VERSION

        def items(self, settings: TaskSettings) -> Iterator[Item]: ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mplus_cli.evaluation.items import Answer, Item, Question
from mplus_cli.evaluation.registry import Row, Spec, parse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mplus_cli.core.configuration_mplus import MPlusConfig
    from mplus_cli.core.memory import Memory
    from mplus_cli.evaluation.system import System
    from mplus_cli.evaluation.systems.walk import Stand

# A line of predictions.jsonl (text, metadata, options, extra ...) and its references -> a number, mostly 0 to 1.
# None where the metric does not apply to this sample.
Metric = Callable[[Mapping[str, Any], Sequence[str]], float | None]
Tell = Callable[[float, str], None]  # told how much of the work is done, 0 to 1, and in words how far it is
StopRule = Literal["line", "none"]

TASKS: dict[str, Row] = {
    "retention": Row(
        "tasks.retention:Retention",
        "facts of SQuAD or Natural Questions, asked after more and more other text",
        "section 4.3, figure 3",
    ),
    "retriever-recall": Row(
        "tasks.retriever_recall:RetrieverRecall",
        "how much of what a context wrote is retrieved when it is asked for",
        "figure 6",
    ),
    "needle": Row("tasks.needle:Needle", "needles in a haystack, by length and depth"),
    "babilong": Row("tasks.babilong:Babilong", "bAbI facts scattered in a book"),
    "chronicle": Row("tasks.chronicle:Chronicle", "the bundled model's exam: distances, updated facts, two passages"),
    "order": Row("tasks.order:Order", "which of two passages of a book came first"),
    "memory-report": Row("tasks.memory_report:MemoryReport", "what is in memory tokens"),
    "longbench": Row(
        "tasks.longbench:LongBench",
        "LongBench's English sets with its own prompts and metrics",
        "section 4.4, tables 2 and 3",
    ),
    "longbook-qa": Row("tasks.longbook_qa:LongBookQA", "InfiniteBench's questions about whole novels", "figure 2"),
    "longbook-event-qa": Row(
        "tasks.longbook_event_qa:LongBookEventQA", "which of six events of a novel comes next", "figure 2"
    ),
    "perplexity": Row(
        "tasks.perplexity:Perplexity", "loss and perplexity of short texts, with unrelated memory and with none"
    ),
    "longdoc-loss": Row(
        "tasks.longdoc_loss:LongdocLoss", "loss by position in long texts, read chunk by chunk", "figure 4"
    ),
    "integrity": Row(
        "tasks.integrity:Integrity", "memory after very many updates (MemoryLLM's 650,000): recall, drift"
    ),
    "editing": Row("tasks.editing:Editing", "model editing: a new fact is told, then asked (MemoryLLM's protocol)"),
    "forgetting": Row(
        "tasks.forgetting:Forgetting", "facts that are contradicted later, and survival of memory tokens"
    ),
}


@dataclass(frozen=True)
class NoOptions:
    """A task or system without settings of its own."""


@dataclass(frozen=True)
class TaskSettings:
    """What a run asks of a task. The same settings give the same items, in the same order.

    Attributes:
        tokenizer: of the model; it measures lengths and distances.
        config: of the model: `chunk_size`, `memory_tokens_per_write`, `short_term_size` ...
        options: an instance of the task's `options_class`.
        length: tokens of text per item, whatever that means to the task; None for its default.
        limit: most items. The first n items of a larger limit are the items of limit n.
        seed: of everything that the task chooses.
        data: folder or file with the task's data; None for where the task looks by itself.
    """

    tokenizer: PreTrainedTokenizerBase
    config: MPlusConfig
    options: Any = field(default_factory=NoOptions)
    length: int | None = None
    limit: int = 100
    seed: int = 0
    data: Path | None = None


@dataclass(frozen=True)
class SystemResults:
    """What one system did on a task, as `Task.plot` gets it.

    Attributes:
        label: the system with its settings; name: without.
        samples: lines of predictions.jsonl in the order of the task, each with its `scores` {metric: number}.
        results: results.json.
        run: run.json; `run["model"]["config"]` has the sizes of the memory.
    """

    label: str
    name: str
    samples: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any]
    run: Mapping[str, Any]


class Task(ABC):
    """A task. Instances hold no state.

    Attributes:
        name: as in `TASKS`.
        options_class: frozen dataclass of the task's own settings (`mplus eval NAME:key=value`), see `config`.
        metrics: name -> metric; the first is the one that short tables and plots show.
        transforms: metric -> what is done to its mean and to both ends of its interval. It must be increasing; so the
            interval is that of the changed mean. Perplexity is e to the mean loss, not a mean of perplexities.
        harmonic: name of a score -> metrics that it is the harmonic mean of: of their means, as editing papers have it.
            Metrics without any sample are left out, and results say which are in it.
        metric_version: changes whenever a metric gives another number for the same answer.
        group_by: keys of metadata; scores are also given for every combination of their values.
        stop: `line` ends an answer at its first line break after some text, `none` at the end token alone.
        measures: what to call `measure` for, in place of asking systems.
        joint: stands between documents where they are read as one text.
        default_limit: items when no limit is given.
    """

    name: ClassVar[str]
    options_class: ClassVar[Any] = NoOptions
    metrics: ClassVar[Mapping[str, Metric]]
    transforms: ClassVar[Mapping[str, Callable[[float], float]]] = {}
    harmonic: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    metric_version: ClassVar[str]
    group_by: ClassVar[tuple[str, ...]] = ()
    stop: ClassVar[StopRule] = "line"
    measures: ClassVar[bool] = False
    joint: ClassVar[str] = "\n\n"
    default_limit: ClassVar[int] = 100

    @abstractmethod
    def items(self, settings: TaskSettings) -> Iterator[Item]:
        """The items, in a fixed order.

        Raises:
            UsageError: the data is missing (the hint is the command that builds it) or a setting makes no sense.
        """

    def context_prompt(self, context: str, question: Question) -> str:
        """The prompt for systems that read documents as text."""
        return f"{context}\n\n{question.prompt}" if context else question.prompt

    def check(self, system: System) -> None:  # noqa: B027 (most tasks can ask every system)
        """Called for every system before any work.

        Raises:
            UsageError: this task cannot ask or measure the system.
        """

    def look(self, memory: Memory, row: int, stand: Stand, question: Question) -> Mapping[str, Any]:
        """What a task wants to know of a row of memory where it is asked: plain JSON for the answer's `extra`.

        Systems with a memory call it for every question; it must leave the memory as it is.
        """
        return {}

    def measure(self, system: System, items: Sequence[Item]) -> Iterator[Answer]:
        """For measuring tasks: one answer for every question of the items, its findings in `extra`."""
        raise NotImplementedError(f"{self.name} asks questions")

    def measure_long(self, system: System, items: Sequence[Item], folder: Path, tell: Tell) -> Iterator[Answer]:
        """`measure`, for a task that takes so long that single samples are too far apart.

        Args:
            folder: of this task and system, where it may keep what it takes to go on from between two samples.
            tell: called as work goes on.
        """
        return self.measure(system, items)

    def plot(self, results: Sequence[SystemResults], folder: Path) -> list[Path] | None:
        """Draw PNG files into `folder` and return their paths; None for the usual curves by the first of `group_by`."""
        return None


def find_task(text: str) -> tuple[Task, Spec]:
    """The task of `name` or `name:key=value,...`.

    Raises:
        UsageError: there is none of this name.
    """
    spec = parse(text, TASKS, "task")
    return TASKS[spec.name].load()(), spec
