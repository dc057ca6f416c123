"""Long-term memory: what short-term memory dropped, with retrieval keys, up to M tokens per layer (M+ section 3.2)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.core.streaming import HostLink, Returning
from mplus_cli.core.value_codec import ValueCodec, value_codec

BLOCK_BYTES = 32 << 20  # reserved at a time, at most
BLOCK_ROWS = 1 << 12, 1 << 16  # in a block, at least and at most
BLOCKS = 16  # of values in a full store: what is reserved beyond its capacity stays small
KEY_BLOCKS = 4  # of keys on the host: scored block by block, so fewer; on a GPU as small as can be


def most_key_rows(capacity: int, device: torch.device) -> int:
    """Rows that a block of keys has at most: device memory is dear, and there many blocks are scored by one kernel."""
    return BLOCK_ROWS[0] if device.type == "cuda" else capacity // KEY_BLOCKS


class MappedRows(Protocol):
    """Values of committed memory tokens, read from a state file on demand."""

    def rows(self, layer: int, created: torch.Tensor) -> torch.Tensor:
        """created: int64 [k] -> [k, d], or as the codec of a memory stores them."""
        ...


class BlockList:
    """Append-only rows kept in fixed blocks: appending never moves what is stored, a moving start frees old blocks.

    One freed block is kept for the next: returning and asking for many megabytes again and again leaves holes in the
    heap, and a full store would grow in main memory for as long as it is written to.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        pin: bool = False,
        most: int = BLOCK_ROWS[1],
    ) -> None:
        self.shape, self.dtype, self.device, self.pin = shape, dtype, device, pin
        rows = min(max(most, BLOCK_ROWS[0]), BLOCK_ROWS[1])
        rows = min(rows, BLOCK_BYTES // (math.prod(shape) * dtype.itemsize))
        self.block = 1 << max(0, rows.bit_length() - 1)  # rows
        self.start = self.end = 0
        self._blocks: dict[int, torch.Tensor] = {}
        self._spare: torch.Tensor | None = None
        self._shared = 0  # blocks before this number may be another list's too, and are never filled again

    def fork(self) -> BlockList:
        """A list of the same rows that goes on alone: full blocks are shared, the one being filled is copied."""
        other = copy.copy(self)
        other._blocks, other._spare = dict(self._blocks), None
        self._shared = other._shared = self.end // self.block
        if (filling := self._blocks.get(self._shared)) is not None:
            other._blocks[self._shared] = filling.clone()
        return other

    def append(self, rows: torch.Tensor) -> None:
        """rows: [k, *shape]."""
        done = 0
        while done < len(rows):
            number, at = divmod(self.end, self.block)
            count = min(len(rows) - done, self.block - at)
            if number not in self._blocks:
                self._blocks[number] = self._new_block()
            self._blocks[number][at : at + count] = rows[done : done + count]
            self.end += count
            done += count

    @torch.inference_mode(False)  # a block made in inference mode could not be appended to outside of it
    def _new_block(self) -> torch.Tensor:
        if self._spare is not None:
            block, self._spare = self._spare, None
            return block
        return torch.empty(self.block, *self.shape, dtype=self.dtype, device=self.device, pin_memory=self.pin)

    def gather(self, index: torch.Tensor) -> torch.Tensor:
        """Rows at absolute positions. index: int64 [k] on the CPU -> [k, *shape]."""
        if len(self._blocks) == 1 and not self.pin:
            ((n, block),) = self._blocks.items()
            return block.index_select(0, (index - n * self.block).to(self.device))
        number = index // self.block
        out = self.empty(len(index))
        if bool((number[1:] >= number[:-1]).all()):  # in order of arrival, every block gives one stretch
            blocks, counts = number.unique_consecutive(return_counts=True)
            pieces = zip(blocks.tolist(), index.split(counts.tolist()), out.split(counts.tolist()), strict=True)
            for n, piece, part in pieces:
                torch.index_select(self._blocks[n], 0, (piece - n * self.block).to(self.device), out=part)
            return out
        for n in number.unique().tolist():
            here = (number == n).nonzero().squeeze(1)
            at = (index[here] - n * self.block).to(self.device)
            out.index_copy_(0, here.to(self.device), self._blocks[n].index_select(0, at))
        return out

    def empty(self, count: int) -> torch.Tensor:
        """Room for rows taken from here, [count, *shape], page-locked if these are."""
        return torch.empty(count, *self.shape, dtype=self.dtype, device=self.device, pin_memory=self.pin)

    def views(self) -> Iterator[torch.Tensor]:
        """The live rows, block by block, in order, without a copy."""
        for n in range(self.start // self.block, -(-self.end // self.block) if self.start < self.end else 0):
            yield self._blocks[n][max(self.start - n * self.block, 0) : min(self.end - n * self.block, self.block)]

    def drop_before(self, position: int) -> None:
        """Forget rows before an absolute position."""
        self.start = max(self.start, position)
        live = self.start // self.block if self.start < self.end else math.inf
        for n in [n for n in self._blocks if n < live]:
            block = self._blocks.pop(n)
            self._spare = self._spare if n < self._shared else block

    def skip(self, count: int) -> None:
        """Count `count` rows as appended that are kept elsewhere."""
        self.end += count
        self.drop_before(self.end)


@dataclass
class Retrieved:
    """What one layer of one row retrieved, oldest first."""

    created: torch.Tensor  # int64 [k]
    scores: torch.Tensor  # float32 [k]
    positions: torch.Tensor  # int64 [k], arrival positions in the store

    def result(self) -> Retrieved:
        """Itself: it is there."""
        return self


class Retrieval:
    """What a search found, while it is on its way to the host: scores and live rows, both [k]."""

    def __init__(self, store: LayerStore, scores: torch.Tensor, live: torch.Tensor) -> None:
        self.store, self._found = store, Returning((scores, live))

    def result(self) -> Retrieved:
        """Oldest first; the host waits for the search, and for nothing that was queued after it."""
        scores, live = self._found.wait()
        positions = live + self.store.created.start
        created, order = self.store.created.gather(positions).sort(stable=True)
        return Retrieved(created, scores[order], positions[order])


class LayerStore:
    """One layer of one row by arrival: values on the host, as the codec stores them; keys on the compute device, or on
    the host too if they are offloaded."""

    def __init__(
        self, config: MPlusConfig, width: int, codec: ValueCodec, device: torch.device, offload: bool = False
    ) -> None:
        cpu = torch.device("cpu")
        capacity, row, pin = config.long_term_capacity, (width + codec.extra,), device.type == "cuda"
        home = cpu if offload else device
        most = most_key_rows(capacity, home)
        self.codec = codec
        self.values = BlockList(row, codec.stored, cpu, pin=pin, most=capacity // BLOCKS)
        self.keys = BlockList((config.retriever_size,), codec.dtype, home, pin=pin and offload, most=most)
        self.created = BlockList((), torch.int64, cpu)
        self.recall_frequency = torch.empty(0)
        self.mapped: MappedRows | None = None
        self.mapped_end = 0  # arrivals before this are served by `mapped`

    def __len__(self) -> int:
        return self.created.end - self.created.start

    def append(self, values: torch.Tensor, keys: torch.Tensor, created: torch.Tensor) -> None:
        """values: [m, d]; keys: [m, r]; created: int64 [m]."""
        self.append_stored(self.codec.encode(values), keys, created)

    def append_stored(self, values: torch.Tensor, keys: torch.Tensor, created: torch.Tensor) -> None:
        """The same with values as the codec stores them."""
        self.values.append(values)
        self.keys.append(keys)
        self.created.append(created)

    def take(self, layer: int, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values [k, d] on the host and creation indices [k] at absolute arrival positions [k]."""
        return self.fetch(layer, positions), self.created.gather(positions)

    def fetch(self, layer: int, positions: torch.Tensor, link: HostLink | None = None) -> torch.Tensor:
        """Values [k, d] at absolute arrival positions [k]; on the host, or decoded on the device at the link's end."""
        rows = self._stored(layer, positions)
        return self.codec.decode(rows if link is None else link.to_device([rows]).wait()[0])

    def _stored(self, layer: int, positions: torch.Tensor) -> torch.Tensor:
        if self.mapped is None:
            return self.values.gather(positions)
        out = self.values.empty(len(positions))
        on_file = positions < self.mapped_end
        if on_file.any():
            created = self.created.gather(positions[on_file])
            out[on_file] = self.mapped.rows(layer, created).to(out.dtype)
        if not on_file.all():
            out[~on_file] = self.values.gather(positions[~on_file])
        return out

    def all_positions(self) -> torch.Tensor:
        return torch.arange(self.created.start, self.created.end)

    def all_created(self) -> torch.Tensor:
        """Creation indices of everything here, in order of arrival, int64 [m]."""
        parts = list(self.created.views())
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def drop_before(self, position: int) -> None:
        for rows in (self.values, self.keys, self.created):
            rows.drop_before(position)

    def keep(self, layer: int, mask: torch.Tensor) -> None:
        """Keep the live rows where mask [len] is true. A kept suffix only moves the start; anything else rebuilds."""
        first = int(mask.int().argmax()) if mask.any() else len(self)
        if bool(mask[first:].all()):
            self.drop_before(self.created.start + first)
            return
        positions = self.all_positions()[mask]
        values, created = self.take(layer, positions)
        keys = self.keys.gather(positions)
        for rows in (self.values, self.keys, self.created):
            rows.drop_before(rows.end)
        self.mapped = None
        self.append(values, keys, created)


class LongTermMemory:
    """The store of one row, all layers."""

    def __init__(
        self,
        config: MPlusConfig,
        layers: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device | Sequence[torch.device],
        codec: ValueCodec | None = None,
        offload: bool = False,
    ) -> None:
        """device: of all layers, or of each."""
        devices = [device] * layers if isinstance(device, torch.device) else device
        self.config, self.device = config, devices[0]
        self.codec = codec or value_codec("model", dtype)
        self.layers = [LayerStore(config, width, self.codec, own, offload) for own in devices]
        self.pending = 0  # newest arrivals that the published rule has not merged yet
        self.writes_since_merge = 0

    def __len__(self) -> int:
        """Tokens per layer (the smallest layer, where the published rule made them differ)."""
        return min(len(store) for store in self.layers)

    def load(
        self,
        values: list[torch.Tensor],
        keys: list[torch.Tensor],
        created: list[torch.Tensor],
        recall: list[torch.Tensor] | None = None,
    ) -> None:
        """Fill an empty store; per layer [m, d], [m, r], int64 [m], and recall frequency [m] for the published rule."""
        for index, store in enumerate(self.layers):
            store.append(values[index], keys[index], created[index])
            store.recall_frequency = torch.zeros(len(store)) if recall is None else recall[index].float().cpu()

    def append(
        self,
        values: torch.Tensor | Sequence[torch.Tensor],
        keys: torch.Tensor | Sequence[torch.Tensor],
        created: torch.Tensor,
    ) -> None:
        """Take what one write dropped, then evict by the configured rule.

        Args:
            values: [L, m, d]; keys: [L, m, r]; or both in parts of consecutive layers, as they lie on several devices.
            created: int64 [L, m].
        """
        index = 0
        for own_values, own_keys in zip(_parts(values), _parts(keys), strict=True):
            held = self.codec.encode(own_values).cpu()  # of all these layers in one copy
            for value, key in zip(held, own_keys.to(self.layers[index].keys.device), strict=True):
                self.layers[index].append_stored(value, key, created[index])
                index += 1
        if self.config.eviction == "oldest":
            self._evict_oldest()
        else:
            self.pending += created.shape[1]
            self.writes_since_merge += 1
            if self.writes_since_merge >= self.config.merge_every:
                self._merge()

    def map_values(self, source: MappedRows) -> None:
        """Serve everything stored so far from `source` and free the memory it took here."""
        for store in self.layers:
            store.mapped, store.mapped_end = source, store.created.end
            store.values.drop_before(store.values.end)

    def expected_count(self) -> int:
        """Tokens per layer that a read will get."""
        if self.config.fill_rule == "tile":
            return self.config.retrieval_budget if self._merged(self.layers[0]) else 0
        return min(self.config.retrieval_budget, len(self))

    def retrieve(self, layer: int, scores: torch.Tensor) -> Retrieved:
        """Top-K_theta by score, placed oldest first. scores: float32 [m] over the live tokens of `layer`."""
        return self.search(layer, scores).result()

    def search(self, layer: int, scores: torch.Tensor) -> Retrieval:
        """The same without waiting for the device."""
        store, budget = self.layers[layer], self.config.retrieval_budget
        merged = self._merged(store)
        if self.config.fill_rule == "tile" and merged < budget:
            live = torch.arange(merged, device=scores.device).repeat(-(-budget // max(merged, 1)))[-budget:]
            return Retrieval(store, scores[live], live)
        return Retrieval(store, *scores.topk(min(self.expected_count(), len(store)), sorted=False))

    def _merged(self, store: LayerStore) -> int:
        return len(store) - self.pending

    def _evict_oldest(self) -> None:
        for store in self.layers:
            if len(store) > self.config.long_term_capacity:
                store.drop_before(store.created.end - self.config.long_term_capacity)

    def _merge(self) -> None:
        """The published rule: new tokens get a recall frequency, all lose a unit, spent ones leave if enough remain."""
        for index, store in enumerate(self.layers):
            fresh = torch.full((len(store) - len(store.recall_frequency),), float(self.config.initial_recall_frequency))
            frequency = torch.cat([store.recall_frequency, fresh])
            lowered = frequency - self.config.recall_decay
            kept = lowered > 0.01
            if int(kept.sum()) > self.config.retrieval_budget:
                store.keep(index, kept)
                frequency = lowered[kept]
            store.recall_frequency = frequency
        self.pending = self.writes_since_merge = 0


def _parts(tensors: torch.Tensor | Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    return [tensors] if isinstance(tensors, torch.Tensor) else tensors
