"""What is in the memory tokens of one memory, layer by layer: the measurements of `memory-report`.

A memory token of layer l is an output of decoder layer l, read as an input of the same layer (M+ section 3.1), so it
can be laid beside the outputs of layer l for ordinary text. Ordinary text is the same chunks read with the read adapter
and no memory. A write makes its tokens at the last K places of its chunk: a token stands for one of them, its own word.

Similarities are cosines after the mean of its own kind in that layer, memory or ordinary text, has been subtracted from
each side: both share large parts that would make everything similar to everything, or memory to nothing. How far the
two means lie apart is `offset`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from mplus_cli.core.adapters import READ
from mplus_cli.core.cache import MemoryCache
from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.prefix import TokenPrefix
from mplus_cli.evaluation.tasks.memory_writes import Write, spread, survival

_RANKED = 512  # tokens that an effective rank is measured on
_LENS = ("reads", "predicts", "in_chunk")
_KEYS = ("own", "source", "nearest_is_own", "other", *_LENS)


@dataclass
class Sampled:
    """A write, and ordinary text made of its chunk: outputs of every layer, [L, n, d]."""

    write: Write
    states: torch.Tensor


@torch.inference_mode()
def text_states(model: MPlusForCausalLM, ids: Sequence[int]) -> torch.Tensor:
    """Outputs of every layer for a text read without memory, [L, n, d]."""
    states: list[torch.Tensor] = []

    def leave(index: int, hidden: torch.Tensor) -> torch.Tensor:
        states.append(hidden[0])
        return hidden

    model.adapters.use(READ)
    embedded = model.model.embed_tokens(torch.tensor([list(ids)], device=model.device))
    model.run_layers(embedded, TokenPrefix(model, 1, None), MemoryCache(), leave=leave)
    return torch.stack(states)


@torch.inference_mode()
def examine(
    model: MPlusForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    memory: Memory,
    row: int,
    writes: Sequence[Write],
    chunks: int,
    words: int,
) -> list[dict[str, Any]]:
    """One plain JSON record per layer for a row of memory (see `memory_report.MemoryReport` for the keys).

    Args:
        writes: all that this row holds beyond what came with a checkpoint.
        chunks: how many of them are looked at closely; survival is counted for all.
        words: vocabulary words that are listed for a token.
    """
    sampled = [Sampled(writes[i], text_states(model, writes[i].ids)) for i in spread(chunks, len(writes))]
    mean = torch.cat([one.states.float() for one in sampled], dim=1).mean(1)  # [L, d]
    records = []
    for layer in range(memory.num_layers):
        created = {"short": memory.short_term.created[row, layer, : memory.short_term.fill[row]]}
        if memory.long_term:
            created["long"] = memory.long_term[row].layers[layer].all_created()
        record: dict[str, Any] = _text_record(model, sampled, mean[layer], layer)
        found = {
            store: [_tokens(model, memory, row, layer, store, held, one.write) for one in sampled]
            for store, held in created.items()
        }
        rows = {store: torch.cat([values for values, _ in parts]).float() for store, parts in found.items()}
        own_mean = torch.cat([*rows.values()]).mean(0)
        for store, parts in found.items():
            measured = _norms(rows[store], mean[layer]) | _against_text(model, sampled, parts, own_mean, mean, layer)
            record |= {f"{key}_{store}": value for key, value in measured.items()}
            record[f"words_{store}"] = _words(model, tokenizer, sampled, parts, words)
        if "long" in found:
            pairs = zip(found["short"], found["long"], strict=True)
            record["short_to_long"] = apart([(rows["short"], rows["long"])])
            record["short_to_long_same_write"] = apart([(a.float(), b.float()) for (a, _), (b, _) in pairs])
        record["survival"] = survival(writes, created)
        records.append(record)
    return records


def _tokens(
    model: MPlusForCausalLM, memory: Memory, row: int, layer: int, store: str, created: torch.Tensor, write: Write
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that a write has left in a store: values [m, d] on the model's device, creation indices [m]."""
    at = ((created >= write.start) & (created < write.start + write.made)).nonzero().squeeze(1)
    if store == "short":
        held_values = memory.short_term.layer(layer)[row]
        values = held_values[at.to(held_values.device)]
    else:
        held = memory.long_term[row].layers[layer]
        values = held.fetch(layer, at + held.created.start)
    return values.to(model.device), created[at]


def _text_record(model: MPlusForCausalLM, sampled: Sequence[Sampled], mean: torch.Tensor, layer: int) -> dict[str, Any]:
    """Ordinary text by the same measures: each chunk's last places against another chunk."""
    rows = torch.cat([one.states[layer][-one.write.made :] for one in sampled])
    nearest, reads, predicts = [], [], []
    for one, other in zip(sampled, _others(sampled), strict=True):
        own = one.states[layer][-one.write.made :]
        nearest.append(_cosines(own.float() - mean, other.states[layer].float() - mean).max(1).values)
        places = torch.arange(len(one.write.ids) - len(own), len(one.write.ids))
        shares = lens_shares(model, own, places, one.write)
        reads.append(shares[0])
        predicts.append(shares[1])
    return {
        "bos_norm": float(model.bos_embedding[layer].float().norm()),
        **{f"{key}_text": value for key, value in _norms(rows.float(), mean).items()},
        "to_other_text": _mean(torch.cat(nearest)),
        "reads_text": _mean(torch.cat(reads)),
        "predicts_text": _mean(torch.cat(predicts)),
    }


