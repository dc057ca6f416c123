"""MemoryState: a memory in a file. Open it, load it, commit what was written, see what is in it, forget a source.

    with MemoryState.create("mem.pt", model, memory) as state:      # or MemoryState.open("mem.pt", writable=True)
        model.inject(ids, memory, notes=[note])
        state.commit(memory)
    memory = MemoryState.open("mem.pt").load_memory(model)

The file is a log: a commit appends what the writes since the last one made and dropped, whatever is stored already.
Container and guarantees: `file`. Tensors: `log`. Nothing in the file is ever run or unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from mplus_cli.core.memory import Memory
from mplus_cli.core.state import report, rewrite
from mplus_cli.core.state.convert import (
    TORCH_DTYPES,
    StoredValues,
    base_content,
    commit_content,
    fill_long_term,
    fill_short_term,
    identity_of,
    stored_name,
    to_numpy,
    to_torch,
)
from mplus_cli.core.state.store import RELOAD, StateStore
from mplus_cli.core.state.superblock import Slot
from mplus_cli.core.value_codec import value_codec
from mplus_cli.errors import StateError

if TYPE_CHECKING:
    from mplus_cli.core.modeling_mplus import MPlusForCausalLM


# Per memory and row: where its file ended when the two last agreed. Keeps a memory from being committed to a file that
# has changed meanwhile, or to another's.
_FLOATS = {str(t).removeprefix("torch."): t for t in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
_AGREED: WeakKeyDictionary[Memory, dict[int, Slot]] = WeakKeyDictionary()


class MemoryState:
    """One memory (one batch row) and where it came from, in one file.

    Made by `create` or `open`; a context manager, or call `close`. A memory that was loaded stays usable after closing.
    """

    def __init__(self, store: StateStore, row: int = 0) -> None:
        self._store, self._row = store, row

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        model: MPlusForCausalLM,
        memory: Memory,
        fresh: bool = False,
        job: Any = None,
        row: int = 0,
    ) -> MemoryState:
        """Begin a state with everything that `memory` holds now, and keep its journal from now on.

        Nothing is at `path` before the first `commit`, which puts the file there as a whole: an old state that `fresh`
        replaces stays as it is until then.

        Args:
            fresh: replace a state that is there; otherwise that is refused.
            job: as for `commit`.
            row: the batch row of `memory` that this state holds.

        Raises:
            StateError: a file is there already, another process writes it, or nothing can be written there.
        """
        base = base_content(memory, row, identity_of(model, memory, row), job)
        state = cls(StateStore.create(path, base, replace=fresh), row)
        if memory.journal is None:
            memory.keep_journal()
        else:
            memory.journal[row].clear()
        state._agree(memory)
        return state

    @classmethod
    def open(cls, path: str | os.PathLike[str], writable: bool = False) -> MemoryState:
        """Open a state as of its last commit, memory-mapped.

        Args:
            writable: to commit to it; only one process at a time may.

        Raises:
            StateError: missing, foreign, of a later format, truncated, damaged, or being written by another process.
        """
        return cls(StateStore.open(path, writable))

    def close(self) -> None:
        """Close the file and let others write it. A new state that was never committed leaves no trace."""
        self._store.close()

    def __enter__(self) -> MemoryState:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what it says --------------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        return self._store.file.path

    @property
    def identity(self) -> dict[str, Any]:
        """What the state was made with: `model` (config_sha256, weights_sha256, name), sizes, dtype and seed."""
        return self._store.log.identity

    @property
    def model_name(self) -> str:
        """Folder or hub id of the model that made it."""
        model = self.identity.get("model")
        return str(model.get("name", "")) if isinstance(model, dict) else ""

    @property
    def quantize(self) -> str | None:
        """How the model that made it was quantized; None where it was not."""
        model = self.identity.get("model")
        return model.get("quantize") if isinstance(model, dict) else None

    def check_quantize(self, kind: str | None) -> None:
        """Refuse a model quantized otherwise than the one that made this state: it is another model.

        Raises:
            StateError: naming both.
        """
        held = self.quantize
        if held == kind:
            return
        made, given = (f"quantized to {k}" if k else "not quantized" for k in (held, kind))
        raise StateError(
            f"The model that made {self.path} was {made}; this one is {given}.",
            (f"Add --quantize {held}" if held else "Leave out --quantize")
            + ", or start over: mplus inject SOURCE --fresh"
            + (f" --quantize {kind}" if kind else ""),
        )

    @property
    def values(self) -> str:
        """How it keeps memory values: "model", "bfloat16", "float8" or "int8"."""
        return self._store.log.values

    def check_values(self, asked: str) -> None:
        """Refuse to keep values otherwise than this state does: what is rounded already stays so.

        Raises:
            StateError: naming both.
        """
        if asked != self.values and not (asked == "bfloat16" and self._store.log.dtype == "U16"):
            raise StateError(
                f"{self.path} keeps its memory values as {self.values}, not as {asked}.",
                f"Leave out --ltm-dtype, or start over: mplus inject SOURCE --fresh --ltm-dtype {asked}",
            )

    @property
    def job(self) -> Any:
        """What the last commit was told about work in progress (JSON); None when none is."""
        return self._store.log.job

    @property
    def created_total(self) -> int:
        """Memory tokens ever created per layer."""
        return self._store.log.created_total

    def sources(self) -> list[dict[str, Any]]:
        """Every source in order of its first write. See `report.sources`."""
        return report.sources(self._store.log)

    def provenance(self, created: torch.Tensor | np.ndarray | list[int]) -> list[dict | None]:
        """Notes of the writes that made memory tokens, by creation index; None for those that a checkpoint carried."""
        log = self._store.log
        numbers = log.write_of(np.asarray(created, np.int64).reshape(-1)).tolist()
        return [None if number < 0 else log.notes[number] for number in numbers]

    def summary(self) -> dict[str, Any]:
        """Sizes, fills, counts, ages. See `report.summary`."""
        return report.summary(self._store.file, self._store.log)

    def digest(self) -> str:
        """sha256 over the memory's content and order. Reads everything.

        The same text, model and seed give the same digest; times, the number of commits and compaction do not matter.
        """
        return self._store.digest()

    def verify(self, progress: Callable[[int, int], None] | None = None) -> dict[str, int]:
        """Check every checksum in the file, those of values that memory no longer holds included.

        Args:
            progress: called with (bytes of values done, bytes of values in all).

        Returns:
            How many `frames`, `values`, `keys` and `bytes` were checked.

        Raises:
            StateError: naming the first damaged region.
        """
        return self._store.verify(progress)

    @property
    def dead_bytes(self) -> int:
        """Bytes of values and keys that memory no longer holds, which `compact` gives back."""
        return report.dead_bytes(self._store.file, self._store.log)

    # -- memory --------------------------------------------------------------------------------------------------------

    def check_model(self, model: MPlusForCausalLM) -> None:
        """Refuse a model other than the one that made this state.

        Raises:
            StateError: naming both and what differs.
        """
        made_by, given = self.identity.get("model"), model.fingerprint()
        self.check_quantize(given.get("quantize"))
        made_by = made_by if isinstance(made_by, dict) else {}
        kinds = {"configuration": "config_sha256", "weights": "weights_sha256"}
        different = [kind for kind, key in kinds.items() if made_by.get(key) != given[key]]
        if not different:
            return
        here, there = self.model_name or "an unnamed one", given.get("name") or "an unnamed one"
        raise StateError(
            f"{self.path} was made by another model ({here}): this one ({there}) has other {' and '.join(different)}.",
            f"Use the model that made it (--model {self.model_name or 'PATH'}), "
            "or start over with this one: mplus inject SOURCE --fresh",
        )

    def load_memory(self, model: MPlusForCausalLM) -> Memory:
        """The memory, ready to be read and, where the state is writable, to be injected into.

        Short-term memory and retrieval keys are read now, long-term values when they are retrieved.

        Raises:
            StateError: another model, another dtype (to write), or what is read is damaged.
        """
        self.check_model(model)
        store = self._store
        dtype = self._compute_dtype()
        if store.file.writable and model.dtype != dtype:
            held, given = (str(kind).removeprefix("torch.") for kind in (dtype, model.dtype))
            raise StateError(
                f"{self.path} holds {held} memory tokens; the model runs in {given}.", f"Add --dtype {held}."
            )
        values = "model" if self.values == "bfloat16" and model.dtype != dtype else self.values
        memory = model.new_memory(1, seed=int(self.identity["seed"]), initial="empty", values=values)
        self.fill(memory)
        if store.file.writable:
            memory.keep_journal()
        self._row = 0
        self._agree(memory)
        return memory

    def fill(self, memory: Memory) -> None:
        """Put what this state holds into an empty one-row memory, for example one of other sizes than the model's.

        Raises:
            StateError: it does not fit, or what is read is damaged.
        """
        store = self._store
        try:
            fill_short_term(memory, 0, store)
            if store.log.has_long_term:
                fill_long_term(memory.long_term[0], store)
        except (ValueError, RuntimeError, LookupError) as error:
            raise StateError(f"The memory in {self.path} does not fit the model: {error}.") from error
        memory.created_total = [store.log.created_total]
        memory.changed()

    def commit(self, memory: Memory, job: Any = None) -> int:
        """Make everything written since the last commit durable, at a cost of that alone, and empty the journal.

        Long-term values that are in the file now are served from there, so that memory use stays flat.

        Args:
            job: JSON to find again as `job` (how far work has come); None when nothing is under way.

        Returns:
            Bytes by which the file grew.

        Raises:
            StateError: disk full, file replaced and the like. Nothing is lost then: the file is as it was after the
                last commit, and the journal still holds what came after.
        """
        store, writer = self._store, self._store.writer
        before, records = writer.length, self._records(memory)
        if records or job != self.job:
            long_term = memory.long_term[self._row] if memory.long_term else None
            store.append(commit_content(store.log, records, memory.codec, long_term, job))
            records.clear()
            self._agree(memory)
            if long_term is not None:
                long_term.map_values(StoredValues(store))
        writer.publish()
        return writer.length - before

    def _records(self, memory: Memory) -> list:
        """The journal of what is not committed yet, if it follows on what is."""
        if memory.journal is None:
            raise StateError("This memory keeps no journal.", "Load it from a state that is open for writing.")
        records = memory.journal[self._row]
        same = stored_name(memory.codec.stored) == self._store.log.dtype
        same = same and all(record.values.dtype == self._compute_dtype() for record in records)
        made = sum(record.values.shape[1] for record in records)
        if not same or self.created_total + made != memory.created_total[self._row]:
            raise StateError(f"This memory does not continue the one in {self.path}.", RELOAD)
        if _AGREED.get(memory, {}).get(self._row) != self._store.file.tip:
            raise StateError(f"{self.path} has changed since this memory was loaded from it.", RELOAD)
        return records

    def _compute_dtype(self) -> torch.dtype:
        """What its memory was computed in, and has to go on in."""
        log = self._store.log
        if log.values == "model":
            return TORCH_DTYPES[log.dtype]
        name = str(self.identity.get("dtype"))
        if name not in _FLOATS:
            raise self._store.file.contradiction("it does not say what its memory was computed in")
        return _FLOATS[name]

    def _agree(self, memory: Memory) -> None:
        _AGREED.setdefault(memory, {})[self._row] = self._store.file.tip

    # -- rewriting -----------------------------------------------------------------------------------------------------

    def compact(self) -> int:
        """Rewrite the file without dead values, beside the old one, and put it in its place; loaded memory goes on.

        Returns:
            Bytes saved.
        """
        before, agreed = self._store.writer.tip, list(_AGREED.items())
        rewrite.compact(self._store)
        for memory, tips in agreed:
            if tips.get(self._row) == before:
                self._agree(memory)
        return before.length - self._store.file.length

    @classmethod
    def forget(cls, path: str | os.PathLike[str], source: str, model: MPlusForCausalLM | None = None) -> dict[str, Any]:
        """Remove everything that a source put into a state, and prove it. See `rewrite.forget`.

        Args:
            source: name or sha256, as `sources` gives them.
            model: makes the retrieval keys of tokens that have to move to long-term memory; needed if there is one.
        """
        with cls.open(path, writable=True) as state:
            if model is not None:
                state.check_model(model)
            return rewrite.forget(state._store, source, state._key_maker(model))

    def _key_maker(self, model: MPlusForCausalLM | None) -> rewrite.MakeKeys:
        log = self._store.log

        def make(layer: int, values: np.ndarray) -> np.ndarray:
            if model is None or not log.has_long_term:
                raise StateError(
                    "Memory tokens of other sources have to move to long-term memory, which takes the model.",
                    f"Pass it: --model {self.model_name or 'PATH'}",
                )
            with torch.no_grad():
                rows = value_codec(log.values, self._compute_dtype()).decode(to_torch(values, log.dtype))
                keys = model.memory_keys(layer, rows.to(model.device, model.dtype))
            return to_numpy(keys.to(TORCH_DTYPES[log.key_dtype]))

        return make
