"""Builds a knowledge retention set: short answers, distractors that do not tell them, filters by what models know."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mplus_cli.core.loading import encode
from mplus_cli.data.building import BuildFolder, Manifest, Tokenizer
from mplus_cli.data.building.rows import BadRows
from mplus_cli.data.retention.examples import ANSWER_TOKENS, Example, ExampleSource
from mplus_cli.data.retention.filters import Answerer, is_right, normalized
from mplus_cli.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILDER = "retention"


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
class Distractor:
    """A text to inject between a fact and its question, and the paragraphs it is made of."""

    text: str
    tokens: int
    contexts: frozenset[str]


def parameters(
    examples: ExampleSource,
    distractors: ExampleSource,
    tokenizer: Tokenizer,
    options: RetentionOptions,
    closed_book: str | None,
    with_context: str | None,
) -> dict[str, Any]:
    return {
        "source": asdict(examples.source),
        "distractor_source": asdict(distractors.source),
        "tokenizer": asdict(tokenizer),
        "options": asdict(options),
        "drop_if_answered_closed_book_by": closed_book,
        "keep_if_answered_with_context_by": with_context,
    }


def build_retention(
    folder: BuildFolder,
    examples: ExampleSource,
    distractors: ExampleSource,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_identity: Tokenizer,
    options: RetentionOptions,
    closed_book: Answerer | None = None,
    with_context: Answerer | None = None,
) -> Manifest:
    """Write `examples` and `distractors`.

    An evaluation injects the context of an example, then distractors in their order without those in the example's
    `leaky_distractors`, then asks.

    Raises:
        UsageError: nothing passes, or a source cannot be read.
    """
    counts: dict[str, Any] = {}
    chosen = list(_short_answers(examples, tokenizer, options, counts))
    chosen = _filter(chosen, closed_book, with_context, options, counts)
    if not chosen:
        steps = ", ".join(f"{count:,} {step}" for step, count in counts.items())
        raise UsageError(f"no example of {examples.source.name} passes ({steps})")
    texts = make_distractors(distractors, tokenizer, options)
    rows = list(_rows(chosen, texts, tokenizer))
    counts |= {"examples": len(rows), "distractors": len(texts), "distractor_tokens": sum(d.tokens for d in texts)}
    counts["fewest_distractors_of_an_example"] = min(len(texts) - len(row["leaky_distractors"]) for row in rows)
    folder.write_shard("examples.jsonl.gz", rows, bucket="examples")
    distractor_rows = ({"index": n, "text": d.text, "tokens": d.tokens} for n, d in enumerate(texts))
    folder.write_shard("distractors.jsonl.gz", distractor_rows, bucket="distractors")
    sources = dict.fromkeys([examples.source, distractors.source])
    return folder.finish(
        sources=sources, counts=counts, tokenizer=tokenizer_identity, packages=("transformers", "openai")
    )


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


def _filter(
    examples: list[Example],
    closed_book: Answerer | None,
    with_context: Answerer | None,
    options: RetentionOptions,
    counts: dict[str, Any],
) -> list[Example]:
    """What a model knows already goes, what a model cannot tell from the context goes; then the first `limit`.

    With a limit the models are asked in portions, so that a hundred examples do not cost ten thousand questions.
    """
    if not examples or (closed_book is None and with_context is None):
        return examples[: options.limit]
    kept: list[Example] = []
    asked = known = unclear = 0
    portion = max(64, 2 * options.limit) if options.limit else len(examples)
    for start in range(0, len(examples), portion):
        part = examples[start : start + portion]
        asked += len(part)
        if closed_book is not None:
            answers = closed_book.answers(part, with_context=False)
            unknown = [e for e, answer in zip(part, answers, strict=True) if not is_right(answer, e.answer)]
            known += len(part) - len(unknown)
            part = unknown
        if with_context is not None:
            answers = with_context.answers(part, with_context=True)
            clear = [e for e, answer in zip(part, answers, strict=True) if is_right(answer, e.answer)]
            unclear += len(part) - len(clear)
            part = clear
        kept += part
        if options.limit and len(kept) >= options.limit:
            break
    counts |= {"asked of models": asked, "answered closed-book": known, "not answered with the context": unclear}
    return kept[: options.limit]


def make_distractors(
    source: ExampleSource, tokenizer: PreTrainedTokenizerBase, options: RetentionOptions
) -> list[Distractor]:
    """Paragraphs of a source in an order drawn by seed, joined and cut to `distractor_tokens` each."""
    rows = source.rows(BadRows(options.max_bad_rows))
    contexts = list(dict.fromkeys(example.context for example in rows if example is not None))
    contexts.sort(key=lambda context: hashlib.sha256(f"{options.seed}/{context}".encode()).digest())
    made: list[Distractor] = []
    part: list[str] = []
    tokens = 0
    for context in contexts:
        if len(made) == options.distractors:
            break
        part.append(context)
        tokens += len(encode(tokenizer, context))
        if options.distractor_tokens is None or tokens >= options.distractor_tokens:
            text = _cut("\n".join(part), tokenizer, options.distractor_tokens)
            made.append(Distractor(text, len(encode(tokenizer, text)), frozenset(part)))
            part, tokens = [], 0
    return made


def _cut(text: str, tokenizer: PreTrainedTokenizerBase, tokens: int | None) -> str:
    """The text up to the end of a token."""
    if tokens is None:
        return text
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return text[: offsets[tokens - 1][1]].rstrip() if len(offsets) > tokens else text


def _rows(
    examples: Sequence[Example], distractors: Sequence[Distractor], tokenizer: PreTrainedTokenizerBase
) -> Iterator[dict[str, Any]]:
    words = [f" {normalized(distractor.text)} " for distractor in distractors]
    for example in examples:
        answer = f" {normalized(example.answer)} "
        leaky = [
            n
            for n, distractor in enumerate(distractors)
            if answer in words[n] or example.context in distractor.contexts
        ]
        yield {
            "id": example.id,
            "source": example.kind,
            "title": example.title,
            "context": example.context,
            "question": example.question,
            "answer": example.answer,
            "answer_tokens": len(encode(tokenizer, example.answer)),
            "leaky_distractors": leaky,
        }
