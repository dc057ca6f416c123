"""The table of `--estimate`: what formulas say, with the least times that this machine's rates allow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from mplus_cli.console import size
from mplus_cli.evaluation.report import Table
from mplus_cli.inference.devices import limit_threads
from mplus_cli.profiling.gpus import Gpu
from mplus_cli.profiling.planning import Plan, Planned
from mplus_cli.profiling.report import duration_ms, precision
from mplus_cli.profiling.request import length_text
from mplus_cli.profiling.sizes import Sizes
from mplus_cli.profiling.subjects import synchronize

HEADERS = ["system", "text", "peak memory", "on the host", "inject tokens/s", "first token", "per token", "FLOPs"]
HEADERS += ["state file", "to the GPU"]
TRY_SECONDS = 0.15


def machine_rates(plan: Plan, gpu: Gpu | None = None) -> dict[str, float]:
    """`flops` per second of the model's own largest product, and `bytes` per second read."""
    if gpu is not None:
        return {"flops": gpu.flops, "bytes": gpu.bandwidth}
    sizes, device, dtype = plan.sizes, plan.placement.device, plan.placement.dtype
    if plan.choice.threads is not None:
        torch.set_num_threads(plan.choice.threads)
    else:
        limit_threads(plan.placement, sizes.memory_model)
    rows, weight = torch.randn(sizes.chunk, sizes.d), torch.randn(sizes.d, sizes.I)
    rows, weight = rows.to(device, dtype), weight.to(device, dtype)
    product = _seconds(lambda: rows @ weight, device)
    large = torch.ones(1 << 24, dtype=torch.float32, device=device)
    return {"flops": 2 * sizes.chunk * sizes.d * sizes.I / product, "bytes": large.nbytes / _seconds(large.sum, device)}


def _seconds(call: Any, device: torch.device) -> float:
    """The least seconds of a call within a moment of trying."""
    call()
    synchronize(device)
    least, end = float("inf"), time.perf_counter() + TRY_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        synchronize(device)
        least = min(least, time.perf_counter() - start)
    return least


def floors(sizes: Sizes, one: Planned, rates: dict[str, float]) -> dict[str, float | None]:
    """Least milliseconds of a write, of the first token and of a further one, by operations or by bytes read."""
    cost, flops = one.estimate, one.estimate["flops"]

    def ms(operations: float, read: float = 0.0) -> float:
        return 1e3 * max(operations / rates["flops"], read / rates["bytes"])

    chunk = getattr(one.cell.asked.options, "chunk_size", None) or sizes.chunk
    write = ms(flops["write"]) if flops["write"] else None
    return {
        "write_ms": write,
        "inject_tokens_per_s": None if write is None else 1e3 * chunk / write,
        "first_token_ms": ms(flops["first_token"], cost["read_bytes"]),
        "token_ms": ms(flops["token"], cost["read_bytes"]),
    }


def forecast(plan: Plan, rates: dict[str, float], gpu: Gpu | None = None) -> tuple[list[Table], dict[str, Any]]:
    """Tables for people, and the same as plain data."""
    lines, cells = [], []
    for one in plan.cells:
        least, cost = floors(plan.sizes, one, rates), one.estimate
        rate = least["inject_tokens_per_s"]
        lines.append(
            [
                one.cell.asked.label,
                length_text(one.cell.length),
                size(cost["peak_bytes"]),
                _size(sum(cost["host_bytes"].values())),
                "-" if rate is None else f"{rate:,.0f}",
                duration_ms(least["first_token_ms"] or 0.0),
                duration_ms(least["token_ms"] or 0.0),
                f"{cost['flops']['total']:.2e}",
                _size(cost["state_bytes"]),
                _size(cost["transfer_bytes"]["question"]),
            ]
        )
        about = {"system": one.cell.asked.label, "length": one.cell.length, "prompt": one.cell.prompt}
        cells.append(about | {"estimate": cost, "floor": least, "obstacle": one.obstacle})
    where = f"the data sheet of {gpu.name}" if gpu else "this machine now"
    title = (
        f"estimate for {plan.name}, {precision(plan.facts)} on {gpu.name if gpu else plan.facts['device']}: times are "
        f"the least that {rates['flops'] / 1e9:,.0f} GFLOP/s and {rates['bytes'] / 1e9:,.0f} GB/s allow ({where})"
    )
    tables = [Table(title, HEADERS, lines), purposes(plan.cells)]
    return tables, {"model": plan.facts, "rates": rates, "cells": cells}


def purposes(cells: Sequence[Planned]) -> Table:
    """Bytes by purpose: what to shrink."""
    names = list(dict.fromkeys(name for one in cells for name in (*one.estimate["bytes"], *one.estimate["host_bytes"])))
    lines = []
    for one in cells:
        held = one.estimate["bytes"] | one.estimate["host_bytes"]
        label = [one.cell.asked.label, length_text(one.cell.length)]
        lines.append([*label, *(_size(held.get(name, 0)) for name in names)])
    return Table("estimated memory by purpose", ["system", "text", *names], lines)


def _size(count: float) -> str:
    return size(count) if count else "-"
