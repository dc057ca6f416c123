"""The phases of long streams: the retriever alone on frozen memories, then reader, writer and retriever together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.default_model import tasks
from recipes.default_model.fast_model import FastModel
from recipes.default_model.phase import Phase
from recipes.default_model.streams import long_term, split_memory, take, write_streams


class Search(Phase):
    """The retriever alone. Memories and questions are computed once and kept, so a step costs a tenth of a joint one.

    Candidates are memory tokens of several streams at once, six random ones of each chunk.
    """

    LEVELS = (9.9,)  # ends with the time
    BATCHES, STREAMS, WRITES, QUESTIONS, TOKENS = 20, 3, 24, 60, 6

    def __init__(self, model: FastModel, work: Path, level: int, seed: list[int], rank: int) -> None:
        super().__init__(model, work, level, seed, rank)
        with torch.no_grad():
            self.kept = [self.remember() for _ in range(self.BATCHES)]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".query." in name or ".key." in name)

    def remember(self) -> tuple[list[Tensor], list[Tensor], tasks.Questions]:
        """Per layer the memory rows `[S, C * K, d]` and what the retriever sees of the questions `[S * Q, n, d]`."""
        model, count, size = self.model, self.WRITES, self.model.s.chunk
        drawn = [tasks.stream(self.rng, self.pools["full"], count, size) for _ in range(self.STREAMS)]
        chunks = torch.from_numpy(np.stack([d[0] for d in drawn]))
        written = write_streams(model, chunks, torch.zeros(len(drawn), 0, dtype=torch.int64))
        packed = tasks.pack([q for d in drawn for q in tasks.ask(self.rng, d, list(range(count)), self.QUESTIONS)])
        short, long = split_memory(self.rng, model, len(drawn), count)
        store = long_term(model, written, long)
        if store is not None:
            writes = [where.repeat_interleave(self.QUESTIONS, 0) // model.s.memory_tokens for where in long]
            store.wanted = [w == packed.chunk[:, None] for w in writes]
        held = [take(r, w) for r, w in zip(written.rows, short, strict=True)]
        _, seen = model.read(packed.ids, held, store, packed.prompt)
        return written.rows, seen, packed

    def step(self, step: int, progress: float) -> Tensor:
        k = self.model.s.memory_tokens
        picked = [self.kept[int(i)] for i in self.rng.integers(0, len(self.kept), 2)]
        candidates = torch.arange(self.WRITES)[:, None] * k + torch.from_numpy(
            self.rng.random((self.WRITES, k)).argsort(1)[:, : self.TOKENS]
        )
        candidates = candidates.flatten()
        losses = []
        for i in range(self.model.s.layers):
            keys = torch.cat([rows[i][:, candidates].flatten(0, 1) for rows, _, _ in picked])
            keys = self.model.search_keys(i, keys)[None]
            for number, (_, seen, packed) in enumerate(picked):
                use = torch.from_numpy(np.flatnonzero(self.rng.random(len(packed.chunk)) < 0.5))
                use = use[packed.chunk[use] >= 0]
                scores = self.model.score(self.model.search_vectors(i, seen[i][use]), keys, packed.prompt[use])
                stream = number * self.STREAMS + use // self.QUESTIONS
                first = (stream * self.WRITES + packed.chunk[use]) * self.TOKENS
                right = first[:, None] + torch.arange(self.TOKENS)
                logs = scores.log_softmax(-1)
                good = logs.gather(1, right)
                losses.append(-0.5 * good.mean() - 0.5 * good.logsumexp(1).mean())
                best = logs.detach().topk(self.TOKENS, -1).indices
                self.note(f"found{i}", (best // self.TOKENS == (first // self.TOKENS)[:, None]).float().mean().item())
        return torch.stack(losses).mean()


class Far(Phase):
    """Long streams: the reader learns to use what the retriever brings while the retriever learns to bring it.

    The retriever's loss also reaches the language model here: writes learn to be found, prompts to say whom they
    mean. (Published training detaches; on frozen features this retriever hardly learned.) Level 0 starts with short
    streams and helps retrieval along; level 1 is the task as it is, with the language model weighted higher; at level 2
    every store also holds the long-term tokens of the other streams, as if much had been read before.
    """

    LEVELS = (9.9, 9.9, 9.9)  # ends with the time
    QUESTIONS = 12

    def step(self, step: int, progress: float) -> Tensor:
        self.model.search_teaches = True
        easy = self.level == 0
        longest = int(16 + 32 * min(1.0, progress / 0.5)) if easy else 56
        helped = 0.4 * (1 - progress / 0.4) if easy else 0.0
        count = int(self.shapes.integers(8, longest + 1))
        batch = max(2, min(8, (160 if easy else 200) // count))
        if self.level == 2:
            count, batch = int(self.shapes.integers(12, 41)), 5
        pool, model = self.pools["full"], self.model
        size = model.s.chunk
        if not easy and self.shapes.random() < 0.2:  # the last chunk of a text is shorter
            size = int(self.shapes.integers(model.s.memory_tokens, size))
        drawn = [tasks.stream(self.rng, pool, count, size) for _ in range(batch)]
        chunks = torch.from_numpy(np.stack([d[0] for d in drawn]))
        graded = np.stack([np.append(self.rng.permutation(np.arange(1, count - 1))[:5], count - 1) for _ in drawn])
        written = write_streams(model, chunks, torch.from_numpy(graded))
        packed = tasks.pack([q for d, g in zip(drawn, graded, strict=True) for q in self.mixture(d, g)])
        short, long = split_memory(self.rng, model, batch, count)
        store = long_term(model, written, long)
        if store is not None and helped > 0:
            lucky = torch.from_numpy(self.rng.random(len(packed.chunk)) < helped)[:, None]
            writes = [where.repeat_interleave(self.QUESTIONS, 0) // model.s.memory_tokens for where in long]
            store.wanted = [lucky & (w == packed.chunk[:, None]) for w in writes]
        if store is not None and self.level == 2:
            store.values = [
                torch.stack([torch.cat([*v[b + 1 :], *v[: b + 1]]) for b in range(batch)]) for v in store.values
            ]
        held = [take(r, w) for r, w in zip(written.rows, short, strict=True)]
        hidden, seen = model.read(packed.ids, held, store, packed.prompt)
        age = (count - 1 - packed.chunk).tolist()
        names = ["d0" if a == 0 else "d1-7" if a < 8 else "d8-23" if a < 24 else "d24+" for a in age]
        loss = self.answer_loss(hidden, packed.ids, packed.labels, names)
        if store is not None:
            loss = loss + (1.0 if easy else 0.3) * self.retriever_loss(seen, written.rows, packed, count)
        return loss + (0.3 if easy else 0.5) * self.rebuild(chunks, written.rows)

    def mixture(self, drawn: tuple, graded: np.ndarray) -> list:
        """Two questions about the newest chunk, eight about other graded chunks, two about any."""
        rows = tasks.ask(self.rng, drawn, [int(graded[-1])], 2)
        rows += tasks.ask(self.rng, drawn, graded[:-1].tolist(), self.QUESTIONS - 4)
        return rows + tasks.ask(self.rng, drawn, list(range(len(drawn[0]))), 2)

    def retriever_loss(self, seen: list[Tensor], rows: list[Tensor], packed: tasks.Questions, count: int) -> Tensor:
        """Contrastive: of all memory tokens of at most 24 chunks, those of the asked chunk should score highest."""
        k, batch = self.model.s.memory_tokens, rows[0].shape[0]
        asked = packed.chunk.view(batch, -1)
        chosen = []
        for row in asked:
            must = torch.unique(row[row >= 0])
            others = torch.tensor(
                [c for c in self.rng.permutation(count).tolist() if c not in must.tolist()], dtype=torch.int64
            )
            chosen.append(torch.cat([must, others])[: min(count, 24)])
        picked = torch.stack(chosen)  # [B, S]
        index = (picked[:, :, None] * k + torch.arange(k)).flatten(1)
        positive = (index[:, None] // k == asked[:, :, None]).flatten(0, 1).float()
        if self.level == 2:  # the candidates of a row come first, then those of the other streams
            positive = F.pad(positive, (0, (batch - 1) * index.shape[1]))
        valid = packed.chunk >= 0
        total = torch.zeros(())
        for i, rows_seen in enumerate(seen):
            query = self.model.search_vectors(i, rows_seen)
            keys = self.model.search_keys(i, take(rows[i], index))
            if self.level == 2:
                keys = torch.stack([keys.roll(-b, 0).flatten(0, 1) for b in range(batch)])
            logs = self.model.score(query, keys, packed.prompt)[valid].log_softmax(-1)
            good = positive[valid]
            every = (logs * good).sum(-1).div(k)
            any_one = logs.masked_fill(good == 0, -1e9).logsumexp(-1)
            total = total - 0.5 * every.mean() - 0.5 * any_one.mean()
            best = logs.detach().topk(k, -1).indices
            self.note(f"found{i}", good.gather(1, best).mean().item())
        return total / len(seen)

    def rebuild(self, chunks: Tensor, rows: list[Tensor]) -> Tensor:
        """The newest chunk again from its own memory and the one before."""
        ids, k = chunks[:, -1], self.model.s.memory_tokens
        hidden, _ = self.model.read(ids, [r[:, -2 * k :] for r in rows])
        logits = self.model.logits(hidden[:, :-1])
        self.note("rebuilt", (logits.argmax(-1) == ids[:, 1:]).float().mean().item())
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
