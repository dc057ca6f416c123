"""Walk a batch of items through their documents: write what comes before the next question, stop, write on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.padding import left_pad
from mplus_cli.evaluation.items import Document, Item, Question

ChunkIds = Callable[[Document], Sequence[Sequence[int]]]  # a document -> token ids of its chunks


@dataclass
class Stand:
    """An item at a point where it is asked.

    Attributes:
        row: of the memory; item, questions: what is asked here, in the item's order.
        after: documents remembered; spans: for each of them its first creation index and the one after its last.
        writes, tokens: made and read so far.
        seconds: of writing since the row's last stand; a batch's time is divided by the rows that wrote.
    """

    row: int
    item: Item
    questions: list[Question]
    after: int
    spans: list[tuple[int, int]]
    writes: int
    tokens: int
    seconds: float


class Walk:
    """Writes the documents of items into the rows of one memory.

    Rows go from question point to question point together: one that has fewer chunks before its next point waits there
    for the others, so that both writing and asking happen in the largest batches there are.
    """

    def __init__(self, model: MPlusForCausalLM, memory: Memory, items: Sequence[Item], chunk_ids: ChunkIds) -> None:
        self.model, self.memory = model, memory
        self.rows = [_Row(number, item, chunk_ids) for number, item in enumerate(items)]

    def stands(self) -> Iterator[list[Stand]]:
        """Group after group of stands, the memory standing at them. Rows without questions are not written at all."""
        for number in range(max((len(row.points) for row in self.rows), default=0)):
            here = [row for row in self.rows if number < len(row.points)]
            for row in here:
                row.aim(row.points[number])
            self._write(here)
            yield [row.stand() for row in here]

    @torch.inference_mode()
    def _write(self, rows: list[_Row]) -> None:
        while rows := [row for row in rows if row.pending]:
            began = time.perf_counter()
            chunks = [row.pending.popleft() for row in rows]
            ids, mask = left_pad(chunks)
            numbers = [row.number for row in rows]
            self.model.inject(ids, self.memory, mask, rows=numbers)
            seconds = (time.perf_counter() - began) / len(rows)
            for row, chunk in zip(rows, chunks, strict=True):
                row.wrote(len(chunk), self.memory.created_total[row.number], seconds)


class _Row:
    """One item on its way."""

    def __init__(self, number: int, item: Item, chunk_ids: ChunkIds) -> None:
        self.number, self.item, self.chunk_ids = number, item, chunk_ids
        self.points = sorted({question.after for question in item.questions})
        self.pending: deque[Sequence[int]] = deque()
        self.after = self.writes = self.tokens = 0
        self.seconds = 0.0
        self._left: list[int] = []  # chunks that each document begun still has to write
        self._ends: list[int] = []  # creation index after the last token of each document written
        self._created = 0

    def aim(self, after: int) -> None:
        """Take up the chunks of the documents before `after`."""
        for document in self.item.documents[self.after : after]:
            chunks = self.chunk_ids(document)
            self.pending.extend(chunks)
            self._left.append(len(chunks))
        self.after = after

    def wrote(self, tokens: int, created_total: int, seconds: float) -> None:
        self._close_empty()
        self.writes, self.tokens, self.seconds = self.writes + 1, self.tokens + tokens, self.seconds + seconds
        self._created = created_total
        self._left[len(self._ends)] -= 1
        if self._left[len(self._ends)] == 0:
            self._ends.append(created_total)

    def stand(self) -> Stand:
        """Where the row stands now."""
        self._close_empty()
        questions = [question for question in self.item.questions if question.after == self.after]
        spans = list(zip([0, *self._ends], self._ends, strict=False))
        seconds, self.seconds = self.seconds, 0.0
        return Stand(self.number, self.item, questions, self.after, spans, self.writes, self.tokens, seconds)

    def _close_empty(self) -> None:
        """Documents without text write nothing."""
        while len(self._ends) < len(self._left) and self._left[len(self._ends)] == 0:
            self._ends.append(self._created)
