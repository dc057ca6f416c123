"""The retriever's loss and its recall: which memory tokens a text should find, by creation index (M+ 3.2.2, app. E.3).

Positives of a text are the memory tokens that the writes of its own contexts made, whatever of them is left; all other
memory tokens are negatives. The published form scores short-term memory as a stand-in for long-term memory. The
contrastive form scores both, and with hard negatives the memories of the other rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.short_term_memory import EMPTY
from mplus_cli.training.contexts import Span
from mplus_cli.training.graded import GradedPrefix, Search
from mplus_cli.training.losses import ContrastiveRetrieverLoss, PublishedRetrieverLoss, precision_at_positives
from mplus_cli.training.recipe import LossSettings

Candidates = tuple[torch.Tensor, torch.Tensor]  # rows [B, C, d] and creation indices int64 [B, C] on the CPU


def within(created: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
    """Which memory tokens a span holds. created: int64 [T, m]; spans: int64 [T, 2] -> bool [T, m]."""
    return (created >= spans[:, :1]) & (created < spans[:, 1:])


def log_sum_exp_scores(queries: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """`Retriever.scores` in the contrastive form with few passes over the products, for keys that all texts share.

    Args:
        queries: [T, n, r]; keys: [m, r]; valid: bool [T, n], query tokens that count.

    Returns:
        float32 [T, m].
    """
    texts, length, size = queries.shape
    hidden = torch.zeros(texts * length, 1, device=keys.device, dtype=keys.dtype)
    hidden.masked_fill_(~valid.reshape(-1, 1), torch.finfo(keys.dtype).min / 2)
    products = torch.addmm(hidden, queries.reshape(-1, size), keys.T, alpha=1 / math.sqrt(size)).float()
    scores = products.view(texts, length, -1).logsumexp(1)
    return scores.masked_fill(~valid.any(1, keepdim=True), 0.0)


class RetrieverTraining:
    """The loss of one read pass.

    Args:
        prefix: that was read through, with `seen` kept.
        spans: per text, creation indices of the writes that told what it is about.
        query: the tokens that the loss searches with; drawn apart from those that the pass searched with.
        rng: picks candidates of large long-term memories.
    """

    def __init__(
        self,
        model: MPlusForCausalLM,
        settings: LossSettings,
        prefix: GradedPrefix,
        spans: Sequence[Span],
        query: Search,
        rng: np.random.Generator,
    ) -> None:
        self.model, self.settings, self.prefix, self.query, self.rng = model, settings, prefix, query, rng
        self.memory, self.spans = prefix.memory, torch.tensor(list(spans)).view(-1, 2)
        self.contrastive = settings.retriever == "contrastive"

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of every text, [T], and the mean precision of the best scores, scalar (NaN without positives)."""
        total = self._objective()
        precision = []
        for layer in range(len(self.prefix.seen)):
            scores, positive, valid = self.scores(layer)
            total.add(scores, positive, valid)
            precision.append(precision_at_positives(scores, positive, valid))
        return total.losses(), torch.stack(precision).nanmean()

    def scores(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores, positives and existence of all candidates of every text in one layer, three [T, C].

        With hard negatives the candidates are those of all memories, one after the other.
        """
        retriever, seen = self.model.retrievers[layer], self.prefix.seen[layer]
        rows, created = self.candidates(layer)
        queries, keys = retriever.query_proj(seen.text), self._keys(layer, rows)
        mask, device, owners = self.query.mask(layer), keys.device, self.prefix.rows.owners
        if self.contrastive and self.settings.hard_negatives:
            scores = log_sum_exp_scores(queries, keys.flatten(0, 1), mask)
            names = created.flatten().expand(len(owners), -1)
            own = owners[:, None] == torch.arange(len(keys)).repeat_interleave(keys.shape[1])
            positive, exists = own & within(names, self.spans), names != EMPTY
            return scores, positive.to(device), exists.to(device)
        score = log_sum_exp_scores if self.contrastive else retriever.scores
        found, order = [], []
        for row, texts in self.prefix.rows.texts.items():
            names = created[row].expand(len(texts), -1)
            positive, exists = within(names, self.spans[texts]), names != EMPTY
            found.append((score(queries[texts], keys[row], mask[texts]), positive.to(device), exists.to(device)))
            order += texts
        back = torch.tensor(order, device=device).argsort()
        scores, positive, exists = (torch.cat(column)[back] for column in zip(*found, strict=True))
        return scores, positive, exists

    def candidates(self, layer: int) -> Candidates:
        """Memory tokens of every memory that are scored: [B, C, d] and [B, C], `EMPTY` where a memory has fewer."""
        if self.prefix.differentiable:
            short = self.prefix.short_term_rows(layer)
        else:
            short = self.memory.short_term.values[:, layer, : self.prefix.width_short - 1]
        created = self.prefix.created[:, layer]
        if not self.contrastive or not self.memory.long_term:
            return short, created
        picked = [self._long_term_positions(layer, row) for row in range(self.memory.batch_size)]
        width = max(len(one) for one in picked)
        values = short.new_zeros(len(picked), width, short.shape[-1])
        names = torch.full((len(picked), width), EMPTY)
        for row, positions in enumerate(picked):
            if len(positions):
                held, own = self.memory.long_term[row].layers[layer].take(layer, positions)
                values[row, : len(own)], names[row, : len(own)] = held.to(values), own
        if self.prefix.differentiable:
            values = self.prefix.graded.put(layer, values, names, torch.arange(len(picked)))
        return torch.cat([short, values], dim=1), torch.cat([created, names], dim=1)

    def _long_term_positions(self, layer: int, row: int) -> torch.Tensor:
        """Arrival positions of the long-term tokens to score: all, or the positives and a random choice."""
        store, most = self.memory.long_term[row].layers[layer], self.settings.candidates
        positions = store.all_positions()
        if not most or len(positions) <= most:
            return positions
        texts = self.prefix.rows.texts.get(row, [])
        held = store.all_created().expand(len(texts), -1)
        positive = within(held, self.spans[texts]).any(0) if texts else torch.zeros(len(positions), dtype=torch.bool)
        negative = np.flatnonzero(~positive.numpy())
        others = torch.from_numpy(self.rng.choice(negative, min(most, len(negative)), replace=False))
        keep = positive.clone()
        keep[others] = True
        return positions[keep]

    def _keys(self, layer: int, rows: torch.Tensor) -> torch.Tensor:
        """Retrieval keys of candidates, with gradient into the rows only where the loss reaches the model."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.prefix.differentiable):
            normed = self.model.model.layers[layer].input_layernorm(rows)
        return self.model.retrievers[layer].key_proj(normed)

    def _objective(self) -> PublishedRetrieverLoss | ContrastiveRetrieverLoss:
        return ContrastiveRetrieverLoss() if self.contrastive else PublishedRetrieverLoss(self.settings.negative_weight)


def write_side_loss(
    model: MPlusForCausalLM, settings: LossSettings, memory: Memory, spans: dict[int, Span]
) -> torch.Tensor:
    """The same objective from the write side: the newest K memory tokens search short-term memory.

    Args:
        spans: row of memory -> creation indices of the writes that are positives.

    Returns:
        Loss of every row, [len(spans)].
    """
    rows, device = list(spans), model.device
    wanted = torch.tensor([spans[row] for row in rows])
    size = model.config.memory_tokens_per_write
    count = min(size, *(memory.short_term.fill[row] for row in rows))
    newest = torch.stack([memory.short_term.newest(row, count) for row in rows])
    contrastive = settings.retriever == "contrastive"
    total: PublishedRetrieverLoss | ContrastiveRetrieverLoss
    total = ContrastiveRetrieverLoss() if contrastive else PublishedRetrieverLoss(settings.negative_weight)
    for layer, retriever in enumerate(model.retrievers):
        with torch.no_grad():
            norm = model.model.layers[layer].input_layernorm
            text, held = norm(newest[:, layer]), norm(memory.short_term.values[rows, layer])
        created = memory.short_term.created[rows, layer]
        scores = retriever.scores(retriever.write_query_proj(text), retriever.key_proj(held))
        total.add(scores, within(created, wanted).to(device), (created != EMPTY).to(device))
    return total.losses()


def recall(prefix: GradedPrefix, spans: Sequence[Span]) -> tuple[float, float] | None:
    """Share of the positives in long-term memory that the read pass retrieved, and how often chance would have.

    None where nothing could be missed: no positive in any store, stores no larger than what is retrieved, or none.
    """
    memory, wanted = prefix.memory, torch.tensor(list(spans)).view(-1, 2)
    if not memory.long_term:
        return None
    there = found = by_chance = 0.0
    for layer, seen in enumerate(prefix.seen):
        for row, texts in prefix.rows.texts.items():
            store = memory.long_term[row].layers[layer]
            budget = memory.config.retrieval_budget
            if len(store) <= budget:
                continue
            held = within(store.all_created().expand(len(texts), -1), wanted[texts]).sum().item()
            there += held
            found += within(seen.retrieved[texts], wanted[texts]).sum().item()
            by_chance += held * budget / len(store)
    return (found / there, by_chance / there) if there else None
