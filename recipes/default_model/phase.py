"""What all phases of the curriculum share: random numbers, text, running means, levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.default_model import chronicle_pool
from recipes.default_model.fast_model import FastModel
from recipes.default_model.random_tasks import IGNORE


class Phase:
    """Common parts: random numbers (`rng` differs between processes, `shapes` does not), running means, levels."""

    LEVELS: tuple[float, ...] = ()  # score of each level at which the next begins; the last ends the phase

    def __init__(self, model: FastModel, work: Path, level: int, seed: list[int], rank: int) -> None:
        self.model, self.level = model, level
        self.rng = np.random.default_rng([*seed, rank, 17])
        self.shapes = np.random.default_rng([*seed, 99])
        self.pools = {p.stem: chronicle_pool.load(p) for p in sorted(work.glob("*.pkl"))}
        self.means: dict[str, float] = {}

    def step(self, step: int, progress: float) -> Tensor:
        """The loss of one step. progress: share of the phase's time that is over."""
        raise NotImplementedError

    def note(self, name: str, value: float) -> None:
        self.means[name] = 0.95 * self.means.get(name, value) + 0.05 * value

    def status(self) -> str:
        return f"level {self.level} " + " ".join(f"{k} {v:.3f}" for k, v in sorted(self.means.items()))

    def advance(self, score: str) -> None:
        """Moves to the next level when the running mean of `score` is high enough."""
        if self.level < len(self.LEVELS) and self.means.get(score, 0.0) > self.LEVELS[self.level]:
            self.level += 1
            self.means = {k: v * 0.8 for k, v in self.means.items()}

    def finished(self) -> bool:
        return self.level >= len(self.LEVELS)

    def share(self, dist) -> None:
        """All processes work at the level of the first one."""
        level = torch.tensor([self.level])
        dist.broadcast(level, 0)
        self.level = int(level)

    def answer_loss(self, hidden: Tensor, ids: Tensor, labels: Tensor, names: list[str]) -> Tensor:
        """Cross-entropy on labelled tokens; notes exact match under the name of each row."""
        target = labels[:, 1:]
        wanted = target != IGNORE
        logits = self.model.logits(hidden[:, :-1][wanted])
        right = torch.ones_like(target, dtype=torch.bool)
        right[wanted] = logits.argmax(-1) == target[wanted]
        exact, asked = right.all(1), wanted.any(1)
        for name in sorted(set(names)):
            rows = asked & torch.tensor([n == name for n in names])
            if rows.any():
                self.note(name, exact[rows].float().mean().item())
        return F.cross_entropy(logits, target[wanted])
