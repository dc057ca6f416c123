"""The phases before long streams: copying, questions in context, writing and reading memory."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.default_model import random_tasks, tasks
from recipes.default_model.phase import Phase
from recipes.default_model.random_tasks import IGNORE
from recipes.default_model.streams import write_streams


class Copying(Phase):
    """Random strings, each followed by its copy: settles the hand-written circuits of `copying_start`."""

    LEVELS = (0.97,)

    def step(self, step: int, progress: float) -> Tensor:
        n = int(self.shapes.integers(10, 33))
        ids = torch.from_numpy(self.rng.integers(0, self.model.s.vocabulary, (24, n))).repeat(1, 2)
        logits, target = self.model.logits(self.model.plain(ids)[:, n:-1]), ids[:, n + 1 :]
        self.note("copied", (logits.argmax(-1) == target).float().mean().item())
        self.advance("copied")
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())


class Base(Phase):
    """Questions about a passage in the same context, with plain language modelling on the passage."""

    LEVELS = (0.85, 0.9, 0.97)

    def step(self, step: int, progress: float) -> Tensor:
        draw = self.shapes.random()
        mix = ((0.15, 0.85, 1.0), (0.1, 0.25, 1.0), (0.05, 0.05, 0.2))[min(self.level, 2)]
        kind = ("repeat", "bare", "names", "full")[int(np.searchsorted(mix, draw))]
        if kind == "repeat":
            ids, labels = random_tasks.repeat(self.rng, 16, 112, self.model.s.vocabulary, 24)
            return self.loss(ids, labels, labels, kind)
        length = {"bare": (40, 80), "names": (60, 110), "full": (90, 130)}[kind]
        ids, dense, sparse = tasks.questions_in_context(self.rng, self.pools[kind], 20, length, 4)
        loss = self.loss(ids, dense, sparse, kind)
        if self.level < 3:
            self.advance(("bare", "names", "full")[self.level])
        return loss

    def loss(self, ids: Tensor, dense: Tensor, sparse: Tensor, kind: str) -> Tensor:
        hidden = self.model.plain(ids)
        asked = sparse[:, 1:] != IGNORE
        wanted = asked | (dense[:, 1:] != IGNORE)
        target = ids[:, 1:][wanted]
        logits = self.model.logits(hidden[:, :-1][wanted])
        losses, asked = F.cross_entropy(logits, target, reduction="none"), asked[wanted]
        self.note(kind, (logits.argmax(-1) == target)[asked].float().mean().item())
        loss = losses[asked].mean()
        if not asked.all():
            self.note("text_loss", losses[~asked].mean().item())
            loss = loss + 0.5 * losses[~asked].mean()
        return loss


class Memory(Phase):
    """Write chunks, then rebuild them from memory and answer questions about them; gradient through the write."""

    LEVELS = (0.93, 0.95, 0.97)

    def step(self, step: int, progress: float) -> Tensor:
        count = (1, int(self.shapes.integers(1, 5)), int(self.shapes.integers(1, 9)))[min(self.level, 2)]
        batch = 24 if count == 1 else 12 if count < 5 else 8
        each = 1 if count == 1 else 2
        size = self.model.s.chunk
        pool = self.pools["full" if self.shapes.random() < 0.8 else "names"]
        drawn = [tasks.stream(self.rng, pool, count, size) for _ in range(batch)]
        graded = np.stack([self.rng.permutation(np.arange(1, count))[:each] for _ in drawn])
        if count > 1:  # the newest chunk is asked about in every stream
            graded[:, 0] = np.where((graded == count - 1).any(1), graded[:, 0], count - 1)
        chunks = torch.from_numpy(np.stack([d[0] for d in drawn]))
        written = write_streams(self.model, chunks, torch.from_numpy(graded))
        asked = [[0] if count == 1 else list(row) for row in graded]
        loss = self.questions(drawn, asked, written.rows, 4)
        return loss + self.rebuild(chunks, asked, written.rows)

    def questions(self, drawn: list, asked: list, rows: list[Tensor], each: int) -> Tensor:
        packed = tasks.pack(
            [q for d, chunks in zip(drawn, asked, strict=True) for q in tasks.ask(self.rng, d, chunks, each)]
        )
        hidden, _ = self.model.read(packed.ids, rows)
        loss = self.answer_loss(hidden, packed.ids, packed.labels, ["asked"] * len(packed.ids))
        self.advance("asked")
        return loss

    def rebuild(self, chunks: Tensor, asked: list, rows: list[Tensor]) -> Tensor:
        """Every asked chunk again, token by token, from memory."""
        which = torch.tensor([int(self.rng.choice(a)) for a in asked])
        ids = chunks[torch.arange(len(asked)), which]
        hidden, _ = self.model.read(ids, rows)
        logits = self.model.logits(hidden[:, :-1])
        self.note("rebuilt", (logits.argmax(-1) == ids[:, 1:]).float().mean().item())
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
