"""From a live Memory to the frames of a state file and back. What the tensors mean: see `log`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mplus_cli.core.state.frame import DTYPES, NAMES, Block, Content
from mplus_cli.core.state.log import StateLog
from mplus_cli.core.state.store import ROWS, StateStore
from mplus_cli.errors import StateError

if TYPE_CHECKING:
    from mplus_cli.core.long_term_memory import LongTermMemory
    from mplus_cli.core.memory import Memory, WriteRecord
    from mplus_cli.core.modeling_mplus import MPlusForCausalLM
    from mplus_cli.core.value_codec import ValueCodec

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "U16": torch.bfloat16}
TORCH_DTYPES |= {"I8": torch.int8, "U8": torch.uint8}


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's bytes as numpy; bfloat16, which numpy does not know, as uint16."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def to_torch(array: np.ndarray, name: str) -> torch.Tensor:
    """The reverse, for a writable array [k, width] or its bytes, given the name its dtype is stored under."""
    plain = torch.from_numpy(array.view("<i2" if name == "U16" else DTYPES[name]))
    return plain.view(TORCH_DTYPES[name])


def stored_name(dtype: torch.dtype) -> str:
    """The safetensors dtype that tensors of a dtype are stored under."""
    return NAMES[to_numpy(torch.empty(0, dtype=dtype)).dtype]


class StoredValues:
    """Long-term values served from the state file (what `LongTermMemory.map_values` takes)."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    def rows(self, layer: int, created: torch.Tensor) -> torch.Tensor:
        """Values as they are stored, checked. int64 [k] -> [k, width]. Raises StateError for a damaged one."""
        return to_torch(self._store.take(layer, created.numpy()), self._store.log.dtype)


def identity_of(model: MPlusForCausalLM, memory: Memory, row: int) -> dict[str, Any]:
    """What a state says it was made with."""
    config = memory.config
    return {
        "model": model.fingerprint(),
        "layers": config.text_config.num_hidden_layers,
        "hidden_size": config.text_config.hidden_size,
        "retriever_size": config.retriever_size if config.has_long_term_memory else 0,
        "memory_tokens_per_write": config.memory_tokens_per_write,
        "short_term_size": config.short_term_size,
        "long_term_capacity": config.long_term_capacity,
        "retrieval_budget": config.retrieval_budget,
        "eviction": config.eviction,
        "initial_recall_frequency": config.initial_recall_frequency,
        "dtype": str(memory.short_term.dtype).removeprefix("torch."),
        "seed": memory.seeds[row],
        **({} if memory.codec.name == "model" else {"values": memory.codec.name}),
    }


def base_content(memory: Memory, row: int, identity: dict[str, Any], job: Any) -> Content:
    """The first frame: all of a memory as it is."""
    values, created = memory.short_term.ordered(row)
    values = memory.codec.encode(values)
    layers, fill, width = values.shape
    stores = memory.long_term[row].layers if memory.long_term else []
    counts = [len(store) for store in stores] or [0] * layers
    by_recall = bool(stores) and identity["eviction"] == "recall_frequency"
    frequency = [to_numpy(store.recall_frequency.float()) if by_recall else np.empty(0, "<f4") for store in stores]
    long_created = [store.created.gather(store.all_positions()).numpy() for store in stores]
    for layer, held in enumerate(long_created):
        if len(np.unique(np.concatenate([created[layer].numpy(), held]))) < fill + len(held):
            raise StateError(
                f"Two memory tokens of layer {layer} have one creation index; a state cannot tell them apart."
            )

    def pieces() -> Iterator[np.ndarray]:
        for layer in range(layers):
            yield to_numpy(values[layer])
        for layer, store in enumerate(stores):
            for positions in store.all_positions().split(ROWS):
                yield to_numpy(memory.codec.encode(store.fetch(layer, positions)))

    keys = None
    if stores:
        blocks = (to_numpy(block) for store in stores for block in store.keys.views())
        keys = Block(stored_name(stores[0].keys.dtype), (sum(counts), stores[0].keys.shape[0]), blocks)
    records = (memory.journal[row] if memory.journal else []) or []
    index = {
        "short_created": created.numpy(),
        "long_created": np.concatenate([np.empty(0, np.int64), *long_created]),
        "long_count": np.array(counts, np.int64),
        "merged_count": np.array([len(part) for part in frequency] or [0] * layers, np.int64),
        "recall_frequency": np.concatenate([np.empty(0, "<f4"), *frequency]),
        "writes": _writes_table(records),
    }
    record = _record(records, job, memory.long_term[row] if stores else None)
    record |= {"identity": identity, "created_total": memory.created_total[row]}
    block = Block(stored_name(values.dtype), (layers * fill + sum(counts), width), pieces())
    return Content("base", block, keys, index, record)


