"""The token embeddings on the host: a gigabyte of an 8B model, of which a pass needs the rows of its own tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

LEAST_BYTES = 256 << 20  # from here on the device memory is worth a copy of some rows per pass


class HostEmbedding(nn.Module):
    """`nn.Embedding` that looks up on the host and gives rows on the device of its model, bit for bit the same.

    Token ids that come on the host do not make it wait for the device; others do, as reading a generated token does.
    `module.to(device)` moves where rows are given, and leaves the table.

    Attributes:
        weight: [V, d], on the host.
        device: where rows are given.
    """

    def __init__(self, weight: torch.Tensor, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().to("cpu"), requires_grad=False)
        self.device = device

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 [B, n] -> [B, n, d]."""
        table = self.weight
        if self.device.type != "cuda":
            return F.embedding(ids.cpu(), table).to(self.device)
        rows = torch.empty(*ids.shape, table.shape[1], dtype=table.dtype, pin_memory=True)
        torch.index_select(table.detach(), 0, ids.reshape(-1).cpu(), out=rows.view(-1, table.shape[1]))
        return rows.to(self.device, non_blocking=True)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> HostEmbedding:
        """As in every module, but for the device of the table."""
        made = fn(torch.empty(0, dtype=self.weight.dtype))
        self.device = made.device
        self.weight.data = self.weight.data.to(made.dtype)
        return self


def embeddings_on_host(model: Any, least: int = LEAST_BYTES) -> bool:
    """Keep a memory model's token embeddings on the host, for inference, if they are not the head's too.

    Args:
        least: bytes from which on it is done.

    Returns:
        Whether it was done.
    """
    table = model.get_input_embeddings()
    if type(table) is not nn.Embedding or table.weight is model.lm_head.weight or table.weight.nbytes < least:
        return False
    model.set_input_embeddings(HostEmbedding(table.weight, table.weight.device))
    return True
