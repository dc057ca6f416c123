"""Documents kept out of training to measure it by: the first ones in the order of a keyed hash of their texts.

Which documents these are depends on the sources alone: not on the seed, the number of processes or the batch size. So
later stages on the same sources hold out the same ones. A document is known by its text, and its copies are held out
with it.

Candidates are looked for in all files, a few rows of each, and only as many files are read on as it takes: a run does
not begin by reading its whole corpus.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from mplus_cli.data.building.identity import sampling_key
from mplus_cli.data.building.rows import BadRows
from mplus_cli.errors import UsageError
from mplus_cli.training.documents import Document, Place
from mplus_cli.training.examples import Tokenized, rejection, tokenize
from mplus_cli.training.reading import read_documents
from mplus_cli.training.sources import Sources

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mplus_cli.training.recipe import DataSettings

ORDER = 0x4E1D007  # of the keyed hash; a constant, so that another seed does not train on what was held out before
_CANDIDATES = 8  # looked at for each that is wanted
_KEPT = 4  # one of so many is held in memory; the others would be chosen only if nearly all of these were rejected
_GROUP = 32


@dataclass(frozen=True)
class HeldOut:
    """The documents that are kept out of training, in the order of their keys."""

    documents: tuple[Tokenized, ...] = ()

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(document.id for document in self.documents)


def hold_out(sources: Sources, settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> HeldOut:
    """Choose `settings.eval_documents` documents.

    Raises:
        UsageError: the sources have no more than that; the message says why documents were rejected.
    """
    wanted = settings.eval_documents
    if wanted == 0:
        return HeldOut()
    enough = _CANDIDATES * wanted
    while True:
        candidates, complete = _candidates(sources, enough)
        chosen, reasons = _usable(candidates, wanted, settings, tokenizer)
        if len(chosen) == wanted:
            return HeldOut(tuple(chosen))
        if complete:
            why = "".join(f"; {count:,} {reason}" for reason, count in sorted(reasons.items()))
            raise UsageError(
                f"data.eval_documents is {wanted:,}, and there are {len(chosen):,} usable documents in all{why}.",
                "Hold out fewer, or add sources.",
            )
        enough *= 4


def _candidates(sources: Sources, enough: int) -> tuple[list[Document], bool]:
    """The first by key of about `enough` different documents, sorted by key; and whether there are no others at all."""
    rows = max(16, -(-enough // len(sources.files)))
    order = sorted(range(len(sources.files)), key=lambda number: sampling_key(sources.files[number].name, ORDER))
    found: dict[str, Document] = {}
    seen, complete = 0, True
    for number in order:
        reads = read_documents(sources.files[number], BadRows(sys.maxsize))
        for read in islice(reads, rows):
            document = Document(read.text, Place(0, number, read.row), read.questions)
            found.setdefault(sampling_key(document.id, ORDER), document)
            seen += 1
        complete = complete and next(reads, None) is None
        if len(found) > enough // _KEPT:
            found = {key: found[key] for key in sorted(found)[: enough // _KEPT]}
            complete = False
        if seen >= enough:
            complete = complete and number == order[-1]
            break
    return [found[key] for key in sorted(found)], complete


def _usable(
    candidates: Sequence[Document], wanted: int, settings: DataSettings, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Tokenized], Counter[str]]:
    """The first candidates that give examples, and how many were rejected for which reason."""
    chosen: list[Tokenized] = []
    reasons: Counter[str] = Counter()
    for document in _tokenized(candidates, tokenizer):
        reason = rejection(len(document.tokens), settings)
        if reason is not None:
            reasons[reason] += 1
        else:
            chosen.append(document)
        if len(chosen) == wanted:
            break
    return chosen, reasons


def _tokenized(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> Iterator[Tokenized]:
    for start in range(0, len(documents), _GROUP):
        yield from tokenize(documents[start : start + _GROUP], tokenizer)
