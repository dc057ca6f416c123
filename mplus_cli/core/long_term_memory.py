"""Long-term memory: what short-term memory dropped, with retrieval keys, up to M tokens per layer (M+ section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.core.value_codec import ValueCodec, value_codec

BLOCK_BYTES = 32 << 20  # reserved at a time, at most
BLOCK_ROWS = 1 << 12, 1 << 16  # in a block, at least and at most
BLOCKS = 16  # of values in a full store: what is reserved beyond its capacity stays small
KEY_BLOCKS = 4  # of keys: scored block by block, so fewer


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
        if len(self._blocks) == 1:
            ((n, block),) = self._blocks.items()
            return block.index_select(0, (index - n * self.block).to(self.device))
        number = index // self.block
        out = torch.empty(len(index), *self.shape, dtype=self.dtype, device=self.device)
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

    def views(self) -> Iterator[torch.Tensor]:
        """The live rows, block by block, in order, without a copy."""
        for n in range(self.start // self.block, -(-self.end // self.block) if self.start < self.end else 0):
            yield self._blocks[n][max(self.start - n * self.block, 0) : min(self.end - n * self.block, self.block)]

    def drop_before(self, position: int) -> None:
        """Forget rows before an absolute position."""
        self.start = max(self.start, position)
        live = self.start // self.block if self.start < self.end else math.inf
        for n in [n for n in self._blocks if n < live]:
            self._spare = self._blocks.pop(n)

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


class LayerStore:
    """One layer of one row: values on the host, as the codec stores them, keys on the compute device; by arrival."""

    def __init__(self, config: MPlusConfig, width: int, codec: ValueCodec, device: torch.device) -> None:
        cpu = torch.device("cpu")
        capacity, row = config.long_term_capacity, (width + codec.extra,)
        self.codec = codec
        self.values = BlockList(row, codec.stored, cpu, pin=device.type == "cuda", most=capacity // BLOCKS)
        self.keys = BlockList((config.retriever_size,), codec.dtype, device, most=capacity // KEY_BLOCKS)
        self.created = BlockList((), torch.int64, cpu)
        self.recall_frequency = torch.empty(0)
        self.mapped: MappedRows | None = None
        self.mapped_end = 0  # arrivals before this are served by `mapped`

    def __len__(self) -> int:
        return self.created.end - self.created.start

    def append(self, values: torch.Tensor, keys: torch.Tensor, created: torch.Tensor) -> None:
        self.values.append(self.codec.encode(values))
        self.keys.append(keys)
        self.created.append(created)

    def take(self, layer: int, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values [k, d] on the host and creation indices [k] at absolute arrival positions [k]."""
        return self.fetch(layer, positions), self.created.gather(positions)

    def fetch(self, layer: int, positions: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
        """Values [k, d] at absolute arrival positions [k]; on the host, or decoded on a device."""
        rows = self._stored(layer, positions)
        return self.codec.decode(rows if device is None else rows.to(device, non_blocking=True))

    def _stored(self, layer: int, positions: torch.Tensor) -> torch.Tensor:
        if self.mapped is None:
            return self.values.gather(positions)
        out = torch.empty(len(positions), *self.values.shape, dtype=self.values.dtype)
        on_file = positions < self.mapped_end
        if on_file.any():
            created = self.created.gather(positions[on_file])
            out[on_file] = self.mapped.rows(layer, created).to(out.dtype)
        if not on_file.all():
            out[~on_file] = self.values.gather(positions[~on_file])
        return out

    def all_positions(self) -> torch.Tensor:
        return torch.arange(self.created.start, self.created.end)

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
        device: torch.device,
        codec: ValueCodec | None = None,
    ) -> None:
        self.config, self.device = config, device
        codec = codec or value_codec("model", dtype)
        self.layers = [LayerStore(config, width, codec, device) for _ in range(layers)]
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

    def append(self, values: torch.Tensor, keys: torch.Tensor, created: torch.Tensor) -> None:
        """Take what one write dropped: [L, m, d], [L, m, r], int64 [L, m]. Then evict by the configured rule."""
        for index, store in enumerate(self.layers):
            store.append(values[index], keys[index], created[index])
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
        store, budget = self.layers[layer], self.config.retrieval_budget
        merged = self._merged(store)
        if self.config.fill_rule == "tile" and merged < budget:
            live = torch.arange(merged).repeat(-(-budget // max(merged, 1)))[-budget:]
        else:
            live = scores.topk(min(self.expected_count(), len(store)), sorted=False).indices.cpu()
        positions = live + store.created.start
        created, order = store.created.gather(positions).sort(stable=True)
        return Retrieved(created, scores.cpu()[live[order]], positions[order])

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
