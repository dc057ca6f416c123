"""Reading texts and scoring them: the second half of every task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mplus_cli.core.adapters import READ, Adapter
from mplus_cli.core.cache import MemoryCache
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.prefix import Prefix, TokenPrefix
from mplus_cli.training.contexts import GradedWrite, Span
from mplus_cli.training.graded import GradedPrefix, Search
from mplus_cli.training.losses import IGNORE, next_token_losses
from mplus_cli.training.merging import merged_adapter
from mplus_cli.training.recompute import recomputed_layers
from mplus_cli.training.retrieving import RetrieverTraining, recall, write_side_loss
from mplus_cli.training.tasks.work import Outcome, Work


@dataclass(frozen=True)
class Text:
    """A text to read.

    Attributes:
        id: of its document, for messages.
        ids, labels: token ids, and what is to be predicted, `IGNORE` where nothing is.
        row: the memory it reads.
        prompt: how many of its first tokens memory is searched with; None for all.
        span: creation indices of the writes that told what it is about, None where nothing did.
    """

    id: str
    ids: Sequence[int]
    labels: Sequence[int]
    row: int
    prompt: int | None = None
    span: Span | None = None


def right_padded(texts: Sequence[Text]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, two int64 [T, n]. Padding comes after a text, where causal attention hides it."""
    width = max(len(text.ids) for text in texts)
    ids = torch.zeros(len(texts), width, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORE)
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = torch.as_tensor(text.ids)
        labels[row, : len(text.labels)] = torch.as_tensor(text.labels)
    return ids, labels


def read(
    model: MPlusForCausalLM, ids: torch.Tensor, prefix: Prefix, adapter: Adapter = READ, recompute: bool = False
) -> torch.Tensor:
    """Hidden states [T, n, d], before the final norm, of right-padded texts [T, n] behind a prefix."""
    hidden = model.model.embed_tokens(ids.to(model.device))
    with merged_adapter(model, adapter, unless=recompute), recomputed_layers(model, recompute):
        return model.run_layers(hidden, prefix, MemoryCache())


def text_losses(work: Work, texts: Sequence[Text], prefix: Prefix, adapter: Adapter = READ) -> torch.Tensor:
    """Mean cross-entropy of each text, [T]."""
    recompute = work.recipe.loss.gradient_checkpointing
    ids, labels = right_padded(texts)
    hidden = read(work.model, ids, prefix, adapter, recompute)
    return next_token_losses(work.model, hidden, labels, [text.id for text in texts], recompute)


def behind_tokens(work: Work, texts: Sequence[Text], tokens: Sequence[torch.Tensor]) -> TokenPrefix:
    """`[BOS_l | given memory tokens]`, [L, p, d] for each text; right-aligned where texts have different numbers."""
    counts = [one.shape[1] for one in tokens]
    width = max(counts)
    if min(counts) == width:
        return TokenPrefix(work.model, len(texts), torch.stack(list(tokens)))
    padded = torch.stack([torch.nn.functional.pad(one, (0, 0, width - one.shape[1], 0)) for one in tokens])
    valid = torch.arange(width, device=padded.device) >= width - torch.tensor(counts, device=padded.device)[:, None]
    return TokenPrefix(work.model, len(texts), padded, valid)


def read_memory(
    work: Work,
    texts: Sequence[Text],
    graded: Sequence[GradedWrite] = (),
    train_retriever: bool = False,
    write_side: bool = False,
    help: float = 0.0,
) -> Outcome:
    """Read texts from whole memories; cross-entropy, and where asked for the retriever's losses.

    Args:
        graded: writes that keep gradient.
        train_retriever: add the retriever's loss of texts that have a span, if the recipe has one.
        write_side: also from the write side, if the recipe has that.
        help: probability that the long-term tokens of a text's span are found whatever their score.
    """
    settings, memory = work.recipe.loss, work.memory
    train_retriever = train_retriever and settings.retriever is not None and any(text.span for text in texts)
    query = _search(work, texts)
    if help:
        lucky = work.rng.random(len(texts)) < help
        query.wanted = [text.span if hit else None for text, hit in zip(texts, lucky, strict=True)]
    prefix = GradedPrefix(
        work.model,
        memory,
        [text.row for text in texts],
        graded,
        query,
        keep_seen=train_retriever or bool(memory.long_term),
        differentiable=train_retriever and settings.reaches_model,
        recompute=settings.gradient_checkpointing,
    )
    losses = text_losses(work, texts, prefix)
    loss = losses.mean()
    outcome = Outcome(loss, {"ce": loss.detach()}, sum(len(text.ids) for text in texts))
    spans = [text.span or (0, 0) for text in texts]
    if train_retriever:
        trained = torch.tensor([text.span is not None for text in texts], device=loss.device)
        training = RetrieverTraining(work.model, settings, prefix, spans, _search(work, texts), work.rng)
        each, precision = training.run()
        _add(outcome, "retriever", (each * trained).sum() / trained.sum(), settings.retriever_weight)
        if not precision.isnan():
            outcome.parts["retriever_precision"] = precision.detach()
        if write_side and settings.write_side:
            rows = {text.row: text.span for text in texts if text.span is not None}
            each = write_side_loss(work.model, settings, memory, rows)
            _add(outcome, "write_retriever", each.mean(), settings.retriever_weight)
    helped = query.wanted or [None] * len(texts)
    _measure_recall(outcome, prefix, [span if own is None else (0, 0) for span, own in zip(spans, helped, strict=True)])
    return outcome


def _add(outcome: Outcome, name: str, loss: torch.Tensor, weight: float) -> None:
    outcome.loss = outcome.loss + weight * loss
    outcome.parts[name] = loss.detach()


def _measure_recall(outcome: Outcome, prefix: GradedPrefix, spans: Sequence[Span]) -> None:
    measured = recall(prefix, spans) if prefix.seen and any(end > start for start, end in spans) else None
    if measured is not None:
        found, chance = (torch.tensor(value) for value in measured)
        outcome.parts |= {"recall": found, "recall_over_chance": found / chance}


def _search(work: Work, texts: Sequence[Text]) -> Search:
    """The tokens to search with, with a random length of them where the recipe says so; a new draw at every call."""
    prompts = np.array([len(text.ids) if text.prompt is None else text.prompt for text in texts])
    valid = torch.from_numpy(np.arange(prompts.max()) < prompts[:, None]).to(work.model.device)
    lengths = None
    if work.recipe.loss.random_query_length:
        layers = work.model.config.text_config.num_hidden_layers
        lengths = torch.from_numpy(work.rng.integers(1, np.maximum(prompts, 2), (layers, len(texts))))
    return Search(valid, lengths)
