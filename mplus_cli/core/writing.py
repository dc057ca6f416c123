"""The write pass: read a chunk after the newest memory tokens, make new ones (MemoryLLM section 3.1, A.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from mplus_cli.core.cache import MemoryCache
from mplus_cli.core.layer_pass import LayerPass
from mplus_cli.core.memory import Memory
from mplus_cli.core.placement import joined
from mplus_cli.core.prefix import TokenPrefix
from mplus_cli.errors import UsageError

if TYPE_CHECKING:
    from mplus_cli.core.modeling_mplus import MPlusForCausalLM


class Newest(Protocol):
    """The newest memory tokens of every layer, [B, p, d] each. A layer is asked for when the pass gets there."""

    def __getitem__(self, layer: int, /) -> torch.Tensor: ...


class WritePass:
    """One chunk per row on its way to memory tokens, under the adapter in use. No logits, no cache kept.

    In every layer the rows are `[BOS_l | newest memory tokens | text]`. The last K of them get the new-memory embedding
    before the layer and are its new memory tokens after it. A text shorter than K rewrites the newest K - n memory
    tokens, whose outputs do not travel on to the next layer.

    Args:
        input_ids: [B, n], left-padded. With padding every row must hold at least K tokens.
        newest: the newest memory tokens (`held` <= K per layer); None where `held` is 0.

    Attributes:
        count: memory tokens that it makes, min(K, held + n).
        made: [B, count, d] of every layer that it has been through.
    """

    def __init__(
        self,
        model: MPlusForCausalLM,
        input_ids: torch.Tensor,
        newest: Newest | None,
        held: int,
        attention_mask: torch.Tensor | None = None,
    ) -> None:
        self.length = input_ids.shape[1]
        self.count = min(model.config.memory_tokens_per_write, held + self.length)
        self.made: list[torch.Tensor] = []
        self._model, self._newest = model, newest
        rewritten = max(0, self.count - self.length)
        self._kept = held - rewritten
        prefix = NewestPrefix(model, len(input_ids), newest, self._kept)
        self._layers: LayerPass | None = LayerPass(
            model, model.embed(input_ids), prefix, MemoryCache(), attention_mask, rewritten, self._enter, self._leave
        )

    def run(self, end: int | None = None) -> list[torch.Tensor]:
        """Go on through the layers to `end` (not included; None for all there are).

        Returns:
            After the last layer the memory tokens of each of the model's spans, [B, layers, count, d]; before, nothing.
        """
        if self._layers is not None:
            self._layers.run(end)
        if len(self.made) < len(self._model.model.layers):
            return []
        self._layers = self._newest = None  # what follows on this pass needs what it made and no more
        return [torch.stack(self.made[span.layers], dim=1) for span in self._model.spans]

    def _enter(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        if self.count > self.length and self._newest is not None:
            rewritten = self._newest[index][:, self._kept :]
            hidden = torch.cat([rewritten.to(hidden), hidden], dim=1)
        tail = hidden[:, -self.count :] + self._model.new_memory_positional_emb.to(hidden.device)
        return torch.cat([hidden[:, : -self.count], tail], dim=1) if hidden.shape[1] > self.count else tail

    def _leave(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        self.made.append(hidden[:, -self.count :])
        return hidden[:, -self.length :]


class NewestPrefix(TokenPrefix):
    """`[BOS_l | the first of the newest memory tokens]`, each layer's when it is there."""

    def __init__(self, model: MPlusForCausalLM, batch: int, newest: Newest | None, count: int) -> None:
        super().__init__(model, batch, None, count=count)
        self.newest = newest

    def rows(self, index: int) -> torch.Tensor | None:
        """See `TokenPrefix.rows`."""
        return None if self.newest is None or not self.count else self.newest[index][:, : self.count]


def write_pass(
    model: MPlusForCausalLM,
    input_ids: torch.Tensor,
    context: torch.Tensor | None,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """A whole `WritePass`. Differentiable.

    Args:
        context: [B, L, p, d], the newest memory tokens (p <= K), or None.

    Returns:
        [B, L, min(K, p + n), d].
    """
    newest, held = (None, 0) if context is None else (context.unbind(1), context.shape[2])
    return joined(WritePass(model, input_ids, newest, held, attention_mask).run(), dim=1)


def newest_tokens(model: MPlusForCausalLM, memory: Memory, rows: Sequence[int]) -> list[torch.Tensor]:
    """The newest tokens of these rows of memory, equally many in all, by layer: [B, <= K, d] on the layer's device."""
    count = model.config.memory_tokens_per_write
    by_row = [memory.short_term.newest_parts(row, count) for row in rows]
    parts = [
        torch.stack(part).to(span.device) for part, span in zip(zip(*by_row, strict=True), model.spans, strict=True)
    ]
    return [tokens for part in parts for tokens in part.unbind(1)]


def write_groups(
    input_ids: torch.Tensor, held: Sequence[int], size: int, attention_mask: torch.Tensor | None
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor | None]]:
    """Rows that can share one write pass: equally long context, and equally long text or at least K tokens of it each.

    Args:
        input_ids: [B, n], left-padded; attention_mask: [B, n] or None.
        held: newest memory tokens that each row's write reads, at most K; size: K.

    Yields:
        Rows of text, their ids [b, m], and mask [b, m] or None.
    """
    width = input_ids.shape[1]
    lengths = [width] * len(input_ids) if attention_mask is None else attention_mask.sum(1).tolist()
    if min(lengths) == 0:
        raise UsageError("A row of text is empty.", "Inject at least one token per row.")
    groups: dict[tuple[int, int], list[int]] = {}
    for row, length in enumerate(lengths):
        groups.setdefault((held[row], min(size, length)), []).append(row)
    for rows in groups.values():
        longest = max(lengths[row] for row in rows)
        padded = attention_mask is not None and any(lengths[row] != longest for row in rows)
        mask = attention_mask[rows, width - longest :] if attention_mask is not None and padded else None
        yield rows, input_ids[rows, width - longest :], mask
