"""A lean training form of M+ on a Qwen3 backbone: parameters and arithmetic of the core model, for tiny sizes.

The core (`mplus_cli.core`) serves every size and every use. At one million parameters its generality (adapter modules,
masks, caches) costs more than the arithmetic, so the bundled model is trained in this form and copied into the core at
the end; `export.py` checks that both give the same numbers. Semantics: M+ paper (arXiv 2502.00592), section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.default_model.parameters import PROJECTIONS, Layer, Sizes


class FastModel(nn.Module):
    """Write and read passes over explicit memory tokens: rows `[batch, tokens, hidden]`, memory a list over layers."""

    def __init__(self, sizes: Sizes, compute: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.s = sizes
        self.compute = compute
        self.search_teaches = False  # whether the retriever's loss also reaches the language model
        self.embed = nn.Parameter(torch.randn(sizes.vocabulary, sizes.hidden) * 0.05)
        self.final_norm = nn.Parameter(torch.ones(sizes.hidden))
        self.new_memory = nn.Parameter(torch.zeros(sizes.hidden))
        self.layers: Any = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        inv = sizes.rope_theta ** (-torch.arange(0, sizes.head_dim, 2).float() / sizes.head_dim)
        angle = torch.arange(4096).float()[:, None] * torch.cat([inv, inv])[None]
        self.cos, self.sin = angle.cos(), angle.sin()

    # -- pieces ---------------------------------------------------------------------------------------------------
    def weights(self, mode: str | None) -> list[dict[str, Tensor]]:
        """The seven matrices of every layer with the adapter of `mode` merged in, in the compute type."""
        scale = self.s.lora_alpha / self.s.lora_rank
        out = []
        for layer in self.layers:
            w = {}
            for name, p in layer.weights.items():
                if mode is not None and name in PROJECTIONS:
                    pair = layer.adapters[mode][name]
                    p = p + scale * (pair.b @ pair.a)
                w[name] = p.to(self.compute)
            out.append(w)
        return out

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        x = x.float()
        return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.s.eps) * weight).to(self.compute)

    def heads(self, x: Tensor, weight: Tensor | None, start: int) -> Tensor:
        """`[B, n, h*hd]` -> `[B, h, n, hd]`, RMS-normed and rotated to positions start.. when `weight` is given."""
        b, n, _ = x.shape
        x = x.view(b, n, -1, self.s.head_dim)
        if weight is None:
            return x.transpose(1, 2)
        x = x.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.s.eps) * weight
        cos, sin = self.cos[start : start + n, None], self.sin[start : start + n, None]
        half = self.s.head_dim // 2
        x = x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin
        return x.to(self.compute).transpose(1, 2)

    def keys_values(self, i: int, w: dict[str, Tensor], normed: Tensor, start: int) -> tuple[Tensor, Tensor]:
        k = self.heads(F.linear(normed, w["k_proj"]), self.layers[i].k_norm, start)
        return k, self.heads(F.linear(normed, w["v_proj"]), None, start)

    def finish(self, i: int, w: dict[str, Tensor], x: Tensor, attended: Tensor) -> Tensor:
        """Output projection, residual, MLP, residual. attended: `[B, h, n, hd]`."""
        b, _, n, _ = attended.shape
        x = x + F.linear(attended.transpose(1, 2).reshape(b, n, -1), w["o_proj"]).float()
        y = self.norm(x, self.layers[i].post_norm)
        return x + F.linear(F.silu(F.linear(y, w["gate_proj"])) * F.linear(y, w["up_proj"]), w["down_proj"]).float()

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x, self.final_norm), self.embed.to(self.compute)).float()

    def bos_rows(self, i: int, batch: int) -> Tensor:
        return self.layers[i].bos.expand(batch, 1, -1)

    # -- passes ---------------------------------------------------------------------------------------------------
    def plain(self, ids: Tensor) -> Tensor:
        """Hidden states of ordinary text `[B, n]` behind the BOS rows alone (an empty memory), read adapter."""
        x = F.embedding(ids, self.embed).float()
        b, n = ids.shape
        for i, w in enumerate(self.weights("read")):
            rows = torch.cat([self.bos_rows(i, b), x], 1)
            normed = self.norm(rows, self.layers[i].input_norm)
            q = self.heads(F.linear(normed, w["q_proj"]), self.layers[i].q_norm, 0)
            k, v = self.keys_values(i, w, normed, 0)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = self.finish(i, w, x, out[:, :, 1:])
        return x

    def write(
        self, ids: Tensor, context: list[Tensor] | None, weights: list[dict[str, Tensor]] | None = None
    ) -> list[Tensor]:
        """One chunk per row `[B, n]`, n >= K, after the newest K rows of every layer -> per layer `[B, K, d]`."""
        b, n = ids.shape
        k_new = self.s.memory_tokens
        x = F.embedding(ids, self.embed).float()
        new = []
        for i, w in enumerate(weights or self.weights("write")):
            x = torch.cat([x[:, : n - k_new], x[:, n - k_new :] + self.new_memory], 1)
            prefix = [self.bos_rows(i, b)] + ([] if context is None else [context[i]])
            rows = torch.cat([*prefix, x], 1)
            p = rows.shape[1] - n
            normed = self.norm(rows, self.layers[i].input_norm)
            k, v = self.keys_values(i, w, normed, 0)
            q = self.heads(F.linear(normed[:, p:], w["q_proj"]), self.layers[i].q_norm, p)
            x = self.finish(i, w, x, F.scaled_dot_product_attention(q, k, v, self.mask(n, p), enable_gqa=True))
            new.append(x[:, n - k_new :])
        return new

    def mask(self, n: int, prefix: int) -> Tensor:
        """Additive mask `[n, prefix + n]`: the whole prefix, and causally oneself."""
        m = torch.full((n, n), float("-inf")).triu(1)
        return torch.cat([torch.zeros(n, prefix), m], 1).to(self.compute)

    def read(
        self,
        ids: Tensor,
        short: list[Tensor],
        long: LongTerm | None = None,
        prompt: Tensor | None = None,
        weights: list[dict[str, Tensor]] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Reads `[BOS_l | retrieved | short-term | text]`.

        Args:
            ids: `[B * Q, n]`, Q texts to each of B memories, right-padded.
            short: per layer `[B, S, d]`, oldest first.
            long: the long-term store to search in, or None.
            prompt: bool `[B * Q, n]`, the tokens to search with.

        Returns:
            Hidden states of the text before the final norm, and per layer what the retriever sees of them.
        """
        x = F.embedding(ids, self.embed).float()
        batch, n = short[0].shape[0], ids.shape[1]
        each = ids.shape[0] // batch
        taken = 0 if long is None else min(self.s.budget, long.values[0].shape[1])
        offset = 1 + taken + short[0].shape[1]
        mask = self.mask(n, offset)
        seen = []
        for i, w in enumerate(weights or self.weights("read")):
            layer = self.layers[i]
            normed = self.norm(x, layer.input_norm)
            seen.append(normed if self.search_teaches else normed.detach())
            k, v = self.keys_values(i, w, normed, offset)
            bos = self.keys_values(i, w, self.norm(self.bos_rows(i, batch), layer.input_norm), 0)
            held = self.keys_values(i, w, self.norm(short[i], layer.input_norm), 1 + taken)
            shared = [torch.cat(pair, 2).repeat_interleave(each, 0) for pair in zip(bos, held, strict=True)]
            if long is not None:
                assert prompt is not None  # who searches says with what
                found = long.retrieve(i, normed.detach(), prompt, taken)
                k_long, v_long = self.keys_values(i, w, self.norm(found, layer.input_norm), 1)
                shared = [torch.cat([shared[0], k_long], 2), torch.cat([shared[1], v_long], 2)]
            q = self.heads(F.linear(normed, w["q_proj"]), layer.q_norm, offset)
            k, v = torch.cat([shared[0], k], 2), torch.cat([shared[1], v], 2)
            x = self.finish(i, w, x, F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True))
        return x, seen

    # -- retriever ------------------------------------------------------------------------------------------------
    def search_vectors(self, i: int, normed: Tensor) -> Tensor:
        """Retrieval queries of text rows `[..., d]`, normed."""
        first, second = self.layers[i].query
        return second(F.silu(first(normed.float())))

    def search_keys(self, i: int, rows: Tensor) -> Tensor:
        """Retrieval keys of memory rows `[..., d]`."""
        first, second = self.layers[i].key
        rows = rows if self.search_teaches else rows.detach()
        return second(F.silu(first(self.norm(rows, self.layers[i].input_norm).float())))

    def score(self, query: Tensor, keys: Tensor, prompt: Tensor) -> Tensor:
        """Log-sum-exp over the prompt's tokens of q.k / sqrt(r).

        query: `[B * Q, n, r]`; keys: `[B, M, r]`; prompt: bool `[B * Q, n]` -> `[B * Q, M]`.
        """
        batch, (rows, n, r) = keys.shape[0], query.shape
        each = rows // batch
        dots = query.reshape(batch, each * n, r) @ keys.transpose(1, 2) / math.sqrt(r)
        dots = dots.view(rows, n, -1).masked_fill(~prompt[:, :, None], -1e9)
        return dots.logsumexp(1)


