"""Builds a knowledge retention set: short answers, distractors that do not tell them, filters by what models know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mplus_cli.core.loading import encode
from mplus_cli.data.building import BuildFolder, Manifest, Tokenizer
from mplus_cli.data.retention.choosing import Filters, RetentionOptions, choose_examples
from mplus_cli.data.retention.distractors import Distractor, make_distractors
from mplus_cli.data.retention.examples import Example, ExampleSource
from mplus_cli.data.retention.filters import normalized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILDER = "retention"
NEED_BYTES = 50e6


def parameters(
    examples: ExampleSource,
    distractors: ExampleSource,
    tokenizer: Tokenizer,
    options: RetentionOptions,
    filters: Filters,
) -> dict[str, Any]:
    """What decides the bytes of the build, given the answers of the models."""
    return {
        "source": asdict(examples.source),
        "distractor_source": asdict(distractors.source),
        "tokenizer": asdict(tokenizer),
        "options": {key: value for key, value in asdict(options).items() if key != "max_bad_rows"},
        "drop_if_answered_closed_book_by": filters.closed_book.identity if filters.closed_book else None,
        "keep_if_answered_with_context_by": filters.with_context.identity if filters.with_context else None,
    }


def build_retention(
    folder: BuildFolder,
    examples: ExampleSource,
    distractors: ExampleSource,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_identity: Tokenizer,
    options: RetentionOptions,
    filters: Filters,
) -> Manifest:
    """Write `examples` and `distractors`.

    An evaluation injects the context of an example, then distractors in their order without those in the example's
    `leaky_distractors`, then asks.

    Raises:
        UsageError: nothing passes, or a source cannot be read.
    """
    counts: dict[str, Any] = {}
    chosen = choose_examples(examples, tokenizer, options, filters, counts)
    texts = make_distractors(distractors, tokenizer, options)
    rows = list(retention_rows(chosen, texts, tokenizer))
    counts |= {"examples": len(rows), "distractors": len(texts), "distractor_tokens": sum(d.tokens for d in texts)}
    counts["fewest_distractors_of_an_example"] = min(len(texts) - len(row["leaky_distractors"]) for row in rows)
    folder.write_shard("examples.jsonl.gz", rows, bucket="examples")
    distractor_rows = ({"index": n, "text": d.text, "tokens": d.tokens} for n, d in enumerate(texts))
    folder.write_shard("distractors.jsonl.gz", distractor_rows, bucket="distractors")
    sources = dict.fromkeys([examples.source, distractors.source])
    return folder.finish(
        sources=sources, counts=counts, tokenizer=tokenizer_identity, packages=("transformers", "openai")
    )


def retention_rows(
    examples: Sequence[Example], distractors: Sequence[Distractor], tokenizer: PreTrainedTokenizerBase
) -> Iterator[dict[str, Any]]:
    """The rows of `examples`: what is asked, and which distractors tell the answer (`leaky_distractors`)."""
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
