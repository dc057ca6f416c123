"""Generated tokens through one compiled graph over buffers of fixed size: on a GPU, one launch instead of hundreds.

A token costs a GPU little more than reading the weights and the cache; asking for it layer by layer takes the host
longer. `torch.compile` makes one graph of all layers, which CUDA replays (`mode="reduce-overhead"`). For that nothing
may change its size: every step attends to the whole buffer, prefix, text and what is still empty, under a mask.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from mplus_cli.core.attention import NAME
from mplus_cli.core.cache import BufferLayer, MemoryCache
from mplus_cli.errors import UsageError

if TYPE_CHECKING:
    from mplus_cli.core.modeling_mplus import MPlusForCausalLM

MOST_SIZES = 128  # that are compiled; after 8 of them torch would go on without its compiler, and only log it


class StepCache:
    """What the attention of one step calls a cache: puts a token's key and value in place and gives the whole buffers.

    Args:
        keys, values: per layer [B, H_kv, T, D]; at: int64 [1], where the token goes.
    """

    def __init__(self, keys: list[torch.Tensor], values: list[torch.Tensor], at: torch.Tensor) -> None:
        self.keys, self.values, self.at = keys, values, at

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *args: Any, **kwargs: Any):
        """key, value: [B, H_kv, 1, D]."""
        self.keys[layer].index_copy_(2, self.at, key)
        self.values[layer].index_copy_(2, self.at, value)
        return self.keys[layer], self.values[layer]


class CompiledDecoder:
    """The layers of a model for one further token per row, compiled when first used and again for every other size.

    Sizes change where memory fills up, and with the room for text, which is rounded up; a full memory has few.

    Args:
        backend: of `torch.compile`; mode: "reduce-overhead" where there are CUDA graphs, by default.

    Raises:
        UsageError: an attention implementation that cannot look at a buffer through a mask, or nothing to compile with.
    """

    def __init__(self, model: MPlusForCausalLM, backend: str = "inductor", mode: str | None = None) -> None:
        if model.attn_implementation != "sdpa":
            raise UsageError(
                f"Compiled decoding does not go with {model.attn_implementation} attention.",
                'Load the model with attn_implementation="sdpa", or leave out --compile.',
            )
        if backend == "inductor":
            _check_compiler(model.device)
        if mode is None and backend == "inductor" and model.device.type == "cuda":
            mode = "reduce-overhead"
        self.model = model
        self._step = torch.compile(self._layers, backend=backend, mode=mode, dynamic=False)
        self._graphs = mode == "reduce-overhead"

    def takes(self, hidden: torch.Tensor, cache: MemoryCache) -> bool:
        """Whether this is a further token behind a prefix in buffers, all on one device."""
        return (
            cache.complete
            and hidden.shape[1] == 1
            and not torch.is_grad_enabled()
            and self.model.model.config._attn_implementation == NAME  # a search in attention has its own
            and all(type(layer) is BufferLayer and layer.keys.device == hidden.device for layer in cache.layers)
        )

    def __call__(self, hidden: torch.Tensor, cache: MemoryCache, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """One token per row, [B, 1, d] -> [B, 1, d] before the final norm; see `LayerPass` for the mask."""
        assert cache.offset is not None  # every prefix sets it
        layers: list[Any] = cache.layers
        text = cache.extend_text(attention_mask, hidden.shape[0], 1, hidden.device)
        positions = (cache.offset[:, None] + text.sum(1, keepdim=True) - 1).clamp(min=0)
        for layer in layers:
            layer.extend(1)
        capacity = layers[0].keys.shape[2]
        at = torch.tensor([cache.prefix_length + text.shape[1] - 1], device=hidden.device)
        keys, values = [layer.keys for layer in layers], [layer.values for layer in layers]
        if self._graphs:
            for buffer in (*keys, *values):
                torch._dynamo.mark_static_address(buffer, guard=False)  # else every replay would copy it
            torch.compiler.cudagraph_mark_step_begin()
        tables = self.model.position_tables(positions)
        with torch._dynamo.config.patch(recompile_limit=MOST_SIZES):
            return self._step(hidden, positions, *tables, _seen(cache, text, capacity), at, keys, values)

    def _layers(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        seen: torch.Tensor,
        at: torch.Tensor,
        keys: list[torch.Tensor],
        values: list[torch.Tensor],
    ) -> torch.Tensor:
        cache = StepCache(keys, values, at)
        for layer in self.model.model.layers:
            hidden = layer(
                hidden,
                attention_mask=seen,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                position_embeddings=(cos, sin),
            )
        return hidden


def _check_compiler(device: torch.device) -> None:
    """Refuse before anything slow is done where torch has nothing to compile with."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise UsageError("Compiled decoding on a GPU needs Triton.", "pip install triton, or leave out --compile.")
        return
    from torch._inductor import cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception as error:  # of a class that moved between releases
        raise UsageError("Compiled decoding needs a C++ compiler.", "Install g++, or leave out --compile.") from error


def _seen(cache: MemoryCache, text: torch.Tensor, capacity: int) -> torch.Tensor:
    """bool [B, 1, 1, capacity]: entries of the prefix and of the text that exist; the room behind them does not."""
    seen = text.new_zeros(text.shape[0], capacity)
    seen[:, : cache.prefix_length] = True if cache.prefix_valid is None else cache.prefix_valid
    seen[:, cache.prefix_length : cache.prefix_length + text.shape[1]] = text
    return seen[:, None, None]
