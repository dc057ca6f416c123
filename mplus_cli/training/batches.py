"""Batches of training examples: this process's documents, in batches of like length, with an exact position.

    stream = BatchStream(recipe.data, tokenizer, rank=0, world=1, seed=42)
    batch = stream.next()                      # `data.batch_size` examples
    state = stream.state_dict()                # plain data; the next batches of a stream that loads it are the same
    for batch in stream.evaluation(): ...      # the held-out documents of this process, the same ones each time

A batch is chosen from a window of `look_ahead` documents: the one that has waited longest, and those whose lengths go
with it best. Its documents cut their contexts with the same draws (see `examples`), so padding is where their lengths
differ; how much there is, is counted. The next batch is made in a thread while the present one is used.

A position belongs to one process of a number of them; another number is refused (see `checkpoints`).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from mplus_cli.errors import UsageError
from mplus_cli.training.documents import Document, DocumentStream, Place
from mplus_cli.training.examples import Example, Tokenized, make_examples, rejection, tokenize
from mplus_cli.training.held_out import hold_out
from mplus_cli.training.lengths import choose_batch, padding
from mplus_cli.training.prefetch import Prefetch
from mplus_cli.training.sources import open_sources
from mplus_cli.training.tokens import require_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mplus_cli.training.recipe import DataSettings

FORMAT = 2
_GROUP = 32  # documents tokenized in one call
_HELD_OUT = "held out for evaluation (data.eval_documents)"
_NAMED = 5


class NoDocumentsError(UsageError):
    """The first epoch went by without a document to train on."""


class Made(NamedTuple):
    """A batch, and the state and the report of its stream after it."""

    batch: list[Example]
    state: dict[str, Any]
    report: dict[str, Any]


class BatchStream:
    """Batches of `settings.batch_size` examples without end; sources are read again in each epoch, in another order.

    Everything drawn is a function of the seed, the epoch and documents' identities. What a process is given depends on
    nothing but its rank, and on `state_dict` when it goes on.

    Args:
        settings: of the recipe.
        tokenizer: of the model that is trained; a fast one.
        rank, world: this process among all.
        seed: of the recipe.

    Raises:
        UsageError: unusable sources, builds of another tokenizer, or too few documents to hold any out.
    """

    def __init__(
        self, settings: DataSettings, tokenizer: PreTrainedTokenizerBase, rank: int, world: int, seed: int
    ) -> None:
        self.settings, self.tokenizer, self.rank, self.world, self.seed = settings, tokenizer, rank, world, seed
        self.sources = open_sources(settings.sources, settings.text_field, settings.revision)
        require_tokenizer(tokenizer, self.sources.opened)
        self.held_out = hold_out(self.sources, settings, tokenizer)
        self._held_out_ids = self.held_out.ids
        self._documents = DocumentStream(self.sources, rank, world, seed, settings.longest_document)
        # A tokenizer changes its own settings when it is called: the thread has one to itself.
        self._own_tokenizer = copy.deepcopy(tokenizer)
        self._window: list[Tokenized] = []
        self._usable = 0  # documents that were read and give an example
        self._epoch = 0  # of the last batch
        self._counts: Counter[str] = Counter(dict.fromkeys(("documents", "batches", "tokens", "padded"), 0))
        self._rejected: Counter[str] = Counter()
        self._made = Made([], self._state(), self._report())
        self._ahead = Prefetch(self._make)

    def next(self) -> list[Example]:
        """The next batch, in the order in which its documents were read.

        Raises:
            NoDocumentsError: filtering left this process none in the first epoch; says how many fell to which reason.
        """
        self._made = self._ahead.next()
        return self._made.batch

    def evaluation(self) -> Iterator[list[Example]]:
        """The held-out documents of this process, in batches of like length, the last one smaller.

        An example depends on its document and the recipe's chunk and window sizes alone: figures of runs with other
        seeds, batch sizes or numbers of processes are about the same examples. None is to be repeated. The number of
        batches may differ by one between processes.
        """
        mine = sorted(self.held_out.documents[self.rank :: self.world], key=lambda document: len(document.tokens))
        for start in range(0, len(mine), self.settings.batch_size):
            batch = mine[start : start + self.settings.batch_size]
            yield make_examples(batch, [f"evaluation/{d.id}" for d in batch], self.settings, self.tokenizer, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is after the last batch it gave, as plain data (JSON): places in files, not texts."""
        return self._made.state

    def _state(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "rank": self.rank,
            "world": self.world,
            "seed": self.seed,
            "data": self.sources.digest,
            "eval_documents": self.settings.eval_documents,
            "longest_document": self.settings.longest_document,
            "position": self._documents.state_dict(),
            "waiting": [list(document.place) for document in self._window],
            "usable": self._usable,
            "epoch": self._epoch,
            "counts": {**self._counts, "rejected": dict(self._rejected)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a stream was; its rank and the number of processes must be this one's.

        Raises:
            UsageError: the state is of other sources, another seed, or another process.
        """
        self._require_same(state)
        self._ahead.drop()
        self._documents.load_state_dict(state["position"])
        waiting = self._documents.reread(Place(*place) for place in state["waiting"])
        self._window = [
            document
            for start in range(0, len(waiting), _GROUP)
            for document in tokenize(waiting[start : start + _GROUP], self._own_tokenizer)
        ]
        self._usable, self._epoch = state["usable"], state["epoch"]
        self._rejected = Counter(state["counts"]["rejected"])
        self._counts = Counter({key: count for key, count in state["counts"].items() if key != "rejected"})
        self._made = Made([], self._state(), self._report())

    def report(self) -> dict[str, Any]:
        """What was read for the batches given so far; counts are this process's, but broken rows are met by all."""
        return self._made.report

    def _report(self) -> dict[str, Any]:
        padded, bad = self._counts["padded"], self._documents.bad
        return {
            **self._counts,
            "epoch": self._epoch,
            "padding_share": 1 - self._counts["tokens"] / padded if padded else 0.0,
            "rejected": dict(self._rejected),
            "broken_rows": bad.count,
            "broken_rows_named": list(bad.named),
            "held_out": len(self.held_out.documents),
            "sources": [source.described() for source in self.sources.opened],
        }

    def _make(self) -> Made:
        """The next batch (in the thread)."""
        self._fill()
        chosen = choose_batch(self._window, self.settings.batch_size)
        batch = [self._window[place] for place in chosen]
        self._window = [document for place, document in enumerate(self._window) if place not in set(chosen)]
        self._epoch = batch[0].place.epoch
        keys = [f"{self.seed}/{self._epoch}/{batch[0].id}"] * len(batch)
        examples = make_examples(batch, keys, self.settings, self._own_tokenizer, self.settings.repeat_ratio)
        used, padded = padding(examples)
        self._counts.update(documents=len(examples), batches=1, tokens=used, padded=padded)
        return Made(examples, self._state(), self._report())

    def _fill(self) -> None:
        """Read on until the window is full; at the end of an epoch, until it has a batch.

        What is left of an epoch is used up before the next one is read into the window, lest a small corpus meets
        itself in a batch.
        """
        size = self.settings.batch_size
        while len(self._window) < max(size, self.settings.look_ahead):
            if len(self._window) >= size and self._documents.epoch > self._window[0].place.epoch:
                return
            documents = self._documents.take(_GROUP)
            if documents:
                self._admit(documents)
            else:
                self._end_epoch()

    def _admit(self, documents: list[Document]) -> None:
        """Put documents that can be trained on into the window; count the others."""
        kept = [document for document in documents if (document.whole or document.id) not in self._held_out_ids]
        if len(kept) < len(documents):
            self._rejected[_HELD_OUT] += len(documents) - len(kept)
        for document in tokenize(kept, self._own_tokenizer):
            reason = rejection(len(document.tokens), self.settings)
            if reason is None:
                self._usable += 1
                self._window.append(document)
            else:
                self._rejected[reason] += 1

    def _end_epoch(self) -> None:
        """The first epoch must have had a document to train on; a later share of a few documents may have none."""
        if self._usable:
            return
        bad = self._documents.bad
        reasons = [f"{count:,} {reason}" for reason, count in sorted(self._rejected.items())]
        if bad.count:
            reasons.append(f"{bad.count:,} that cannot be read ({'; '.join(bad.named[:_NAMED])})")
        whose = f" for process {self.rank} of {self.world}" if self.world > 1 else ""
        raise NoDocumentsError(
            f"No documents are left to train on{whose}: {', '.join(reasons) or 'fewer documents than processes'}.",
            "Lower data.min_chunk and data.max_chunk, or give longer or more documents in data.sources.",
        )

    def _require_same(self, state: dict[str, Any]) -> None:
        if (state["rank"], state["world"]) != (self.rank, self.world):
            raise UsageError(
                f"The data position is that of process {state['rank']} of {state['world']}, and this is {self.rank} of "
                f"{self.world}.",
                f"Resume with {state['world']} processes.",
            )
        for key, here, what in (
            ("format", FORMAT, "was written by another version of mplus"),
            ("data", self.sources.digest, "is of other training text: data.sources, or what is there, has changed"),
            ("seed", self.seed, "is of another seed"),
            ("eval_documents", self.settings.eval_documents, "is of another data.eval_documents"),
            ("longest_document", self.settings.longest_document, "is of another data.longest_document"),
        ):
            if state[key] != here:
                raise UsageError(
                    f"The data position {what} ({state[key]} in the checkpoint, {here} now).",
                    "Resume with the run's own recipe and data, or start a new run from its model.",
                )
