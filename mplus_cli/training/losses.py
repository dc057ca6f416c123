"""Losses on what a read pass gives: next-token cross-entropy, and the retriever's two objectives (M+ section 3.2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.errors import MPlusError

IGNORE = -100
EPSILON = 1e-5  # inside the published logarithms
LOGIT_ROWS = 2_048  # tokens whose logits exist at a time where they are recomputed


class MaskedBatchError(MPlusError):
    """Texts without a single labelled token: a step on them would teach nothing, silently."""

    def __init__(self, ids: Sequence[str]) -> None:
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        super().__init__(
            f"Every label is masked in {shown}: there is nothing to learn from.",
            "Look at these documents; they may be too short for data.min_chunk and tasks.repeat_unscored.",
        )
        self.ids = list(ids)


def next_token_losses(
    model: MPlusForCausalLM, hidden: torch.Tensor, labels: torch.Tensor, ids: Sequence[str], recompute: bool = False
) -> torch.Tensor:
    """Mean cross-entropy of every text.

    Args:
        hidden: [T, n, d], before the final norm; labels: int64 [T, n], `IGNORE` where there is no loss. The label at a
            place is predicted from the place before it, so the first one never counts.
        ids: of the texts, for messages.
        recompute: make logits again in the backward pass instead of keeping them.

    Returns:
        float32 [T]. Their mean gives every text the same weight, however long, as one text per process would.

    Raises:
        MaskedBatchError: a text has no label.
    """
    target = labels[:, 1:]
    wanted = target != IGNORE
    counts = wanted.sum(1)
    empty = (counts == 0).tolist()
    if any(empty):
        raise MaskedBatchError([name for name, none in zip(ids, empty, strict=True) if none])
    rows, target = hidden[:, :-1][wanted.to(hidden.device)], target[wanted].to(hidden.device)
    token_loss = partial(_token_losses, model)
    if recompute:
        parts = zip(rows.split(LOGIT_ROWS), target.split(LOGIT_ROWS), strict=True)
        losses = torch.cat([checkpoint(token_loss, *part, use_reentrant=False) for part in parts])
    else:
        losses = token_loss(rows, target)
    text = wanted.nonzero()[:, 0].to(losses.device)
    return losses.new_zeros(len(labels)).index_add(0, text, losses) / counts.to(losses.device)


def _token_losses(model: MPlusForCausalLM, rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model.lm_head(model.model.norm(rows)).float(), target, reduction="none")


class PublishedRetrieverLoss:
    """Binary cross-entropy on scores in (0, 1), positives and negatives each averaged over all layers of a text.

    (mean(-log(w + 1e-5)) over positives + weight * mean(-log(1 - w + 1e-5)) over negatives) / 2; a side without
    memory tokens adds 0. The paper's formula shows neither the mean nor the half; the released code has both.
    """

    def __init__(self, negative_weight: float) -> None:
        self.negative_weight = negative_weight
        self.sums: list[tuple[torch.Tensor, ...]] = []

    def add(self, scores: torch.Tensor, positive: torch.Tensor, valid: torch.Tensor) -> None:
        """One layer of some texts. scores: float32 [T, m]; positive, valid: bool [T, m]."""
        right, wrong = positive & valid, ~positive & valid
        found = (-(scores + EPSILON).log() * right).sum(1)
        avoided = (-(1 - scores + EPSILON).log() * wrong).sum(1)
        self.sums.append((found, right.sum(1), avoided, wrong.sum(1)))

    def losses(self) -> torch.Tensor:
        """[T], over the layers added."""
        found, right, avoided, wrong = (torch.stack(column).sum(0) for column in zip(*self.sums, strict=True))
        return (found / right.clamp(min=1) + self.negative_weight * avoided / wrong.clamp(min=1)) / 2


class ContrastiveRetrieverLoss:
    """Softmax over all memory tokens, averaged over layers; several positives (ours).

    Half of it asks that every positive be likely (mean of -log p), half that any be (-log of their sum): the first
    alone spends itself on tokens that do not tell what was asked, the second alone lets all but one go.
    """

    def __init__(self) -> None:
        self.layers: list[torch.Tensor] = []

    def add(self, scores: torch.Tensor, positive: torch.Tensor, valid: torch.Tensor) -> None:
        """One layer of some texts. scores: float32 [T, m], logits; positive, valid: bool [T, m]."""
        logs = scores.masked_fill(~valid, -torch.inf).log_softmax(-1)
        right = positive & valid
        count = right.sum(1)
        every = -logs.masked_fill(~right, 0.0).sum(1) / count.clamp(min=1)
        # A text without positives gives 0; without the guard its gradient would be NaN.
        safe = right | (count == 0).unsqueeze(1) & valid
        any_one = -logs.masked_fill(~safe, -torch.inf).logsumexp(1)
        self.layers.append(torch.where(count > 0, 0.5 * every + 0.5 * any_one, 0.0))

    def losses(self) -> torch.Tensor:
        """[T], over the layers added."""
        return torch.stack(self.layers).mean(0)


def precision_at_positives(scores: torch.Tensor, positive: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Of the best-scored memory tokens, as many as there are positives, the share that are. [T, m] -> [T].

    NaN for a text without positives.
    """
    right = positive & valid
    count = right.sum(1, keepdim=True)
    best = scores.detach().masked_fill(~valid, -torch.inf).topk(int(count.max()), dim=1).indices
    first = torch.arange(best.shape[1], device=scores.device) < count
    return (right.gather(1, best) & first).sum(1) / count.squeeze(1)
