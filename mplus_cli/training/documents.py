"""Documents in a random order that is the same for every process of a run, each seen by exactly one of them.

In each epoch the files are put in an order drawn by seed and epoch, and within a file each block of neighbouring rows
is shuffled: memory holds one block, never the corpus. The documents of an epoch are numbered in this order, and the
process of rank r among W takes those with number % W == r. So it does not matter how many files there are, every
document of an epoch goes to one process, and shares differ by one document at most.

Each process reads (and parses) all rows and tokenizes its own: reading is a small part of what a step costs.

A position is plain data: the block, the place in it, and how many documents came before. Continuing from it reads the
rows of its block again and gives the very same sequence.

Where a step uses a small part of a text, tokenizing all of it is most of the work: `longest` cuts texts into pieces
that are documents of their own (see `pieces`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import NamedTuple

from mplus_cli.data.building.identity import document_id
from mplus_cli.data.building.rows import BadRows
from mplus_cli.errors import UsageError
from mplus_cli.training.pieces import cut
from mplus_cli.training.reading import Asked, Read, read_documents
from mplus_cli.training.sources import Sources

BLOCK_ROWS = 1024
BLOCK_CHARACTERS = 8 << 20


class Place(NamedTuple):
    """Where a document was met: epoch, number of its file in `Sources.files`, row in it, piece of the row's text."""

    epoch: int
    file: int
    row: int
    piece: int = 0


@dataclass(frozen=True)
class Document:
    """One text to train on.

    Attributes:
        whole: identity of the text that it is a piece of; None: it is no piece.
    """

    text: str
    place: Place
    questions: tuple[Asked, ...] = ()
    whole: str | None = None

    @cached_property
    def id(self) -> str:
        """Hash of the text, the same identity that builds give it."""
        return document_id(self.text)


class Block(NamedTuple):
    """Where a block of documents begins.

    Attributes:
        epoch: from 0.
        file: place of its file in the epoch's order.
        row: first row of the block.
        number: documents of the epoch before the block.
        broken: rows that could not be read before it, in all epochs.
    """

    epoch: int = 0
    file: int = 0
    row: int = 0
    number: int = 0
    broken: int = 0


class DocumentStream:
    """This process's documents, epoch after epoch, without end.

    Args:
        sources: what to read.
        rank, world: this process among all that read the same.
        seed: of the order.
        longest: characters of a document; longer texts are cut. None for no limit.

    Attributes:
        bad: rows that could not be read, so far.
    """

    def __init__(self, sources: Sources, rank: int, world: int, seed: int, longest: int | None = None) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} processes")
        self.sources, self.rank, self.world, self.seed, self.longest = sources, rank, world, seed, longest
        self.bad = BadRows(sys.maxsize)
        self._documents: list[Document] = []  # of the present block
        self._start(Block())

    @property
    def epoch(self) -> int:
        """Epoch of the next document."""
        return self._block.epoch

    def take(self, count: int) -> list[Document]:
        """The next documents, at most `count`, all of one epoch. None: an epoch has ended, and the next one begins."""
        taken: list[Document] = []
        while len(taken) < count:
            if self._index == len(self._documents) and not self._next_block():
                if not taken:
                    self._start(Block(epoch=self.epoch + 1, broken=self.bad.count))
                return taken
            number = self._block.number + self._index
            if number % self.world == self.rank:
                taken.append(self._documents[self._index])
            self._index += 1
        return taken

    def state_dict(self) -> dict[str, int]:
        return {**self._block._asdict(), "index": self._index}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._start(Block(**{key: state[key] for key in Block._fields}))
        if state["index"]:
            self._documents, self._after = self._read_block()
        self._index = state["index"]

    def reread(self, places: Iterable[Place]) -> list[Document]:
        """Documents that were met before, by their places.

        Raises:
            UsageError: one is no longer there.
        """
        wanted = list(places)
        found: dict[tuple[int, ...], Document] = {}
        for number in {place.file for place in wanted}:
            rows = {place.row for place in wanted if place.file == number}
            reads = read_documents(self.sources.files[number], BadRows(sys.maxsize), rows, max(rows) + 1)
            found |= {
                document.place[1:]: document for read in reads for document in self._documents_of(read, 0, number)
            }
        for place in wanted:
            if place[1:] not in found:
                raise UsageError(
                    f"{self.sources.files[place.file].name} has changed: its row {place.row + 1} cannot be read.",
                    "Put it back as it was when the checkpoint was written.",
                )
        return [replace(found[place[1:]], place=place) for place in wanted]

    def _start(self, block: Block) -> None:
        """Go to where `block` begins, its documents unread."""
        self._block, self._index = block, 0
        self._documents = []
        self._after = block.row
        self._order = list(range(len(self.sources.files)))
        Random(f"{self.seed}/{block.epoch}").shuffle(self._order)
        self.bad.count = block.broken
        self._reader = self._open()

    def _next_block(self) -> bool:
        """Go on to the next block with documents; False at the end of the epoch."""
        self._block = self._block._replace(
            number=self._block.number + len(self._documents), row=self._after, broken=self.bad.count
        )
        self._documents, self._index = [], 0
        while self._block.file < len(self._order):
            self._documents, self._after = self._read_block()
            if self._documents:
                return True
            self._block = self._block._replace(file=self._block.file + 1, row=0, broken=self.bad.count)
            self._after = 0
            self._reader = self._open()
        return False

    def _open(self) -> Iterator[Read]:
        """The documents from where the block begins to the end of its file."""
        if self._block.file == len(self._order):
            return iter(())
        file = self.sources.files[self._order[self._block.file]]
        return read_documents(file, self.bad, range(self._block.row, sys.maxsize))

    def _read_block(self) -> tuple[list[Document], int]:
        """The documents of a block, shuffled, and the row after it."""
        number = self._order[self._block.file]
        documents: list[Document] = []
        rows, size, after = 0, 0, self._block.row
        for read in self._reader:
            documents += self._documents_of(read, self.epoch, number)
            rows, size, after = rows + 1, size + len(read.text), read.row + 1
            if rows == BLOCK_ROWS or size >= BLOCK_CHARACTERS:
                break
        Random(f"{self.seed}/{self.epoch}/{self.sources.files[number].name}/{self._block.row}").shuffle(documents)
        return documents, after

    def _documents_of(self, read: Read, epoch: int, file: int) -> list[Document]:
        """The pieces of what a row holds; all of it where it is short enough."""
        if self.longest is None or len(read.text) <= self.longest:
            return [Document(read.text, Place(epoch, file, read.row), read.questions)]
        whole = document_id(read.text)
        return [
            Document(piece.text, Place(epoch, file, read.row, number), piece.questions, whole)
            for number, piece in enumerate(cut(read, self.longest))
        ]
