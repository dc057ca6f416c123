"""Floating-point operations from formulas, as torch counts them: 2 per weight and row, attention in full squares."""

from __future__ import annotations

from mplus_cli.profiling.sizes import Fill, Sizes

_KEYS_VALUES = ["k_proj", "v_proj"]


def write_flops(sizes: Sizes, merged: bool, fill: Fill, long_term: bool) -> int:
    """One write of a whole chunk into a full short-term memory: no head; keys of what is dropped."""
    n, context = sizes.chunk, min(sizes.K, fill.short)
    seen = 1 + context + n
    keys = sizes.K * sizes.projector if long_term and fill.long else 0
    return sizes.L * (
        2 * n * _row(sizes, merged)
        + 2 * (1 + context) * _row(sizes, merged, _KEYS_VALUES)
        + 4 * n * seen * sizes.q
        + 2 * keys
    )


def question_flops(sizes: Sizes, merged: bool, fill: Fill, prompt: int) -> int:
    """The first question after a write: keys and values of all memory rows, search, the prompt, one row of the head."""
    search = prompt * (sizes.projector + fill.long * sizes.r) if fill.retrieved else 0
    layer = (
        2 * prompt * _row(sizes, merged)
        + 2 * fill.prefix * _row(sizes, merged, _KEYS_VALUES)
        + 4 * prompt * (fill.prefix + prompt) * sizes.q
        + 2 * search
    )
    return sizes.L * layer + 2 * sizes.d * sizes.V


def token_flops(sizes: Sizes, merged: bool, cached: int) -> int:
    """One further token behind `cached` entries."""
    return sizes.L * (2 * _row(sizes, merged) + 4 * (cached + 1) * sizes.q) + 2 * sizes.d * sizes.V


def text_flops(sizes: Sizes, n: int, cached: int = 0) -> int:
    """The plain model on `n` tokens behind `cached` others, one row of the head."""
    return sizes.L * (2 * n * sizes.layer_weights() + 4 * n * (cached + n) * sizes.q) + 2 * sizes.d * sizes.V


def _row(sizes: Sizes, merged: bool, names: list[str] | None = None) -> int:
    """Weights that one row of a layer meets."""
    return sizes.layer_weights(names) + (0 if merged else sizes.adapter_weights(names))