def commit_content(
    log: StateLog, records: list[WriteRecord], codec: ValueCodec, store: LongTermMemory | None, job: Any
) -> Content:
    """What writes added since the last commit. `store` is long-term memory as it is after them."""
    made = sum(record.values.shape[1] for record in records)
    dropped = [to_numpy(record.dropped) for record in records]
    index = {
        "dropped": np.concatenate([np.empty((log.layers, 0), np.int64), *dropped], axis=1),
        "writes": _writes_table(records),
        **_survivors(log, records, store),
    }
    values = keys = None
    if made:
        rows = (to_numpy(codec.encode(record.values[layer])) for layer in range(log.layers) for record in records)
        values = Block(log.dtype, (log.layers, made, log.width), rows)
    if log.has_long_term:
        name, size = log.key_dtype, log.key_size
        given = [record.keys for record in records if record.keys is not None]
        keys = Block(
            name, (*index["dropped"].shape, size), (to_numpy(k[layer]) for layer in range(log.layers) for k in given)
        )
    return Content("commit", values, keys, index, _record(records, job, store))


def _survivors(log: StateLog, records: list[WriteRecord], store: LongTermMemory | None) -> dict[str, np.ndarray]:
    """Index tensors that say which arrivals, those of `records` included, long-term memory still holds."""
    added = sum(record.dropped.shape[1] for record in records)
    if store is None or log.by_recall:
        out = {"evicted": np.zeros(log.layers, np.int64)}
        if store is not None and _merge_happened(log, store, added):
            out |= _merged(log, records, store, added)
        return out
    ends = np.array([log.arrived(layer) + added for layer in range(log.layers)])
    return {"evicted": ends - np.array([len(layer) for layer in store.layers])}


def _merge_happened(log: StateLog, store: LongTermMemory, added: int) -> bool:
    same = store.pending == log.pending + added
    pairs = ((layer.recall_frequency.numpy(), log.frequency(i)) for i, layer in enumerate(store.layers))
    return not (same and all(np.array_equal(now, before) for now, before in pairs))


def _merged(log: StateLog, records: list[WriteRecord], store: LongTermMemory, added: int) -> dict[str, np.ndarray]:
    merged, frequency = [], []
    for number, layer in enumerate(store.layers):
        before, end = log.alive(number), log.arrived(number)
        candidates = np.concatenate([before, np.arange(end, end + added)])
        new = [to_numpy(record.dropped[number]) for record in records]
        created = np.concatenate([log.created(number, before), *new])
        left = layer.created.gather(layer.all_positions()).numpy()
        merged.append(candidates[np.isin(created, left)][: len(layer.recall_frequency)])
        frequency.append(layer.recall_frequency.numpy())
    return {
        "merged": np.concatenate(merged),
        "merged_count": np.array([len(part) for part in merged], np.int64),
        "recall_frequency": np.concatenate(frequency).astype("<f4"),
    }


def _writes_table(records: list[WriteRecord]) -> np.ndarray:
    """int64 [W, 2]: creation index of the first token of each write, and how many it made."""
    return np.array([[record.created, record.values.shape[1]] for record in records], np.int64).reshape(-1, 2)


def _record(records: list[WriteRecord], job: Any, store: LongTermMemory | None) -> dict[str, Any]:
    return {
        "notes": [record.note for record in records],
        "job": job,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "pending": store.pending if store is not None else 0,
        "writes_since_merge": store.writes_since_merge if store is not None else 0,
    }


def fill_short_term(memory: Memory, row: int, store: StateStore) -> None:
    """Load short-term memory of one row."""
    created, dtype = store.log.short(), store.log.dtype
    values = torch.stack([to_torch(store.take(layer, held), dtype) for layer, held in enumerate(created)])
    memory.short_term.load(row, memory.codec.decode(values), torch.from_numpy(created))


def fill_long_term(memory: LongTermMemory, store: StateStore) -> None:
    """Load keys, order and counters of an empty long-term memory; its values stay in the file."""
    log, keys = store.log, store.keys()
    for number, layer in enumerate(memory.layers):
        created = log.long(number)
        layer.keys.append(to_torch(keys.pop(0), log.key_dtype))  # one layer's at a time are held twice
        layer.created.append(torch.from_numpy(created))
        layer.values.skip(len(created))
        if log.by_recall:
            layer.recall_frequency = torch.from_numpy(log.frequency(number).copy())
    memory.pending, memory.writes_since_merge = log.pending, log.writes_since_merge
    memory.map_values(StoredValues(store))
