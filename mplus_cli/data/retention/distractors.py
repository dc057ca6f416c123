"""Texts to inject between a fact and its question."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mplus_cli.core.loading import encode
from mplus_cli.data.building.rows import BadRows
from mplus_cli.data.retention.choosing import RetentionOptions
from mplus_cli.data.retention.examples import ExampleSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Distractor:
    """A text to inject between a fact and its question, and the paragraphs it is made of."""

    text: str
    tokens: int
    contexts: frozenset[str]


def make_distractors(
    source: ExampleSource, tokenizer: PreTrainedTokenizerBase, options: RetentionOptions
) -> list[Distractor]:
    """Paragraphs of a source in an order drawn by seed, joined and cut to `distractor_tokens` each."""
    rows = source.rows(BadRows(options.max_bad_rows), "reading distractors")
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
