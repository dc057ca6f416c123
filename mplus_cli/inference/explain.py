"""Which passages of the injected texts an answer's retrieved memory tokens came from (`mplus ask --explain`).

Every read retrieves K_theta long-term memory tokens per layer. Each has a creation index, and the state knows which
chunk of which source made it. Scores of different layers are not on one scale, so within a layer they become shares of
what was retrieved; a passage's share is the mean over layers of the sum of its tokens' shares.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mplus_cli.core.long_term_memory import Retrieved
from mplus_cli.core.memory import Memory
from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.data.sources import read_source
from mplus_cli.errors import MPlusError


@dataclass(frozen=True)
class Passage:
    """One injected chunk among what an answer retrieved.

    Attributes:
        share: of the retrieval score mass over all layers, 0 to 1.
        tokens: memory tokens retrieved, summed over layers; layers: in how many layers it was retrieved.
        start, end: characters of the source.
        age: memory tokens written since the newest of them.
        text: the passage, where the source file is still there and unchanged; else None.
    """

    source: str
    start: int
    end: int
    share: float
    tokens: int
    layers: int
    age: int
    text: str | None


def explain(
    retrieval: Sequence[Sequence[Retrieved]], memory: Memory, state: MemoryState, most: int = 5, row: int = 0
) -> list[Passage]:
    """The `most` passages with the largest share of the last read's retrieval, best first.

    Args:
        retrieval: `memory.last_retrieval`, [layer][row].
        state: knows what text the memory's tokens came from; writes not committed yet are looked up in the journal.
    """
    found: dict[tuple[str, int, int], Found] = {}
    for layer, rows in enumerate(retrieval):
        created = rows[row].created
        shares = _shares(rows[row].scores.float(), memory.config.retriever_score) / len(retrieval)
        notes = _notes(created, memory, state, row)
        for index, share, note in zip(created.tolist(), shares.tolist(), notes, strict=True):
            if note is not None and note.keys() >= _NOTE:  # a checkpoint's own memory comes from no text of the user's
                key = (note["sha256"], note["start"], note["end"])
                found.setdefault(key, Found(note)).add(layer, index, share)
    best = sorted(found.values(), key=lambda one: -one.share)[:most]
    texts = SourceTexts(state.path)
    return [one.passage(memory.created_total[row] - 1, texts.passage(one.note)) for one in best]


_NOTE = {"source", "sha256", "start", "end"}


def _shares(scores: torch.Tensor, kind: str) -> torch.Tensor:
    """Each token's part of a layer's retrieval: contrastive scores are logits, the published ones masses."""
    return scores / scores.sum().clamp(min=1e-9) if kind == "mean_sigmoid" else torch.softmax(scores, 0)


@dataclass
class Found:
    """What was retrieved of one chunk so far."""

    note: dict
    share: float = 0.0
    tokens: int = 0
    newest: int = 0
    layers: set[int] = field(default_factory=set)

    def add(self, layer: int, created: int, share: float) -> None:
        self.share += share
        self.tokens += 1
        self.newest = max(self.newest, created)
        self.layers.add(layer)

    def passage(self, now: int, text: str | None) -> Passage:
        note = self.note
        return Passage(
            source=note["source"],
            start=note["start"],
            end=note["end"],
            share=self.share,
            tokens=self.tokens,
            layers=len(self.layers),
            age=now - self.newest,
            text=text,
        )


def _notes(created: torch.Tensor, memory: Memory, state: MemoryState, row: int) -> list[dict | None]:
    """Provenance of memory tokens, from the file or, for writes of this session, from the journal."""
    notes = state.provenance(created)
    journal = memory.journal[row] if memory.journal else []
    for place, index in enumerate(created.tolist()):
        if notes[place] is None and journal and index >= journal[0].created:
            starts = [record.created for record in journal]
            notes[place] = journal[bisect_right(starts, index) - 1].note
    return notes


class SourceTexts:
    """Texts of sources, looked up by the names a state gives them: from here, else from the state's folder."""

    def __init__(self, state: Path) -> None:
        self.folders = [Path(), state.resolve().parent]
        self._texts: dict[str, str | None] = {}

    def passage(self, note: dict) -> str | None:
        """The characters a provenance note names; None where the file is gone or has changed since."""
        if note["sha256"] not in self._texts:
            self._texts[note["sha256"]] = self._find(note["source"], note["sha256"])
        text = self._texts[note["sha256"]]
        return None if text is None else text[note["start"] : note["end"]]

    def _find(self, name: str, sha256: str) -> str | None:
        for folder in self.folders:
            path = folder / name
            if name == "stdin" or not path.is_file():
                continue
            try:
                source = read_source(str(path))
            except MPlusError:
                continue
            if source.sha256 == sha256:
                return source.text
        return None
