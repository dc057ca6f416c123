"""A new backbone that can already copy: previous-token heads in layer 0 and an induction head in layer 1, by hand.

A small transformer spends most of a short run on finding these two circuits ("after A came B, so after A comes B
again"), and binds no name to a fact before it has them. Both are simple linear algebra:

* every embedding has a common direction; in the first heads of layer 0 queries and keys read only that, so that rotary
  positions alone decide, and the phase between them puts the peak one (two, ...) tokens back;
* what these heads bring is a projection of that earlier token; the induction head's keys undo it, its queries project
  the present token alike, in slowly rotating dimensions only, so that a match does not depend on distance.

All of it stays trainable. On the bundled model's sizes copies of random strings are predicted after a few dozen steps;
from random weights that took more than 1,900.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig

from mplus_cli.errors import UsageError

STRENGTH = (1.0, 0.8, 0.6, 0.5)  # of the fastest rotary dimensions in finding an earlier position
SHARPNESS = 2.0  # of the norms on queries and keys in layer 0
COMMON = 0.9  # length of the common direction, in lengths of an embedding
BROUGHT = 1.2  # what a previous-token head adds to a row, in sizes of an embedding
INDUCED = 0.1
FAINT = 0.05  # what stays of the random weights beside the circuits
SLOW = 0.006  # radians per token; two tokens of a few hundred positions' distance still match


def copying_start(
    weights: dict[str, torch.Tensor], config: PretrainedConfig, embedding: float, generator: torch.Generator
) -> None:
    """Rewrite the random weights of layers 0 and 1, and the embeddings, in place.

    Args:
        weights: of a decoder with norms on queries and keys, under the names of `MPlusForCausalLM`.
        config: of that decoder.
        embedding: standard deviation of its embeddings.

    Raises:
        UsageError: a decoder in which the circuits have no place.
    """
    hidden, size, heads = config.hidden_size, config.head_dim, config.num_attention_heads
    half, groups = size // 2, heads // config.num_key_value_heads
    frequency = config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
    slow = torch.tensor([i for i in range(size) if frequency[i % half] < SLOW], dtype=torch.int64)
    first, second = (_Attention(weights, config, layer) for layer in (0, 1))
    if half < len(STRENGTH) or len(slow) < 4 or hidden < size:
        raise UsageError(
            "new_backbone.start: copying needs heads of at least 8 dimensions, some of which rotate slowly, and a "
            "hidden size of at least a head's."
        )

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    table = weights["model.embed_tokens.weight"]
    common = F.normalize(random(hidden), dim=0)
    table += COMMON * embedding * math.sqrt(hidden) * common - (table @ common)[:, None] * common

    strength = torch.tensor(STRENGTH) / 2
    fast = len(STRENGTH)
    first.q_norm.fill_(SHARPNESS), first.k_norm.fill_(SHARPNESS)
    key = torch.zeros(size)
    key[:fast] = strength
    first.k[:size] = FAINT * first.k[:size] + key[:, None] * common
    for head in range(groups):  # head h of the first group looks h + 1 tokens back
        phase = -(head + 1) * frequency[:fast]
        query = torch.zeros(size)
        query[:fast], query[half : half + fast] = strength * phase.cos(), strength * phase.sin()
        rows = slice(head * size, (head + 1) * size)
        first.q[rows] = FAINT * first.q[rows] + query[:, None] * common
        first.o[:, rows] = random(hidden, size) * BROUGHT * embedding / math.sqrt(size)
    value = first.v[:size] - (first.v[:size] @ common)[:, None] * common
    first.v[:size] = value

    undo = torch.linalg.pinv(first.o[:, :size])  # row -> the value of the token before
    second.k[:size] *= FAINT
    second.k[slow] = undo[slow] * BROUGHT * embedding
    second.q[:size] *= FAINT
    second.q[slow] = value[slow]
    basis = torch.linalg.qr(random(hidden, size)).Q
    second.v[:size] = basis.T
    second.o[:, :size] = INDUCED * basis


class _Attention:
    """The weights of one layer's attention, by name."""

    def __init__(self, weights: dict[str, torch.Tensor], config: PretrainedConfig, layer: int) -> None:
        place = f"model.layers.{layer}.self_attn."
        found = {
            name.removeprefix(place).replace(".base_layer", ""): name for name in weights if name.startswith(place)
        }
        if "q_norm.weight" not in found:
            raise UsageError(
                "new_backbone.start: copying needs two layers with norms on queries and keys; "
                f"a {config.model_type} of {config.num_hidden_layers} layers has none.",
                "Set new_backbone.model_type=qwen3 and new_backbone.num_hidden_layers to 2 or more.",
            )
        self.q, self.k, self.v, self.o, self.q_norm, self.k_norm = (
            weights[found[f"{name}.weight"]] for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
        )
