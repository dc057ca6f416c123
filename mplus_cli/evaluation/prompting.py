"""From prompts to answers, the one place: cut to fit, pad, generate greedily as one batch, weigh options, stop.

It serves memory models and plain Hugging Face models alike; what they read before the prompt comes in `first`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from mplus_cli.core.cache import MemoryCache
from mplus_cli.core.loading import encode
from mplus_cli.core.padding import left_pad
from mplus_cli.errors import UsageError

Cut = Literal["left", "middle"]


class Weighed(NamedTuple):
    """How likely an option is after a prompt.

    Attributes:
        logprob: log-likelihood, summed over its tokens, in nats.
        tokens: how many it has; likeliest: how many of them are the likeliest one where they stand, after the prompt
            and the option's own tokens before.
    """

    logprob: float
    tokens: int
    likeliest: int


@dataclass
class Generated:
    """The answer to one prompt.

    Attributes:
        raw: all that was generated; text: the answer after the stop rule.
        tokens: generated, the one that ended the answer included; stop: `end`, `line`, `text` or `length`.
        options: what each of the prompt's options weighs.
    """

    raw: str
    text: str
    tokens: int
    stop: str
    options: list[Weighed] = field(default_factory=list)

    @property
    def option_logprobs(self) -> list[float]:
        return [option.logprob for option in self.options]

    def weighed(self) -> dict[str, Any]:
        """What `Answer.extra` holds of the options; nothing where there are none."""
        if not self.options:
            return {}
        return {
            "option_logprobs": self.option_logprobs,
            "option_tokens": [option.tokens for option in self.options],
            "option_likeliest": [option.likeliest for option in self.options],
        }


@dataclass(frozen=True)
class Prompt:
    """What one row reads: token ids, longest answer, and the token ids of options to be weighed."""

    ids: Sequence[int]
    max_new_tokens: int
    options: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class Fitted:
    """A text cut to a number of tokens.

    Attributes:
        tokens: of the whole text; dropped: how many of them were cut away.
    """

    text: str
    tokens: int
    dropped: int


def cut_text(text: str, room: int, tokenizer: PreTrainedTokenizerBase, cut: Cut = "left") -> Fitted:
    """At most `room` tokens of a text: its end, or with a `middle` cut as much of its beginning as of its end."""
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    count = len(offsets)
    if count <= room:
        return Fitted(text, count, 0)
    head = room // 2 if cut == "middle" else 0
    tail = room - head
    kept = text[: offsets[head - 1][1]] if head else ""
    kept += text[offsets[count - tail][0] :] if tail else ""
    return Fitted(kept, count, count - room)


def fit(
    context: str,
    frame: Callable[[str], str],
    window: int,
    tokenizer: PreTrainedTokenizerBase,
    cut: Cut = "left",
) -> tuple[list[int], str, Fitted]:
    """A prompt of at most `window` tokens: the context is cut, never what stands around it.

    Args:
        frame: puts a context into the prompt.

    Returns:
        Token ids, their text, and what became of the context.

    Raises:
        UsageError: the prompt is longer than the window without any context.
    """
    whole = cut_text(context, window, tokenizer, cut)
    text = frame(whole.text)
    ids = encode(tokenizer, text)
    fitted, room = whole, whole.tokens - whole.dropped
    while len(ids) > window:
        if room == 0:
            raise UsageError(
                f"A prompt of {len(ids)} tokens is longer than the window of {window} without any of its documents.",
                "Choose a larger window (size=...) or a model that reads more.",
            )
        room = max(0, room - (len(ids) - window))
        fitted = cut_text(context, room, tokenizer, cut)
        text = frame(fitted.text)
        ids = encode(tokenizer, text)
    return ids, text, fitted


def apply_stop(raw: str, rule: str) -> str:
    """The answer in what was generated: its first line that has text (`line`), or all of it (`none`)."""
    return raw.lstrip().partition("\n")[0].strip() if rule == "line" else raw.strip()


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    ends: Sequence[int],
    stop: str = "line",
    start: Sequence[int] = (),
    first: dict[str, Any] | None = None,
    prefill: AbstractContextManager | None = None,
    kept: Kept | None = None,
    until: Sequence[str] = (),
) -> list[Generated]:
    """Answer prompts greedily, as the rows of one batch.

    Args:
        ends: ids that end an answer.
        stop: `line` or `none`, see `Task.stop`.
        start: ids before every prompt.
        first: further arguments of the first pass (`memory=...`).
        prefill: entered around the first pass alone.
        kept: of the prompt before, for a single prompt to a plain model: what both begin with is not read again.
        until: texts that end an answer too, as soon as it holds one of them.
    """
    if not all(len(prompt.ids) for prompt in prompts):
        raise UsageError("A prompt is empty.", "Every question needs a text to be read.")
    ids, mask = left_pad([prompt.ids for prompt in prompts], start, model.device)
    reader = _Reader(model, torch.ones_like(ids) if mask is None else mask)
    done = kept.lend(reader, ids[0].tolist()) if kept else 0
    with prefill or nullcontext():
        logits = reader.read(ids[:, done:], **(first or {}))
    weighed = _weigh(reader, logits, [prompt.options for prompt in prompts])
    rows = [_Row(tokenizer, prompt.max_new_tokens, ends, stop, until) for prompt in prompts]
    while True:
        chosen = logits.argmax(-1)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            row.take(token)
        if all(row.stop for row in rows):
            break
        logits = reader.read(chosen[:, None])
    if kept:
        kept.ids, kept.cache = ids[0].tolist(), reader.cache
    return [row.result(scores) for row, scores in zip(rows, weighed, strict=True)]


class _Reader:
    """A forward pass after another, with the cache, mask and positions in between."""

    def __init__(self, model: Any, mask: torch.Tensor) -> None:
        self.model, self.mask = model, mask
        self.padded = not bool(mask.all())
        self.cache: Any = None
        self.done = 0  # columns of the mask that have been read

    def read(self, ids: torch.Tensor, keep: int = 1, **first: Any) -> torch.Tensor:
        """Logits [B, V] of the last of these tokens [B, n], or [B, keep, V] of the last `keep`."""
        begin, self.done = self.done, self.done + ids.shape[1]
        if (new := self.done - self.mask.shape[1]) > 0:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), new)], dim=1)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        out = self.model(
            input_ids=ids,
            attention_mask=self.mask if self.padded else None,
            position_ids=positions[:, begin : self.done],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
            **first,
        )
        self.cache = out.past_key_values
        return out.logits[:, -1] if keep == 1 else out.logits

    def back(self, length: int, held: int) -> None:
        """Forget what was read after the first `length` tokens, of which the cache holds `held`."""
        self.mask, self.done = self.mask[:, :length], length
        if isinstance(self.cache, MemoryCache):
            self.cache.keep_text(held)
        else:
            cut_cache(self.cache, held)


def cut_cache(cache: Any, length: int) -> None:
    """Forget all but the first `length` tokens (`Cache.crop` takes another number in another release)."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]