def _norms(rows: torch.Tensor, mean: torch.Tensor) -> dict[str, float | None]:
    """Norms of rows [m, d], how far their mean lies from that of text, and how many dimensions they fill."""
    if not len(rows):
        return {"norm": None, "norm_spread": None, "offset": None, "rank": None}
    norms = rows.norm(dim=1)
    return {
        "norm": float(norms.mean()),
        "norm_spread": float(norms.std(unbiased=False)),
        "offset": float((rows.mean(0) - mean).norm()),
        "rank": effective_rank(rows),
    }


def effective_rank(rows: torch.Tensor) -> float | None:
    """Participation ratio of the covariance of rows [m, d]: (sum of eigenvalues)^2 / sum of their squares."""
    rows = rows[spread(_RANKED, len(rows))].double()
    centred = rows - rows.mean(0)
    gram = centred @ centred.T
    total = gram.square().sum()
    return float(gram.trace() ** 2 / total) if total > 0 else None


def _against_text(
    model: MPlusForCausalLM,
    sampled: Sequence[Sampled],
    found: Sequence[tuple[torch.Tensor, torch.Tensor]],
    own_mean: torch.Tensor,
    mean: torch.Tensor,
    layer: int,
) -> dict[str, Any]:
    """Memory tokens of a store beside the text they were made of, and beside other text."""
    parts: dict[str, list[torch.Tensor]] = {key: [] for key in _KEYS}
    by_layer: list[torch.Tensor] = []
    for one, other, (values, created) in zip(sampled, _others(sampled), found, strict=True):
        places = one.write.places(created)
        values, places = values[(places >= 0).to(values.device)], places[places >= 0]
        if not len(values):
            continue
        centred = values.float() - own_mean
        cosines = _cosines(centred, one.states[layer].float() - mean[layer])
        at = places.to(cosines.device)
        parts["own"].append(cosines.gather(1, at[:, None]).squeeze(1))
        parts["source"].append(cosines.max(1).values)
        parts["nearest_is_own"].append((cosines.argmax(1) == at).float())
        parts["other"].append(_cosines(centred, other.states[layer].float() - mean[layer]).max(1).values)
        for key, share in zip(_LENS, lens_shares(model, values, places, one.write), strict=True):
            parts[key].append(share)
        own = one.states[:, at].float() - mean[:, None]  # [L, m, d]
        by_layer.append(F.cosine_similarity(centred, own, dim=-1))
    record: dict[str, Any] = {key: _mean(torch.cat(values)) if values else None for key, values in parts.items()}
    record["own_by_layer"] = torch.cat(by_layer, dim=1).mean(1).tolist() if by_layer else None
    return record


def lens_shares(
    model: MPlusForCausalLM, rows: torch.Tensor, places: torch.Tensor, write: Write
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whether the likeliest word by the model's own head is the own word, the next one, one of the chunk; each [m]."""
    top = model.lm_head(model.model.norm(rows)).argmax(-1).cpu()
    ids = torch.tensor([*write.ids, -1])
    return (top == ids[places]).float(), (top == ids[places + 1]).float(), torch.isin(top, ids).float()


def _words(
    model: MPlusForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    sampled: Sequence[Sampled],
    found: Sequence[tuple[torch.Tensor, torch.Tensor]],
    count: int,
) -> list[dict[str, Any]]:
    """For the middle token that each sampled chunk has left: the word it stands for, its text, its nearest words."""
    rows = []
    for one, (values, created) in zip(sampled, found, strict=True):
        if not len(values):
            continue
        middle = len(values) // 2
        place = int(one.write.places(created[middle : middle + 1])[0])
        top = model.lm_head(model.model.norm(values[middle])).float().softmax(-1).topk(count)
        before = list(one.write.ids[max(0, place - 8) : max(0, place)])
        rows.append(
            {
                "created": int(created[middle]),
                "before": tokenizer.decode(before),
                "own": tokenizer.decode([one.write.ids[place]]) if place >= 0 else None,
                "nearest": [tokenizer.decode([token]) for token in top.indices.tolist()],
                "probability": [round(value, 4) for value in top.values.tolist()],
            }
        )
    return rows


def apart(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float | None:
    """How far the means of two sets of rows [m, d] lie apart, in units of the spread within a set; over all pairs.

    What two samples of one set differ by on average is taken off: 0 is no difference.
    """
    squared, spread = 0.0, 0.0
    for short, long in pairs:
        if len(short) < 2 or len(long) < 2:
            continue
        within = [float(rows.var(0, unbiased=True).sum()) for rows in (short, long)]
        squared += float((short.mean(0) - long.mean(0)).square().sum())
        squared -= within[0] / len(short) + within[1] / len(long)
        spread += sum(within) / 2
    return math.sqrt(max(0.0, squared) / spread) if spread else None


def _others(sampled: Sequence[Sampled]) -> list[Sampled]:
    """For every sampled write another one, half of them away."""
    return [sampled[(i + len(sampled) // 2) % len(sampled)] for i in range(len(sampled))]


def _cosines(rows: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """[m, d] and [n, d] -> [m, n]."""
    return F.normalize(rows, dim=-1) @ F.normalize(text, dim=-1).T


def _mean(values: torch.Tensor) -> float | None:
    return float(values.mean()) if len(values) else None
