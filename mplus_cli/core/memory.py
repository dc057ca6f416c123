"""Memory: a batch of short- and long-term memories, one per batch row, and the record of what each write did."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mplus_cli.core.cache import MemoryCache
from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.core.long_term_memory import LongTermMemory, Retrieved
from mplus_cli.core.placement import Span, joined, parted
from mplus_cli.core.retrieved_rows import RetrievedRows, questions_held
from mplus_cli.core.short_term_memory import Dropped, ShortTermMemory
from mplus_cli.core.value_codec import value_codec

if TYPE_CHECKING:
    from mplus_cli.core.prefix import Prefix

KeyFunction = Callable[[int, torch.Tensor], torch.Tensor]  # (layer, rows [..., m, d]) -> retrieval keys [..., m, r]


@dataclass
class WriteRecord:
    """What one write did to one memory; enough to replay it from a file.

    Attributes:
        created: creation index of its first memory token.
        values: [L, K, d], the memory tokens it made, on the CPU.
        dropped: int64 [L, m], creation indices that left short-term memory, in order of arrival in the store.
        keys: [L, m, r], their retrieval keys, on the CPU; None without long-term memory.
        note: provenance of the chunk, as given to `inject`.
    """

    created: int
    values: torch.Tensor
    dropped: torch.Tensor
    keys: torch.Tensor | None
    note: dict | None


class Memory:
    """Short- and long-term memory of `batch_size` independent rows.

    Every memory token has a creation index, counted from 0 with the first token ever written to its row and the same in
    all layers; tokens that came with a checkpoint have negative ones. Age, in memory tokens written since, is
    `created_total - 1 - created`. Nothing is ever renumbered.

    Args:
        device: where it lies, or the layers by device (see `placement`).
        offload: keep short-term values and retrieval keys on the host too; a read brings them to the device layer by
            layer (M+ table 1), and keeps nothing there for the next question but what it must.
        values: how long-term memory and a file keep values, and what every token is rounded to when it is written: see
            `value_codec`.
    """

    @torch.inference_mode(False)  # a memory outlives the mode it was made in
    def __init__(
        self,
        config: MPlusConfig,
        batch_size: int = 1,
        seeds: Sequence[int] | int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | Sequence[Span] = "cpu",
        offload: bool = False,
        values: str = "model",
    ) -> None:
        layers, width = config.text_config.num_hidden_layers, config.text_config.hidden_size
        spans = [Span(0, layers, torch.device(device))] if isinstance(device, (str, torch.device)) else list(device)
        self.config, self.spans = config, spans
        self.codec = value_codec(values, dtype)
        self.seeds = [seeds] * batch_size if isinstance(seeds, int) else list(seeds)
        homes = [Span(s.first, s.end, torch.device("cpu")) for s in spans] if offload else spans
        pin = offload and spans[0].device.type == "cuda"
        self.short_term = ShortTermMemory(batch_size, layers, config.short_term_size, width, dtype, homes, pin)
        devices = [span.device for span in spans for _ in range(len(span))]
        self.long_term = [
            LongTermMemory(config, layers, width, dtype, devices, self.codec, offload)
            for _ in range(batch_size if config.has_long_term_memory else 0)
        ]
        self.created_total = [0] * batch_size
        self.journal: list[list[WriteRecord]] | None = None
        self.version = 0
        self.last_retrieval: list[list[Retrieved]] = []  # [layer][row] of the latest read
        self.read_cache: MemoryCache | None = None  # short-term keys and values, owned by the model that read last
        self.retrieved_rows = RetrievedRows(questions_held(spans[0].device, offload))
        self.reader: Callable[[Any, Memory], Prefix] | None = None  # reads it in place of `prefix.MemoryPrefix`

    @property
    def batch_size(self) -> int:
        return len(self.created_total)

    @property
    def num_layers(self) -> int:
        return self.short_term.created.shape[1]

    def keep_journal(self) -> None:
        """From now on record every write (what a state file needs)."""
        self.journal = [[] for _ in range(self.batch_size)]

    def age(self, row: int, created: torch.Tensor) -> torch.Tensor:
        """Memory tokens written to `row` since the given ones."""
        return self.created_total[row] - 1 - created

    def changed(self) -> None:
        """Say that content changed outside `append`, so that nothing derived from it is reused."""
        self._advance()
        self.retrieved_rows = RetrievedRows(self.retrieved_rows.questions)

    def _advance(self) -> None:
        self.version += 1
        self.read_cache = None

    def short_term_only(self) -> Memory:
        """A view for reading that shares this short-term memory and has no long-term memory."""
        view = Memory.__new__(Memory)
        view.__dict__.update(self.__dict__)
        view.long_term, view.read_cache, view.last_retrieval = [], None, []
        return view

    def rows(self, rows: Sequence[int]) -> Memory:
        """The given rows, for reading until the next write; what a read leaves behind is the view's own."""
        view = copy.copy(self)
        view.seeds, view.created_total = [self.seeds[r] for r in rows], [self.created_total[r] for r in rows]
        view.short_term = self.short_term.rows(rows)
        view.long_term = [self.long_term[r] for r in rows] if self.long_term else []
        view.journal, view.read_cache, view.last_retrieval = None, None, []
        view.retrieved_rows = RetrievedRows(self.retrieved_rows.questions)
        return view

    def context(self, row: int) -> torch.Tensor:
        """The newest K tokens that the next write reads, [L, <= K, d]."""
        return self.short_term.newest(row, self.config.memory_tokens_per_write)

    def newest_counts(self, rows: Sequence[int]) -> list[int]:
        """How many tokens the next write to each of these rows reads."""
        return [min(self.config.memory_tokens_per_write, self.short_term.fill[row]) for row in rows]

    def append(
        self,
        row: int,
        tokens: torch.Tensor,
        key_function: KeyFunction | None,
        note: dict | None = None,
        dropped_ranks: torch.Tensor | None = None,
    ) -> None:
        """Append a write's memory tokens [L, K, d] to one row; what is dropped moves to long-term memory.

        Args:
            key_function: makes the retrieval keys of dropped tokens; None where there is no long-term memory.
            dropped_ranks: int64 [L, m], chronological ranks to drop instead of a random choice.
        """
        ranks = None if dropped_ranks is None else dropped_ranks[None]
        self.append_rows([row], tokens[None], key_function, [note], ranks)

    def append_rows(
        self,
        rows: Sequence[int],
        tokens: torch.Tensor | Sequence[torch.Tensor],
        key_function: KeyFunction | None,
        notes: Sequence[dict | None] | None = None,
        dropped_ranks: torch.Tensor | None = None,
    ) -> None:
        """`append` for several rows; their retrieval keys are made together.

        Args:
            tokens: [B, L, K, d], or [B, l, K, d] of each span.
            dropped_ranks: int64 [B, L, m].
        """
        given = parted(tokens, self.spans, dim=1) if isinstance(tokens, torch.Tensor) else tokens
        parts = [self.codec.round(part) for part in given]
        begins = [self.created_total[row] for row in rows]
        ranks = [None] * len(rows) if dropped_ranks is None else dropped_ranks
        dropped = [
            self.short_term.append(row, [part[at] for part in parts], begin, self.seeds[row], rank)
            for at, (row, begin, rank) in enumerate(zip(rows, begins, ranks, strict=True))
        ]
        keys = None if key_function is None else self._keys_of(dropped, key_function)
        for at, (row, begin, gone) in enumerate(zip(rows, begins, dropped, strict=True)):
            own = None if keys is None else keys[at]
            if own is not None:
                self.long_term[row].append(gone.parts, own, gone.created)
            self.created_total[row] = begin + parts[0].shape[2]
            if self.journal is not None:
                values = joined([part[at].detach().cpu() for part in parts])
                held = None if own is None else joined([part.cpu() for part in own])
                note = None if notes is None else notes[at]
                self.journal[row].append(WriteRecord(begin, values, gone.created, held, note))
        self._advance()

    def _keys_of(self, dropped: Sequence[Dropped], key_function: KeyFunction) -> list[list[torch.Tensor]]:
        """Retrieval keys [l, m, r] of each span of what each row dropped; rows that dropped equally many share one
        product.
        """
        groups: dict[int, list[int]] = {}
        for row, gone in enumerate(dropped):
            groups.setdefault(gone.created.shape[1], []).append(row)
        keys: dict[int, list[torch.Tensor]] = {}
        for rows in groups.values():
            made = []
            for at, span in enumerate(self.spans):
                values = torch.stack([dropped[row].parts[at] for row in rows])
                layers = range(span.first, span.end)
                made.append(torch.stack([key_function(n, values[:, n - span.first]) for n in layers], dim=1))
            keys |= {row: [part[at] for part in made] for at, row in enumerate(rows)}
        return [keys[row] for row in range(len(dropped))]
