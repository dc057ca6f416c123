"""A small model whose costs are measured against the formulas, and the measure of its tensors."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.profiling.estimate import Cell
from mplus_cli.profiling.systems import find_systems

TEXT = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "vocab_size": 500,
    "max_position_embeddings": 8192,
    "bos_token_id": 1,
}
MEMORY = {
    "memory_tokens_per_write": 16,
    "short_term_size": 512,
    "long_term_capacity": 20_000,
    "retrieval_budget": 64,
    "retriever_size": 16,
    "chunk_size": 32,
    "lora": {"r": 4, "alpha": 8},
}
CPU = torch.device("cpu")


def small_config(**changes: Any) -> dict[str, Any]:
    """config.json of a model of 0.2M parameters."""
    return {"model_type": "mplus", "text_config": TEXT, **MEMORY, **changes}


def config_folder(folder: Path, **changes: Any) -> Path:
    """A folder with a configuration and no weights, as `--random-weights` takes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(small_config(**changes)))
    return folder


def small_model_config(**changes: Any) -> MPlusConfig:
    return MPlusConfig.from_dict(small_config(**changes))


def cell(system: str = "mplus", length: int = 4096, prompt: int = 100, merged: bool = True, **changes: Any) -> Cell:
    (asked,) = find_systems((system,), False)
    values = {"new_tokens": 4, "stored": 0, "device": CPU} | changes
    return Cell(asked, length, prompt, merged=merged, **values)


class TensorPeak(TorchDispatchMode):
    """Most bytes of tensors that were alive at once while this was entered, of those made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, out)
        return out

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.device.type == "meta" or storage in self._known:
            return
        count = storage.nbytes()
        self._known[storage] = count
        self.now += count
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, count)

    def _gone(self, count: int) -> None:
        self.now -= count
