"""The layer loop: text rows behind a prefix on their way through the decoder's layers, some layers at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from mplus_cli.core.attention import causal_mask, fits_cache, padded_mask
from mplus_cli.core.cache import MemoryCache
from mplus_cli.core.prefix import Prefix

if TYPE_CHECKING:
    from mplus_cli.core.modeling_mplus import MPlusForCausalLM

Hook = Callable[[int, torch.Tensor], torch.Tensor]  # (layer index, rows [B, n, d]) -> rows


class LayerPass:
    """One pass of text rows through every layer. Layers may lie on several devices: the rows go from one to the next.

    Args:
        hidden: [B, n, d], embedded tokens.
        prefix: loaded into `cache` layer by layer; None to continue a cache that has its prefix.
        attention_mask: [B, n] or [B, earlier + n], 0 on left padding.
        extra_rows: rows that `enter` puts before the text in every layer.
        enter, leave: hooks (index, rows) -> rows around each layer.

    Attributes:
        hidden: the rows as they are before layer `next`.
    """

    def __init__(
        self,
        model: MPlusForCausalLM,
        hidden: torch.Tensor,
        prefix: Prefix | None,
        cache: MemoryCache,
        attention_mask: torch.Tensor | None = None,
        extra_rows: int = 0,
        enter: Hook | None = None,
        leave: Hook | None = None,
    ) -> None:
        self.model, self.hidden, self.prefix, self.cache = model, hidden, prefix, cache
        self.enter, self.leave = enter, leave
        batch, length = hidden.shape[0], hidden.shape[1] + extra_rows
        if prefix is not None:
            prefix.attach(cache)
            cache.offset, cache.prefix_valid, cache.prefix_length = prefix.offset, prefix.valid, prefix.length
        assert cache.offset is not None  # every prefix sets it
        whole = attention_mask is None and not cache.get_seq_length()  # known here without asking the device
        text = cache.extend_text(attention_mask, batch, length, hidden.device)
        self.positions = (cache.offset[:, None] + text.cumsum(1)[:, -length:] - 1).clamp(min=0)
        self.tables = model.position_tables(self.positions)
        holes = cache.prefix_valid is not None or not (whole or bool(text.all()))
        self.mask = _mask(model, cache, text, length, hidden.dtype, holes)
        self.next = 0

    def run(self, end: int | None = None) -> torch.Tensor:
        """Go on through layers `next` to `end` (not included; None for all there are).

        Returns:
            Hidden states [B, n, d] after them; after the last layer on its device, before the final norm.
        """
        last = len(self.model.model.layers)
        end = last if end is None else end
        for span in self.model.spans:
            if self.next < min(end, span.end):
                self._move(span.device)
                for index in range(self.next, min(end, span.end)):
                    self._run_layer(index)
                self.next = min(end, span.end)
        if self.next == last:
            self.cache.complete = True
        return self.hidden

    def _run_layer(self, index: int) -> None:
        if self.prefix is not None:
            self.prefix.load(index, self.hidden, self.cache)
        rows = self.hidden if self.enter is None else self.enter(index, self.hidden)
        rows = self.model.model.layers[index](
            rows,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            position_embeddings=self.tables,
        )
        self.hidden = rows if self.leave is None else self.leave(index, rows)

    def _move(self, device: torch.device) -> None:
        if self.hidden.device == device:
            return
        self.hidden, self.positions = self.hidden.to(device), self.positions.to(device)
        cos, sin = self.tables
        self.tables = cos.to(device), sin.to(device)
        self.mask = None if self.mask is None else self.mask.to(device)


def _mask(
    model: MPlusForCausalLM, cache: MemoryCache, text: torch.Tensor, length: int, dtype: torch.dtype, holes: bool
) -> torch.Tensor | None:
    """The mask for the attention in use; None where everything before and including oneself is seen.

    Args:
        text: bool [B, n], which text exists; holes: whether anything of prefix or text does not.
    """
    total = cache.prefix_length + text.shape[1]
    if not holes:
        # Where attention does not know the bottom-right causal mask it is made once for all layers.
        rows = text.shape[0] * model.config.text_config.num_attention_heads * length
        known = text.is_cuda or length == 1 or (text.is_cpu and fits_cache(rows, total))
        implied = model.attn_implementation != "eager" and known
        return None if implied else causal_mask(length, total, dtype, text.device)
    valid = cache.prefix_valid
    if valid is None:
        valid = text.new_ones(text.shape[0], cache.prefix_length)
    valid = torch.cat([valid, text], dim=1)
    return valid if model.attn_implementation == "flash_attention_2" else padded_mask(valid, length, dtype)
