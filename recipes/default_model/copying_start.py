"""A start that can already copy: previous-token heads in layer 0 and an induction head in layer 1, written by hand.

A small transformer spends most of a short training run on finding these two circuits ("after A came B, so after A comes
B again"), and nothing about binding names to facts is learned before they exist. Both are simple linear algebra:

* every embedding has a common direction; in two heads of layer 0 queries and keys read only that, so that rotary
  positions alone decide, and the phase between them puts the peak one (two) tokens back;
* what these heads bring is a projection of that earlier token; the induction head's keys undo it, its queries project
  the present token alike, in slowly rotating dimensions only, so that a match does not depend on distance.

All of it stays trainable.
"""

from __future__ import annotations

import torch

from recipes.default_model.fast_model import FastModel


@torch.no_grad()
def copying_start(model: FastModel) -> None:
    """Rewrites the initial weights of layers 0 and 1 in place."""
    s, hd = model.s, model.s.head_dim
    half, groups = hd // 2, s.heads // s.kv_heads
    frequency = s.rope_theta ** (-torch.arange(half) / half)
    common = torch.nn.functional.normalize(torch.randn(s.hidden), dim=0)
    model.embed.data += 0.5 * common - (model.embed @ common)[:, None] * common

    first, second = model.layers[0], model.layers[1]
    first.q_norm.fill_(2.0), first.k_norm.fill_(2.0)
    strength = torch.tensor([1.0, 0.8, 0.6, 0.5]) / 2
    key = torch.zeros(hd)
    key[:4] = strength
    w = first.weights
    w["k_proj"][:hd] = 0.05 * w["k_proj"][:hd] + key[:, None] * common
    for head in range(groups):  # head h of the first group looks h + 1 tokens back
        phase = -(head + 1) * frequency[:4]
        query = torch.zeros(hd)
        query[:4], query[half : half + 4] = strength * phase.cos(), strength * phase.sin()
        rows = slice(head * hd, (head + 1) * hd)
        w["q_proj"][rows] = 0.05 * w["q_proj"][rows] + query[:, None] * common
        w["o_proj"][:, rows] = torch.randn(s.hidden, hd) * 0.06 / hd**0.5
    value = w["v_proj"][:hd] - (w["v_proj"][:hd] @ common)[:, None] * common
    w["v_proj"][:hd] = value

    slow = torch.tensor([i for i in range(hd) if frequency[i % half] < 0.006])
    undo = torch.linalg.pinv(w["o_proj"][:, :hd])  # residual -> the value of the token before
    w = second.weights
    w["k_proj"][:hd] *= 0.05
    w["k_proj"][slow] = undo[slow] * 0.06
    w["q_proj"][:hd] *= 0.05
    w["q_proj"][slow] = value[slow]
    basis = torch.linalg.qr(torch.randn(s.hidden, hd)).Q
    w["v_proj"][:hd] = basis.T
    w["o_proj"][:, :hd] = 0.1 * basis
