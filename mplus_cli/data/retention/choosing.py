"""Which examples a retention set takes: those with short answers, then those that pass the filters by models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mplus_cli.core.loading import encode
from mplus_cli.data.building.rows import BadRows
from mplus_cli.data.chat import Plan
from mplus_cli.data.retention.examples import ANSWER_TOKENS, Example, ExampleSource
from mplus_cli.data.retention.filters import Answerer, is_right, normalized
from mplus_cli.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RetentionOptions:
    """What decides a build, beside its sources and filters.

    Attributes:
        max_answer_tokens: None takes the paper's: 3 for SQuAD and rows of one's own, 4 for Natural Questions.
        distractors: how many; the paper's longest curve needs about 320 of 512 tokens.
        distractor_tokens: length of each, made of whole paragraphs cut at the end; None takes paragraphs as they are.
        seed: of the choice and order of the distractors.
        limit: keep only the first so many examples that pass everything (the paper: 100); None for all.
        max_bad_rows: broken rows that are put up with in each source.
    """

    max_answer_tokens: int | None = None
    distractors: int = 400
    distractor_tokens: int | None = 512
    seed: int = 0
    limit: int | None = None
    max_bad_rows: int = 100


@dataclass(frozen=True)
class Filters:
    """The models that decide: what `closed_book` answers goes, what `with_context` does not answer goes too."""

    closed_book: Answerer | None = None
    with_context: Answerer | None = None

    @property
    def models(self) -> list[Answerer]:
        return [model for model in (self.closed_book, self.with_context) if model is not None]

    def plans(self, limited: bool) -> list[Plan]:
        """After a dry run: what asking each of the models would take.

        Args:
            limited: only so many examples are wanted; then how many are asked depends on answers that are not there.
        """
        plans = [model.plan(estimated=False) for model in self.models]
        unknown = any(plan.cached < plan.requests for plan in plans)
        dependent = [limited or number > 0 for number in range(len(plans))]
        return [replace(plan, estimated=unknown and d) for plan, d in zip(plans, dependent, strict=True)]


def choose_examples(
    source: ExampleSource,
    tokenizer: PreTrainedTokenizerBase,
    options: RetentionOptions,
    filters: Filters,
    counts: dict[str, Any],
) -> list[Example]:
    """The examples of a set, in the order of the source; `counts` is told how many each test took away.

    Raises:
        UsageError: none passes, or the source cannot be read.
    """
    chosen = _filter(list(_short_answers(source, tokenizer, options, counts)), filters, options.limit, counts)
    if not chosen:
        steps = ", ".join(f"{count:,} {step}" for step, count in counts.items())
        raise UsageError(f"no example of {source.source.name} passes ({steps})")
    return chosen


def _short_answers(
    source: ExampleSource, tokenizer: PreTrainedTokenizerBase, options: RetentionOptions, counts: dict[str, Any]
) -> Iterator[Example]:
    """Examples whose answer is short and in the context, each once, in the order of the source; counts the others."""
    counts |= dict.fromkeys(("read", "without an answer", "answer too long", "answer not in the context", "double"), 0)
    bad = BadRows(options.max_bad_rows)
    seen: set[str] = set()
    for example in source.rows(bad):
        counts["read"] += 1
        if example is None:
            counts["without an answer"] += 1
            continue
        longest = options.max_answer_tokens or ANSWER_TOKENS[example.kind]
        if len(encode(tokenizer, example.answer)) > longest:
            counts["answer too long"] += 1
        elif not normalized(example.answer) or not is_right(example.context, example.answer):
            counts["answer not in the context"] += 1
        elif example.id in seen:
            counts["double"] += 1
        else:
            seen.add(example.id)
            yield example
    counts["broken rows"] = bad.count


def _filter(examples: list[Example], filters: Filters, limit: int | None, counts: dict[str, Any]) -> list[Example]:
    """What a model knows already goes, what a model cannot tell from the context goes; then the first `limit`.

    With a limit the models are asked in portions, so that a hundred examples do not cost ten thousand questions.
    """
    if not examples or not filters.models:
        return examples[:limit]
    kept: list[Example] = []
    asked = known = unclear = 0
    portion = max(64, 2 * limit) if limit else len(examples)
    for start in range(0, len(examples), portion):
        part = examples[start : start + portion]
        unknown = _passing(part, filters.closed_book, with_context=False)
        clear = _passing(unknown, filters.with_context, with_context=True)
        asked, known, unclear = asked + len(part), known + len(part) - len(unknown), unclear + len(unknown) - len(clear)
        kept += clear
        if limit and len(kept) >= limit:
            break
    counts |= {"asked of models": asked, "answered closed-book": known, "not answered with the context": unclear}
    for model in filters.models:
        for fault, count in sorted(model.faults.items()):
            counts[f"no usable answer: {fault}"] = counts.get(f"no usable answer: {fault}", 0) + count
    return kept[:limit]


def _passing(examples: list[Example], model: Answerer | None, with_context: bool) -> list[Example]:
    """Those the model answers with the context, or does not answer without it.

    In a dry run an example without an answer yet passes: then a plan counts too much rather than too little.
    """
    if model is None or not examples:
        return examples
    answers = zip(examples, model.answers(examples, with_context), strict=True)
    return [e for e, answer in answers if answer is None or is_right(answer, e.answer) == with_context]
