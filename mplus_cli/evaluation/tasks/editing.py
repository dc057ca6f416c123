"""Model editing: a new fact is told, then asked as it was told, in other words, and beside it (MemoryLLM section 4.2).

    mplus eval editing --system mplus --system closed-book             # CounterFact
    mplus eval editing:dataset=zsre --data zsre_mend_eval.json --limit 10000
    mplus eval editing:dataset=lre                                     # edits made of factual relations

Every edit is written into a fresh memory as one sentence, the prompt with its new answer, and judged by the rules of
ROME (arXiv 2202.05262), which MemoryLLM takes over:

    efficacy        the prompt of the edit
    generalisation  the same fact in other words
    specificity     neighbours: facts that the edit must leave as they are
    score           the harmonic mean of the three means

CounterFact compares answers by mean log-likelihood per token: an edit has worked where the new answer is likelier than
the old one, a neighbour is left alone where the old one is likelier. ZsRE has no old answer that could be compared: the
share of the answer's tokens that are the likeliest ones, given the tokens before, counts; for neighbours as well.
What a file lacks is not measured: the score is the harmonic mean of what is there, and results name it.

A system that remembers nothing (`closed-book`) gives the line before the edit. Which text MemoryLLM injects, and in
which form it asks ZsRE, its paper does not say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from mplus_cli.config import Range
from mplus_cli.data.chronicle import question_prompt
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.task import Metric, SystemResults, Task, TaskSettings
from mplus_cli.evaluation.tasks.editing_data import Dataset, Edit, read_edits

PARTS = ("efficacy", "generalisation", "specificity")
MAX_NEW_TOKENS = 5  # what is generated is for reading; nothing is scored by it


@dataclass(frozen=True)
class Options:
    """Settings of `editing`.

    Attributes:
        dataset: which one; its file is `--data`, else looked for in the data folder, else (CounterFact) on the hub.
        answer: field of ZsRE with the new answer: the true `answers` as in ROME, or the invented `alt` as in MEND.
        frame: how ZsRE's questions are put: alone as in ROME, or as `Question: ... Answer:`.
        neighbours: most neighbours asked for each edit; None for all.
    """

    dataset: Dataset = "counterfact"
    answer: Literal["answers", "alt"] = "answers"
    frame: Literal["none", "question"] = "none"
    neighbours: Annotated[int, Range(low=1)] | None = None


def success(sample: Mapping[str, Any]) -> float:
    """How far the right answer, the first option, is given: compared with the other one, or token by token.

    Equal likelihoods are no success, in either direction, as in ROME.
    """
    extra = sample["extra"]
    tokens = [max(1, count) for count in extra["option_tokens"]]
    if sample["metadata"]["judged"] == "tokens":
        return float(extra["option_likeliest"][0] / tokens[0])
    right, other = (value / count for value, count in zip(extra["option_logprobs"], tokens, strict=True))
    return float(right > other)


def exact(sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
    """1 where every token of the new answer is the likeliest: what greedy decoding would give; None for neighbours."""
    if sample["metadata"]["probe"] == "specificity":
        return None
    return float(sample["extra"]["option_likeliest"][0] == sample["extra"]["option_tokens"][0])


def _of(probe: str) -> Metric:
    def metric(sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
        return success(sample) if sample["metadata"]["probe"] == probe else None

    return metric


class Editing(Task):
    """One item per edit, each in a fresh memory.

    `efficacy`, `generalisation`, `specificity`: shares of prompts of the edit, of paraphrases and of neighbours that go
    as they should (CounterFact: the right answer is likelier per token than the other; ZsRE: the share of its tokens
    that are the likeliest). `score` is the harmonic mean of those that the data have. `exact`: the new answer is what
    greedy decoding gives, of prompts and paraphrases. A system without memory gives the line before the edit.
    """

    name, options_class = "editing", Options
    metrics: ClassVar[Mapping[str, Metric]] = {**{part: _of(part) for part in PARTS}, "exact": exact}
    harmonic: ClassVar = {"score": PARTS}
    metric_version = "ROME's comparisons per token, 1"
    default_limit = 500

    def items(self, settings: TaskSettings) -> Iterator[Item]:
        """The first edits of the file.

        Raises:
            UsageError: the file is missing or of another form, or a setting does not fit the data set.
        """
        options: Options = settings.options
        if options.frame == "question" and options.dataset != "zsre":
            raise UsageError(f"editing: frame=question is for questions; {options.dataset} has sentences to go on with")
        frame = _question if options.frame == "question" else str
        for edit in islice(read_edits(options.dataset, settings.data, options.answer, settings.seed), settings.limit):
            yield edit_item(edit, options.dataset, frame, options.neighbours)

    def plot(self, results: Sequence[SystemResults], folder: Path) -> list[Path] | None:
        """`editing.png`: one panel for each part that the data have, and the score; a bar for each system."""
        from mplus_cli.evaluation import plots

        names = [name for name in (*PARTS, *self.harmonic) if any(_scored(one, name) for one in results)]
        figure, axes = plots.new_figure(len(names), width=max(3.0, 0.9 * len(results)))
        for panel, name in zip(axes, names, strict=True):
            scores = {one.label: one.results["scores"][name] for one in results if _scored(one, name)}
            bars = {label: plots.Point(0, one["mean"], one["low"], one["high"]) for label, one in scores.items()}
            plots.draw_bars(panel, bars, "share" if name == names[0] else "")
            parts = next(iter(scores.values())).get("of")
            panel.set_title(name if parts is None else f"{name}: harmonic mean of\n{', '.join(parts)}", fontsize=9)
            panel.tick_params(axis="x", labelsize=8, rotation=20)
        counts = sorted({one.results["scores"]["efficacy"]["items"] for one in results})
        sets = sorted({str(sample["metadata"]["dataset"]) for one in results for sample in one.samples})
        figure.suptitle(f"editing, {', '.join(sets)}: {'-'.join(map(str, counts))} edits, 95% intervals", fontsize=11)
        return [plots.save(figure, folder / "editing.png")]


def edit_item(edit: Edit, dataset: str, frame: Callable[[str], str] = str, most: int | None = None) -> Item:
    """The edit as a document, and every prompt about it.

    Args:
        frame: puts a prompt as it is told and asked; most: neighbours.
    """
    asked = [("efficacy", edit.prompt, edit.new, edit.old)]
    asked += [("generalisation", prompt, edit.new, edit.old) for prompt in edit.paraphrases]
    other = None if edit.old is None else edit.new
    asked += [("specificity", prompt, answer, other) for prompt, answer in edit.neighbours[:most]]
    counts: dict[str, int] = {}
    questions = []
    for probe, prompt, right, against in asked:
        counts[probe] = counts.get(probe, 0) + 1
        answers = (right,) if against is None else (right, against)
        questions.append(
            Question(
                f"{probe}-{counts[probe]}",
                frame(prompt),
                (right,),
                1,
                MAX_NEW_TOKENS,
                options=tuple(f" {answer}" for answer in answers),
                metadata={"probe": probe, "judged": "tokens" if against is None else "likelihood"},
            )
        )
    described = {"dataset": dataset, "relation": edit.relation, "source": edit.source}
    return Item(edit.id, (Document(f"{frame(edit.prompt)} {edit.new}.", "edit"),), tuple(questions), described)


def _question(prompt: str) -> str:
    """As the model's own questions are put; without the mark that ZsRE's neighbours have from MEND's training."""
    return question_prompt(prompt.removeprefix("nq question: "))


def _scored(one: SystemResults, name: str) -> bool:
    return one.results["scores"][name]["mean"] is not None
