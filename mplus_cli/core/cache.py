"""Key/value caches whose first entries are memory, for stock Hugging Face decoder layers."""

from __future__ import annotations

from typing import cast

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

GROWTH = 256  # text tokens of room that are added at a time
MOST_AHEAD = 1024  # tokens of an answer that room is made for before there are any


def text_room(tokens: int) -> int:
    """Tokens of room that a buffer has for a text of `tokens`."""
    return -(-tokens // GROWTH) * GROWTH


def text_ahead(prompt: int, answer: int) -> int:
    """Tokens that room is made for when a prompt is read that an answer of at most so many is to follow."""
    return prompt + min(answer, MOST_AHEAD)


class PrefixLayer(CacheLayerMixin):
    """One layer's prefix followed by text, joined by concatenation, so that gradients flow into the prefix."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.text_length = 0

    def set_prefix(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Start over with this prefix. keys, values: [B, H_kv, P, D]."""
        self.keys, self.values, self.text_length, self.is_initialized = keys, values, 0, True

    def lazy_initialization(self, *args, **kwargs) -> None:
        """Nothing to do: the prefix is set before the layer runs."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        self.keys = torch.cat([self.keys, key_states], dim=2)
        self.values = torch.cat([self.values, value_states], dim=2)
        self.text_length += key_states.shape[2]
        return self.keys, self.values

    def keep_text(self, length: int) -> None:
        """Forget the text after the first `length` tokens."""
        end = self.keys.shape[2] - self.text_length + length
        self.keys, self.values, self.text_length = self.keys[:, :, :end], self.values[:, :, :end], length

    def get_seq_length(self, *args) -> int:
        """Text tokens only: for `generate`, the memory is not part of the prompt."""
        return self.text_length

    def get_mask_sizes(self, query_length, *args) -> tuple[int, int]:
        return self.text_length + (query_length if isinstance(query_length, int) else len(query_length)), 0

    def get_max_cache_shape(self) -> int:
        return -1

    get_max_length = get_max_cache_shape


class BufferLayer(PrefixLayer):
    """The same in one preallocated buffer: appending text copies only that text, and a prefix can be reused."""

    def __init__(self) -> None:
        super().__init__()
        self.prefix_length = 0

    def reserve(self, like: torch.Tensor, prefix_length: int, text: int = 1) -> None:
        """Make room for a prefix and at least `text` tokens. like: [B, H_kv, *, D] gives shape, dtype, device."""
        batch, heads, _, width = like.shape
        self.keys = like.new_empty(batch, heads, prefix_length + text_room(text), width)
        self.values = torch.empty_like(self.keys)
        self.values[:, :, prefix_length:] = 0  # a weight of zero times what lay in memory might be no number
        self.prefix_length, self.text_length, self.is_initialized = prefix_length, 0, True

    def write_prefix(self, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put part of the prefix at `start`."""
        self.keys[:, :, start : start + keys.shape[2]] = keys
        self.values[:, :, start : start + values.shape[2]] = values

    def begin_text(self) -> None:
        """Forget the text of an earlier pass."""
        self.text_length = 0

    def keep_text(self, length: int) -> None:
        """Forget the text after the first `length` tokens."""
        self.text_length = length

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        begin = self.prefix_length + self.text_length
        end = self.extend(key_states.shape[2])
        self.keys[:, :, begin:end] = key_states
        self.values[:, :, begin:end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def extend(self, count: int) -> int:
        """Count `count` more tokens of text, with room for them; returns where they end."""
        self.text_length += count
        end = self.prefix_length + self.text_length
        if end > self.keys.shape[2]:
            self._grow(end)
        return end

    def _grow(self, needed: int) -> None:
        text = needed - self.prefix_length
        room = self.prefix_length + text_room(text + text // 4 + 1) - self.keys.shape[2]
        tail = self.keys.new_zeros(*self.keys.shape[:2], room, self.keys.shape[3])
        self.keys = torch.cat([self.keys, tail], dim=2)
        self.values = torch.cat([self.values, tail], dim=2)


class MemoryCache(Cache):
    """One cache layer per decoder layer, plus what a forward pass must know of the prefix.

    Attributes:
        memory: the `Memory` to read when the first tokens arrive, if any.
        prefix_length: entries before the text in every layer, P.
        offset: int64 [B], position of the first text token of each row.
        prefix_valid: bool [B, P], which prefix entries exist in each row, or None when all do.
        text_valid: bool [B, n], which cached text tokens exist.
        tables: cos and sin of the prefix's positions, two [1, P, D].
        text_length: tokens of text to make room for, where that is known beforehand; 0 where it is not.
        source: what the prefix was made from, for reuse (see `prefix.MemoryPrefix`).
        complete: whether every layer's prefix has been loaded.
        superseded: whether a later read took over the buffers, so that this cache must not be continued.
    """

    def __init__(self, memory=None, text_length: int = 0) -> None:
        super().__init__(layers=[])
        self.memory = memory
        self.prefix_length = 0
        self.text_length = text_length
        self.offset: torch.Tensor | None = None
        self.prefix_valid: torch.Tensor | None = None
        self.text_valid: torch.Tensor | None = None
        self.tables: tuple[torch.Tensor, torch.Tensor] | None = None
        self.source: tuple | None = None
        self.complete = False
        self.superseded = False

    def keep_text(self, length: int) -> None:
        """Forget the text after the first `length` tokens; the memory stays. (`Cache.crop` differs by release.)"""
        for layer in cast(list[PrefixLayer], self.layers):
            layer.keep_text(length)
        if self.text_valid is not None:
            self.text_valid = self.text_valid[:, :length]

    def extend_text(self, attention_mask: torch.Tensor | None, batch: int, length: int, device) -> torch.Tensor:
        """Take in the mask of `length` new tokens, [B, length] or [B, earlier + length]; returns the whole, bool."""
        past = self.get_seq_length()
        if attention_mask is None:
            mask = torch.ones(batch, length, dtype=torch.bool, device=device)
        else:
            mask = attention_mask.to(device=device, dtype=torch.bool)
        if self.text_valid is not None and past and mask.shape[1] == length:
            mask = torch.cat([self.text_valid, mask], dim=1)
        self.text_valid = mask
        return mask
