"""Profiles as tables for the terminal, Markdown, CSV and JSON, with the pictures beside them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mplus_cli.console import duration, size
from mplus_cli.data.building.shards import atomic_write
from mplus_cli.errors import MissingExtraError
from mplus_cli.evaluation.report import Table
from mplus_cli.profiling.breakdown import FIRST, WRITE
from mplus_cli.profiling.cells import FAILED, OK, OOM
from mplus_cli.profiling.paper import comparison
from mplus_cli.profiling.phases import PHASES
from mplus_cli.profiling.planning import Plan
from mplus_cli.profiling.plots import draw
from mplus_cli.profiling.request import length_text
from mplus_cli.profiling.running import Row

HEADERS = [
    "system",
    "text",
    "peak memory",
    "inject tokens/s",
    "retrieval",
    "first token",
    "second question",
    "per token",
    "FLOPs",
    "state file",
]
WIDE = 1.0  # from least to most, of the median: no measurement of a machine at rest
_STATUS = {OOM: "OOM", FAILED: "failed"}
TIMES = ("write_ms", "inject_tokens_per_s", "retrieval_ms", "first_token_ms", "second_question_ms", "token_ms")


def main_table(plan: Plan, rows: Sequence[Row]) -> Table:
    """Every cell: median of each figure, and half the spread of the times around it."""
    lines = []
    for row in rows:
        start = [row.planned.cell.asked.label, length_text(row.planned.cell.length)]
        lines.append([*start, *(_cells(row) if row.result["status"] == OK else _none(row))])
    return Table(_title(plan, rows), HEADERS, lines)


def precision(facts: Mapping[str, Any]) -> str:
    """In what the model computes, and its backbone is kept."""
    return f"{facts['dtype']}, backbone in {facts['quantize']}" if facts.get("quantize") else str(facts["dtype"])


def _title(plan: Plan, rows: Sequence[Row]) -> str:
    facts = plan.facts
    merged = {str(row.result["adapters"]) for row in rows if row.result.get("adapters")} or {str(facts["adapters"])}
    return (
        f"{plan.name}, {facts['parameters'] / 1e6:,.1f}M parameters, {precision(facts)} on {facts['device']}, "
        f"adapters {'/'.join(sorted(merged))}"
    )


def _cells(row: Row) -> list[str]:
    found = row.result
    state = found.get("state_bytes")
    if state is None and row.planned.cell.asked.has_memory:
        state_text = f"~{size(row.planned.estimate['state_bytes'])}"
    else:
        state_text = size(state) if state else "-"
    return [
        size(found["peak_bytes"]),
        _rate(found.get("inject_tokens_per_s")),
        _time(found.get("retrieval_ms")),
        _time(found["first_token_ms"]),
        _time(found.get("second_question_ms")),
        _time(found.get("token_ms")),
        f"{found['flops']['total']:.2e}",
        state_text,
    ]


def _none(row: Row) -> list[str]:
    return [_STATUS.get(row.result["status"], "-"), *["-"] * (len(HEADERS) - 3)]


def _time(value: dict[str, float] | None) -> str:
    return "-" if value is None else f"{duration_ms(value['median'])}{_spread(value)}"


def _rate(value: dict[str, float] | None) -> str:
    return "-" if value is None else f"{value['median']:,.0f}{_spread(value)}"


def _spread(value: dict[str, float]) -> str:
    if value["count"] < 2 or not value["median"]:
        return ""
    return f" ±{(value['high'] - value['low']) / 2 / value['median']:.0%}"


def _wide(value: dict[str, float] | None) -> bool:
    return value is not None and value["high"] - value["low"] > WIDE * value["median"]


def duration_ms(ms: float) -> str:
    """Milliseconds for people."""
    return f"{ms:.3g} ms" if ms < 1000 else duration(ms / 1000)


def notes(plan: Plan, rows: Sequence[Row], machine: dict[str, Any]) -> list[str]:
    """What a reader has to know to read the table."""
    prompts = sorted({row.planned.cell.prompt for row in rows})
    tokens = ", ".join(length_text(p) for p in prompts)
    where = machine.get("gpus", [None])[0] or f"{machine['processor']}, {machine['cores']} cores"
    kind = next((row.result["peak_kind"] for row in rows if "peak_kind" in row.result), None)
    lines = [
        f"machine: {where}, {size(machine['memory_bytes'])} of main memory",
        f"systems with a memory inject the text but for its last {tokens} tokens, which they then read (first token); "
        "the others read the whole text",
        "± is half the distance from the least to the most of the repeats; FLOPs are those of telling the text and one "
        "token",
    ]
    if any(_wide(row.result.get(name)) for row in rows for name in TIMES):
        lines.append("some times differ much from repeat to repeat: is the machine doing other work?")
    if kind:
        base = max((row.result["peak_parts"]["libraries"] for row in rows if "peak_parts" in row.result), default=0)
        held = f", of which Python and torch hold {size(base)} before any model" if base else ""
        lines.append(f"peak memory: {kind}{held}")
    lines += [f"{row.planned.title}: {row.result['why']}" for row in rows if row.result["status"] != OK]
    return lines


def breakdown_tables(rows: Sequence[Row]) -> list[Table]:
    """Milliseconds by phase, where they were taken."""
    found = []
    for row in rows:
        parts = row.result.get("breakdown")
        if not parts:
            continue
        stages = [stage for stage in (WRITE, FIRST, "token") if stage in parts]
        lines = []
        for phase in (*PHASES, "other"):
            if any(phase in parts[stage] for stage in stages):
                cells = [
                    f"{parts[s][phase]:.2f} ({parts[s][phase] / sum(parts[s].values()):.0%})"
                    if phase in parts[s]
                    else "-"
                    for s in stages
                ]
                lines.append([phase, *cells])
        title = f"{row.planned.title}: milliseconds by phase, under the profiler"
        found.append(Table(title, ["phase", *stages], lines))
    return found


def all_tables(plan: Plan, rows: Sequence[Row], with_paper: bool) -> list[Table]:
    """Everything that is shown."""
    return [main_table(plan, rows), *breakdown_tables(rows), *(comparison(rows) if with_paper else [])]


def as_json(plan: Plan, rows: Sequence[Row], machine: dict[str, Any]) -> dict[str, Any]:
    """The results as one document."""
    cells = []
    for row in rows:
        cell = row.planned.cell
        about = {"system": cell.asked.label, "length": cell.length, "prompt": cell.prompt}
        cells.append(about | {"estimate": row.planned.estimate} | row.result)
    return {"model": plan.facts, "machine": machine, "cells": cells}


def as_csv(rows: Sequence[Row]) -> str:
    """One line per cell; times in milliseconds with `_low` and `_high`."""
    columns = ["system", "length", "status", "peak_bytes", "host_peak_bytes", "estimated_peak_bytes", "state_bytes"]
    columns += ["long_term_tokens", "inject_ms", "flops_write", "flops_first_token", "flops_token", "flops_total"]
    columns += [f"{name}{end}" for name in TIMES for end in ("", "_low", "_high", "_count")]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        found = row.result
        line = {**found, "system": row.planned.cell.asked.label, "length": row.planned.cell.length}
        line["estimated_peak_bytes"] = row.planned.estimate["peak_bytes"]
        line |= {f"flops_{key}": value for key, value in (found.get("flops") or {}).items()}
        for name in TIMES:
            value = found.get(name) or {}
            line |= {name: value.get("median")} | {f"{name}_{end}": value.get(end) for end in ("low", "high", "count")}
        writer.writerow(line)
    return text.getvalue()


def write(
    plan: Plan,
    rows: Sequence[Row],
    machine: dict[str, Any],
    folder: Path,
    warn: Callable[[str], None],
    with_paper: bool,
) -> list[Path]:
    """results.md, results.csv, results.json and the plots; returns their paths."""
    try:
        plots = draw(rows, folder)
    except MissingExtraError as error:
        warn(f"no plots: {error.message}; {error.hint}")
        plots = []
    parts = ["# Profile by `mplus profile`", *(table.markdown() for table in all_tables(plan, rows, with_paper))]
    parts.append("\n".join(f"- {note}" for note in notes(plan, rows, machine)))
    parts += [f"![{path.stem}]({path.name})" for path in plots]
    texts = {
        "results.md": "\n\n".join(parts) + "\n",
        "results.csv": as_csv(rows),
        "results.json": json.dumps(as_json(plan, rows, machine), indent=1) + "\n",
    }
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write(text.encode())
    return [*(folder / name for name in texts), *plots]