@dataclass
class LongTerm:
    """Long-term memory of a batch, for training.

    Attributes:
        model: whose retriever searches.
        values: per layer `[B, M, d]`, oldest first, with gradient where the writes have it.
        wanted: per layer bool `[B * Q, M]`, tokens to be found whatever their score (teacher forcing), or None.
    """

    model: FastModel
    values: list[Tensor]
    wanted: list[Tensor] | None = None

    def retrieve(self, i: int, seen: Tensor, prompt: Tensor, count: int) -> Tensor:
        """The `count` best tokens of layer i for every text, oldest first: `[B * Q, count, d]`."""
        values = self.values[i]
        batch, stored, width = values.shape
        texts = seen.shape[0]
        with torch.no_grad():
            if stored > count:
                query = self.model.search_vectors(i, seen)
                scores = self.model.score(query, self.model.search_keys(i, values), prompt)
                if self.wanted is not None:
                    scores = scores.masked_fill(self.wanted[i], 1e9)
                best = scores.topk(count, -1, sorted=False).indices.sort(-1).values
            else:
                best = torch.arange(stored).expand(texts, -1)
        flat = (torch.arange(batch).repeat_interleave(texts // batch)[:, None] * stored + best).flatten()
        return values.reshape(-1, width)[flat].view(texts, count, width)