class Kept:
    """Keys and values of a plain model's last prompt, lent to the next one as far as both begin alike."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.cache: Any = None

    def lend(self, reader: _Reader, ids: list[int]) -> int:
        """Give the reader what holds of `ids` too; returns how many tokens. At least the last one is to be read."""
        shared = next((at for at, (a, b) in enumerate(zip(self.ids, ids, strict=False)) if a != b), None)
        shared = min(len(self.ids), len(ids) - 1) if shared is None else min(shared, len(ids) - 1)
        if shared and self.cache is not None:
            cut_cache(self.cache, shared)
            reader.cache, reader.done = self.cache, shared
            return shared
        return 0


def _weigh(reader: _Reader, logits: torch.Tensor, options: Sequence[Sequence[Sequence[int]]]) -> list[list[Weighed]]:
    """What every option of every row weighs; `logits` [B, V] are those of the prompt's last token."""
    weighed: list[list[Weighed]] = [[] for _ in options]
    length, held = reader.mask.shape[1], reader.cache.get_seq_length()
    for number in range(max((len(row) for row in options), default=0)):
        tokens = [list(row[number]) if number < len(row) else [] for row in options]
        width = max(map(len, tokens))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens], device=logits.device)
        after = [logits[:, None]]
        if width > 1:
            after.append(reader.read(ids[:, :-1], keep=width - 1).view(len(ids), width - 1, -1))
            reader.back(length, held)
        found = torch.cat(after, dim=1).float().log_softmax(-1)
        each, likeliest = found.gather(2, ids[:, :, None])[:, :, 0], found.argmax(-1) == ids
        for row, own in enumerate(tokens):
            if number < len(options[row]):
                count = len(own)
                weighed[row].append(Weighed(float(each[row, :count].sum()), count, int(likeliest[row, :count].sum())))
    return weighed


class _Row:
    """The answer of one row while it grows."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, limit: int, ends: Sequence[int], rule: str, until: Sequence[str]
    ) -> None:
        self.tokenizer, self.limit, self.ends, self.rule, self.until = tokenizer, limit, ends, rule, until
        self.ids: list[int] = []
        self.stop = ""

    def take(self, token: int) -> None:
        if self.stop:
            return
        self.ids.append(token)
        if token in self.ends:
            self.stop = "end"
        elif self.rule == "line" and "\n" in self._text().lstrip():
            self.stop = "line"
        elif self.until and any(text in self._text() for text in self.until):
            self.stop = "text"
        elif len(self.ids) >= self.limit:
            self.stop = "length"

    def result(self, options: list[Weighed]) -> Generated:
        raw = self._text()
        return Generated(raw, apply_stop(raw, self.rule), len(self.ids), self.stop, options)

    def _text(self) -> str:
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
