"""Small made-up records of LongBench, files of them, and the items that the task makes of them."""

from __future__ import annotations

import json
from pathlib import Path

from mplus_cli.evaluation.tasks.longbench import LongBench
from tests.evaluation.tasks.helpers import task_settings

TASK = LongBench()


def record(dataset: str, number: int = 0, **changes) -> dict:
    told = f"In the year {1200 + number} the miller sold {number} {{sacks}}. " * 20
    row = {"_id": f"id{number}", "dataset": dataset, "language": "en", "length": 300, "all_classes": None}
    return row | {"context": told, "input": f"How many were sold in {number}?", "answers": [str(number)]} | changes


def write(path: Path, *records: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in records))
    return path


def items(*options: str, **given):
    return list(TASK.items(task_settings(TASK, *options, **given)))
