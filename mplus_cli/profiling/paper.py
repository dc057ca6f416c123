"""The published costs of M+ (see `published`) beside ours: Table 1, the FLOPs table, and what Figure 7 shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mplus_cli.evaluation.report import Table
from mplus_cli.profiling.cells import OK, OOM
from mplus_cli.profiling.published import FLOPS, MEMORY_MB, MODELS, OFFLOAD_OVERHEAD
from mplus_cli.profiling.request import length_text
from mplus_cli.profiling.running import Row


def comparison(rows: Sequence[Row]) -> list[Table]:
    """Published numbers and ours. They compare where model and GPU do (Llama-3.1-8B on an H100); shares always do."""
    found = {(row.planned.cell.asked.label, row.planned.cell.length): row.result for row in rows}
    return [_memory(found), _flops(found), _latency(found)]


def _memory(found: dict[tuple[str, int], dict[str, Any]]) -> Table:
    lengths = [length for _, length in found]
    longest = max(lengths)
    lines = []
    for label, published in MEMORY_MB.items():
        ours = found.get((label, longest))
        name = MODELS.get(label, "")
        lines.append([label, name, f"{published:,.0f}", _peak(ours), _share(ours, found.get(("mplus", longest)))])
    share = "of M+"
    headers = ["system", "published model", "published MB", f"ours at {length_text(longest)}, MB", share]
    return Table("peak memory (Table 1; 128k tokens, H100)", headers, lines)


def _peak(result: dict[str, Any] | None) -> str:
    if result is None or result["status"] not in (OK, OOM):
        return "-"
    return "OOM" if result["status"] == OOM else f"{result['peak_bytes'] / 2**20:,.0f}"


def _share(result: dict[str, Any] | None, of: dict[str, Any] | None) -> str:
    both = [one for one in (result, of) if one is not None and one["status"] == OK]
    return f"{both[0]['peak_bytes'] / both[1]['peak_bytes']:.2f}" if len(both) == 2 else "-"


def _flops(found: dict[tuple[str, int], dict[str, Any]]) -> Table:
    lines = []
    for length, (plain, memory) in FLOPS.items():
        ours = [_total(found.get((label, length))) for label in ("full", "mplus")]
        lines.append(
            [
                length_text(length),
                "OOM" if plain is None else f"{plain:.2e}",
                f"{memory:.2e}",
                _ratio(memory, plain),
                *("-" if value is None else f"{value:.2e}" for value in ours),
                _ratio(ours[1], ours[0]),
            ]
        )
    headers = ["text", "Llama, published", "M+, published", "ratio", "full, ours", "mplus, ours", "ratio"]
    return Table(
        "FLOPs of the text and one token (the published ones grow with the length alone, ours count attention too)",
        headers,
        lines,
    )


def _total(result: dict[str, Any] | None) -> float | None:
    return result["flops"]["total"] if result is not None and result["status"] == OK else None


def _ratio(value: float | None, of: float | None) -> str:
    return f"{value / of:.2f}" if value and of else "-"


def _latency(found: dict[tuple[str, int], dict[str, Any]]) -> Table:
    """Figure 7 has no numbers in print; these are the statements about it."""
    longest = max(length for _, length in found)
    plain, offloaded = (_seconds(found.get((label, longest))) for label in ("mplus", "mplus --offload"))
    overhead = f"{offloaded / plain - 1:+.1%}" if plain and offloaded else "-"
    lines = [[f"offload adds at {length_text(longest)}", f"+{OFFLOAD_OVERHEAD:.0%} (128k)", overhead]]
    for length, published in ((16_384, "above 1"), (32_768, "above 1"), (65_536, "above 1"), (131_072, "below 1")):
        both = [_seconds(found.get((label, length))) for label in ("memoryllm", "full")]
        lines.append([f"memoryllm over full at {length_text(length)}", published, _ratio(*both)])
        both = [_seconds(found.get((label, length))) for label in ("mplus", "memoryllm")]
        lines.append([f"mplus over memoryllm at {length_text(length)}", "above 1", _ratio(*both)])
    return Table("latency of the text and one token (Figure 7)", ["", "published", "ours"], lines)


def _seconds(result: dict[str, Any] | None) -> float | None:
    if result is None or result["status"] != OK:
        return None
    return (result.get("inject_ms") or 0.0) / 1e3 + result["first_token_ms"]["median"] / 1e3
