"""The memory tokens that some writes made: where they are by now, which were retrieved, which of them hold a fact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mplus_cli.core.loading import encode
from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM

Span = tuple[int, int]  # creation indices, the end not included
SHARE = 0.8  # of the positive attribution, over all layers: the fewest tokens that have it hold the fact
STEPS = 16  # of the path along which gradients are integrated
ROWS = 8  # steps in one pass


def told_counts(
    model: MPlusForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    memory: Memory,
    row: int,
    spans: Sequence[Span],
    found: Sequence[torch.Tensor] | None,
    asked: tuple[Sequence[int], str] | None,
) -> list[dict[str, Any]]:
    """Counts for every layer of one row.

    Args:
        spans: creation indices of the writes.
        found: per layer, creation indices of the long-term tokens retrieved; None while long-term memory is empty.
        asked: token ids of the question and the answer's text, to find the tokens that hold it; None not to.

    Returns:
        Per layer `short_term` and `held`, the writes' tokens in short- and long-term memory; `found`, those of `held`
        that were retrieved; `by_chance`, how many a random draw of as many would find; and the last three of the tokens
        that hold the fact (0 where that is not known).
    """
    created = torch.cat([torch.arange(start, end) for start, end in spans])
    holders = _holders(model, tokenizer, memory, row, created, asked)
    rows = []
    for layer, store in enumerate(memory.long_term[row].layers):
        live = store.all_created()
        seen = torch.empty(0, dtype=torch.int64) if found is None else found[layer].unique()
        rate = len(seen) / len(live) if len(live) else 0.0
        counts: dict[str, Any] = {
            "short_term": int(torch.isin(memory.short_term.created[row, layer], created).sum()),
        }
        for prefix, wanted in (("", created), ("fact_", created[holders[layer]])):
            held = int(torch.isin(live, wanted).sum())
            counts |= {f"{prefix}held": held, f"{prefix}found": int(torch.isin(seen, wanted).sum())}
            counts[f"{prefix}by_chance"] = held * rate
        rows.append(counts)
    return rows


def _holders(
    model: MPlusForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    memory: Memory,
    row: int,
    created: torch.Tensor,
    asked: tuple[Sequence[int], str] | None,
) -> torch.Tensor:
    """bool [L, P]: which of the tokens `created` hold what is asked; none where tokens are lost or nothing is asked."""
    tokens = None if asked is None else gather(memory, row, created)
    if asked is None or tokens is None:
        return torch.zeros(memory.num_layers, len(created), dtype=torch.bool)
    return fact_tokens(attribution(model, tokens, asked[0], encode(tokenizer, f" {asked[1]}")))


def gather(memory: Memory, row: int, created: torch.Tensor) -> torch.Tensor | None:
    """Memory tokens [L, P, d] by creation index, ascending, from wherever they are; None if one is lost."""
    layers = []
    for layer, store in enumerate(memory.long_term[row].layers):
        short = torch.isin(memory.short_term.created[row, layer], created)
        live = store.all_created()
        places = torch.isin(live, created).nonzero().squeeze(1)
        index = torch.cat([memory.short_term.created[row, layer][short], live[places]])
        if len(index) != len(created):
            return None
        values = memory.short_term.layer(layer)[row]
        near = values[short.to(values.device)]
        far = store.fetch(layer, places + store.created.start).to(near)
        layers.append(torch.cat([near, far])[index.argsort().to(near.device)])
    return torch.stack(layers)


@torch.inference_mode(False)
def attribution(
    model: MPlusForCausalLM, tokens: torch.Tensor, question: Sequence[int], answer: Sequence[int]
) -> torch.Tensor:
    """What each memory token does for the likelihood of an answer, in nats, float32 [L, P] on the CPU.

    The answer is read with these tokens [L, P, d] alone as its memory. Integrated gradients (Sundararajan et al. 2017)
    from the mean token of every layer, which tells nothing: they sum to the difference of log-likelihood between the
    two. A gradient at the tokens alone would miss what many of them hold twice.
    """
    tokens = tokens.detach().clone()
    mean = tokens.mean(1, keepdim=True)
    away = tokens - mean
    total = torch.zeros(tokens.shape[:2])
    for steps in ((torch.arange(STEPS) + 0.5) / STEPS).split(ROWS):
        given = (mean + steps.to(away)[:, None, None, None] * away).requires_grad_()
        ids = torch.tensor([[*question, *answer]] * len(steps), device=given.device)
        with torch.enable_grad():
            logits = model(input_ids=ids, memory_tokens=given, logits_to_keep=len(answer) + 1).logits[:, :-1]
            picked = logits.float().log_softmax(-1).gather(2, ids[:, len(question) :, None])
            (gradient,) = torch.autograd.grad(picked.sum(), given)
        total += (gradient.float() * away.float()).sum(-1).sum(0).cpu() / STEPS
    return total


def fact_tokens(attributed: torch.Tensor) -> torch.Tensor:
    """bool [L, P]: of all layers together the fewest tokens that have `SHARE` of the positive attribution [L, P]."""
    ranked, order = attributed.flatten().clamp(min=0).sort(descending=True)
    chosen = ranked.cumsum(0) - ranked < SHARE * ranked.sum()
    return torch.zeros_like(chosen).scatter(0, order, chosen).view_as(attributed)
