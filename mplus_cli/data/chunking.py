"""Cut a text into chunks of tokens, each with its place in the text, in memory that does not grow with the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEGMENT_CHARS = 1 << 16
_LINE_START = re.compile(r"\n(?=\S)")


@dataclass(frozen=True)
class Chunk:
    """A run of tokens and the characters [start, end) they stand for; the spans of a text's chunks join up exactly."""

    ids: list[int]
    start: int
    end: int


def chunks(text: str, tokenizer: PreTrainedTokenizerBase, chunk_size: int) -> Iterator[Chunk]:
    """Tokenize a text and cut it into chunks of `chunk_size` tokens.

    A tail shorter than half of that, which is what a write makes in memory tokens, is not a chunk of its own: short
    writes disturb memory. It is joined with the chunk before it and the two are cut in the middle. Only a text with a
    single chunk may be shorter.
    """
    tokens: list[tuple[int, int]] = []  # (id, where its characters start)
    done = 0  # characters in the chunks so far

    def cut(count: int) -> Chunk:
        nonlocal done
        start, done = done, tokens[count][1] if count < len(tokens) else len(text)
        chunk = Chunk([token for token, _ in tokens[:count]], start, done)
        del tokens[:count]
        return chunk

    for start, end in segments(text):
        ids, offsets = _encode(tokenizer, text[start:end])
        tokens.extend(zip(ids, (start + offset for offset, _ in offsets), strict=True))
        while len(tokens) >= 2 * chunk_size:
            yield cut(chunk_size)
    rest = len(tokens)
    if rest > chunk_size:
        yield cut(chunk_size if 2 * (rest - chunk_size) >= chunk_size else -(-rest // 2))
    if tokens:
        yield cut(len(tokens))


def segments(text: str, length: int = SEGMENT_CHARS) -> Iterator[tuple[int, int]]:
    """Spans of at most `length` characters that join up to the text, cut where a line starts, else at a space.

    The tokenizer sees one segment at a time, so memory stays flat, and where a segment ends depends on the text alone.
    Before the first visible character of a line is where tokenizers join least.
    """
    start = 0
    while len(text) - start > length:
        window = text[start : start + length + 1]
        end = max((match.end() for match in _LINE_START.finditer(window)), default=0) or window.rfind(" ", 1)
        end = min(end, length) if end > 0 else length
        yield start, start + end
        start += end
    if start < len(text):
        yield start, len(text)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """What `core.loading.encode` gives (a test holds the two together), with the characters of each token.

    But what looks like a control token in a book is text, and must not end or begin anything.
    """
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    encoded = tokenizer(text, return_offsets_mapping=True, **options)
    return encoded["input_ids"], encoded["offset_mapping"]
