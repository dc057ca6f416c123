"""A long text and what is asked about it: cut to a length, the end of it kept for the prompt.

What a model reads is `text + frame + answer`. The M+ paper gives it 8k or 16k tokens altogether, cuts the rest away at
the left, injects the text in chunks, and reads its end, as much as makes 2,048 tokens with frame and answer, together
with the frame (section 4.4). LongBench cuts in the middle.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mplus_cli.core.loading import encode
from mplus_cli.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEPT_CHUNKS = 4  # of text, frame and answer that are read and not written: 2,048 tokens in chunks of 512


@dataclass(frozen=True)
class LongInput:
    """A text that is cut, if need be, and parted.

    Attributes:
        document: what is to be remembered; recent: the end of the text, read with the frame.
        tokens: of the whole text before it was cut; dropped: of them that were cut away.
        lost: characters [from, to) of the whole text that were cut away.
        starts: character of the whole text that each of its tokens begins with.
    """

    document: str
    recent: str
    tokens: int
    dropped: int
    lost: tuple[int, int]
    starts: tuple[int, ...] = field(repr=False)

    @property
    def text(self) -> str:
        """All that is kept."""
        return self.document + self.recent

    def distance(self, place: int) -> int | None:
        """Tokens that are kept after a character of the whole text; None where that was cut away."""
        if self.lost[0] <= place < self.lost[1]:
            return None
        after = self.tokens - bisect_right(self.starts, place)
        return after if place >= self.lost[1] else after - self.dropped


def long_input(
    text: str,
    frame: str,
    answer: int,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int | None,
    keep: int,
    cut: Literal["left", "middle"] = "left",
) -> LongInput:
    """Cut a text so that it has `length` tokens together with its frame and answer, and part it.

    Args:
        frame: what stands after the text and is never cut: the question.
        answer: tokens of the longest answer.
        length: of everything; None for no cut.
        keep: tokens of the end of the text, the frame and the answer together that are read and not remembered.
        cut: where text is cut away. `middle` leaves as much of the beginning as of the end, frame included.

    Raises:
        UsageError: frame and answer alone are longer than `length`.
    """
    spans: list[tuple[int, int]] = tokenizer(
        text, return_offsets_mapping=True, add_special_tokens=False, split_special_tokens=True, verbose=False
    )["offset_mapping"]
    count, around = len(spans), len(encode(tokenizer, frame)) + answer
    room = count if length is None else length - around
    if room < 0:
        raise UsageError(
            f"the question and its answer take {around:,} tokens, more than --length {length:,}", "give a larger one"
        )
    head, tail = 0, min(count, room)
    if cut == "middle" and room < count and length is not None:
        head = min(room, (length - answer) // 2)
        tail = room - head
    lost = (
        (spans[head - 1][1] if head else 0, spans[count - tail][0] if tail else len(text)) if room < count else (0, 0)
    )
    recent = max(0, min(keep - around, tail))
    start = spans[count - recent][0] if recent else len(text)
    document = text[: lost[0]] + text[lost[1] : start]
    starts = tuple(first for first, _ in spans)
    return LongInput(document, text[start:], count, max(0, count - room), lost, starts)


def cut_away(sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
    """What share of the text was cut away to fit the length, before any system saw it; a task's last metric."""
    metadata = sample["metadata"]
    return metadata["dropped_tokens"] / max(1, metadata["text_tokens"]) if "text_tokens" in metadata else None
