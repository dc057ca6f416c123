"""The folder of a profile, and what is made of it: tables, CSV, the comparison with the paper."""

from __future__ import annotations

import csv
import io
import json
from types import SimpleNamespace

import pytest

from mplus_cli.errors import UsageError
from mplus_cli.profiling import paper, report
from mplus_cli.profiling.cells import FAILED, OK, OOM
from mplus_cli.profiling.plots import draw, latency_parts, memory_parts
from mplus_cli.profiling.results import Results
from mplus_cli.profiling.running import Row, failed
from tests.profiling.helpers import cell

SESSION = {"machine": {"processor": "one", "gpus": None}}


def times(median: float, low: float | None = None, high: float | None = None) -> dict[str, float]:
    return {"median": median, "low": low or median, "high": high or median, "count": 3}


def measured(peak: int = 2 << 20, **changes) -> dict:
    result = {
        "status": OK,
        "why": "",
        "peak_bytes": peak,
        "peak_parts": {"libraries": 1 << 20, "weights": peak - (1 << 20)},
        "peak_kind": "resident memory of the process",
        "inject_ms": 8000.0,
        "inject_tokens_per_s": times(1000, 900, 1100),
        "first_token_ms": times(500),
        "retrieval_ms": times(100),
        "token_ms": times(10),
        "flops": {"write": 1, "first_token": 2, "token": 3, "total": 4e12},
        "state_bytes": 5_000_000,
    }
    return result | changes


def row(system: str = "mplus", length: int = 131_072, **result) -> Row:
    one = cell(system, length)
    cost = {"peak_bytes": 7, "state_bytes": 8, "flops": {}}
    title = f"{one.asked.label} at {report.length_text(length)}"
    planned = SimpleNamespace(cell=one, estimate=cost, obstacle=None, title=title)
    return Row(planned, result if "status" in result else measured(**result))  # type: ignore[arg-type]


PLAN = SimpleNamespace(
    name="tiny", facts={"parameters": 1e6, "dtype": "float32", "device": "cpu", "adapters": "merged"}
)


def test_cells_are_appended_and_found_again(tmp_path):
    results = Results(tmp_path)
    results.append(("mplus", 2048), {"status": OK})
    results.append(("full", 2048), {"status": OOM})
    results.append(("window", 2048), {"status": FAILED})
    again = Results(tmp_path)
    assert [again.done((name, 2048)) for name in ("mplus", "full", "window", "snapkv")] == [True, True, False, False]
    assert not again.done(("mplus", 4096))


def test_a_torn_line_costs_its_cell_alone(tmp_path):
    results = Results(tmp_path)
    results.append(("mplus", 2048), {"status": OK})
    with open(tmp_path / "cells.jsonl", "a") as file:
        file.write('{"system": "full", "le')
    again = Results(tmp_path)
    assert again.damaged == 1
    again.append(("full", 2048), {"status": OK})
    assert set(Results(tmp_path).cells) == {("mplus", 2048), ("full", 2048)}


def test_another_machine_or_model_is_refused(tmp_path):
    results = Results(tmp_path)
    results.begin({"name": "default"}, SESSION)
    results.begin({"name": "default"}, SESSION)
    assert len(results.run()["sessions"]) == 2
    with pytest.raises(UsageError, match="another processor: one, now two"):
        results.begin({"name": "default"}, {"machine": {"processor": "two"}})
    with pytest.raises(UsageError, match="another model"):
        results.begin({"name": "other"}, SESSION)


def test_the_table_says_what_happened():
    lines = report.main_table(
        PLAN, [row(), row("full", status=OOM, why="x"), row("window", status=FAILED, why="y")]
    ).rows
    assert lines[0][:6] == ["mplus", "128k", "2.1 MB", "1,000 ±10%", "100 ms ±0%", "500 ms ±0%"]
    assert [line[2] for line in lines[1:]] == ["OOM", "failed"]
    assert lines[0][-1] == "5.0 MB"
    assert report.main_table(PLAN, [row(state_bytes=None)]).rows[0][-1] == "~8 B"


def test_notes_name_the_machine_and_every_cell_without_a_figure():
    machine = {"processor": "a processor", "cores": 2, "memory_bytes": 8e9}
    rows = [row(), row("full", status="skipped", why="beyond the positions")]
    text = "\n".join(report.notes(PLAN, rows, machine))
    assert "a processor, 2 cores" in text and "full at 128k: beyond the positions" in text
    assert "other work" not in text
    busy = "\n".join(report.notes(PLAN, [row(token_ms=times(10, 5, 40))], machine))
    assert "other work" in busy
    assert "GPU X" in report.notes(PLAN, rows, machine | {"gpus": ["GPU X"]})[0]


def test_csv():
    rows = [row(), row("full", status=OOM, why="x")]
    first, second = csv.DictReader(io.StringIO(report.as_csv(rows)))
    assert (first["inject_tokens_per_s"], first["inject_tokens_per_s_high"]) == ("1000", "1100")
    assert (first["flops_total"], first["estimated_peak_bytes"]) == ("4000000000000.0", "7")
    assert (second["status"], second["peak_bytes"]) == ("oom", "")


def test_everything_failed():
    assert failed([row(status=FAILED, why="")])
    assert not failed([row(status=FAILED, why=""), row("full", status=OOM, why="")])
    assert not failed([row()])


def test_the_paper_beside_ours():
    rows = [
        row("mplus", peak=100 << 20, flops={"total": 3e12}),
        row("mplus:offload=true", peak=80 << 20, first_token_ms=times(755)),
        row("full", status=OOM, why=""),
        row("mplus", 2048, flops={"total": 3e12}),
        row("full", 2048, flops={"total": 2e12}),
    ]
    memory, flops, latency = paper.comparison(rows)
    shown = {line[0]: line for line in memory.rows}
    assert shown["mplus"][2:] == ["21,178", "100", "1.00"]
    assert shown["mplus --offload"][2:] == ["17,973", "80", "0.80"]
    assert shown["full"][3:] == ["OOM", "-"]
    assert shown["snapkv"][3:] == ["-", "-"]
    assert flops.rows[0] == ["2k", "5.68e+13", "6.92e+13", "1.22", "2.00e+12", "3.00e+12", "1.50"]
    assert flops.rows[-1][:2] == ["128k", "OOM"]
    assert latency.rows[0][1:] == ["+3% (128k)", "+3.0%"]  # 8.755 s over 8.5 s


def test_plots_stack_up_to_the_measured_totals(tmp_path):
    result = measured()
    assert sum(memory_parts(result, 16)) == pytest.approx(result["peak_bytes"] / 1e6)
    assert sum(latency_parts(result, 16)) == pytest.approx(8 + 0.5 + 0.16)
    assert [path.name for path in draw([row(), row("full", status=OOM, why="")], tmp_path)] == [
        "memory.png",
        "latency.png",
    ]
    assert all(path.stat().st_size > 3_000 for path in tmp_path.iterdir())
    assert draw([row(status=OOM, why="")], tmp_path) == []


def test_json_is_plain():
    assert json.loads(json.dumps(report.as_json(PLAN, [row()], {})))["cells"][0]["status"] == OK  # type: ignore[arg-type]
