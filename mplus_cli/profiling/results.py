"""The folder of a profile. Cells are appended as they are measured; nothing that was measured is ever overwritten.

DIR/request.json   what was asked for          DIR/run.json      machine, versions and model of every session
DIR/cells.jsonl    one line per measured cell  DIR/traces/       events of `--breakdown`
DIR/results.md, results.csv, results.json, memory.png, latency.png   made of the files above
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mplus_cli.data.building.shards import atomic_write
from mplus_cli.errors import UsageError
from mplus_cli.profiling.cells import FAILED

CELLS, RUN = "cells.jsonl", "run.json"
Key = tuple[str, int]


class Results:
    """The measured cells of a folder, by system label and length."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged = 0
        self.cells: dict[Key, dict[str, Any]] = {}
        path = folder / CELLS
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                cell = json.loads(line)
                self.cells[cell["system"], cell["length"]] = cell
            except (ValueError, KeyError, TypeError):
                self.damaged += 1

    def done(self, key: Key) -> bool:
        """Whether a cell has a result. Out of memory is one; a failure is tried again."""
        return key in self.cells and self.cells[key]["status"] != FAILED

    def append(self, key: Key, cell: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a cell, on the disk when this returns."""
        line = {"system": key[0], "length": key[1], "measured": _now(), **cell}
        path = self.folder / CELLS
        torn = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
        with open(path, "a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.cells[key] = line
        return line

    def run(self) -> dict[str, Any]:
        """run.json, or an empty one."""
        try:
            return json.loads((self.folder / RUN).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"sessions": []}
        except ValueError as error:
            raise UsageError(f"{self.folder / RUN} is damaged: {error}", "Profile into another --out.") from error

    def begin(self, model: Mapping[str, Any], session: Mapping[str, Any]) -> dict[str, Any]:
        """Note the model and who measures.

        Raises:
            UsageError: the folder's cells are of another model or another machine, with which these do not compare.
        """
        run = self.run()
        before = run["sessions"][-1] if run["sessions"] else None
        if before is not None:
            facts = {"model": (run["model"], dict(model))} | {
                key: (before["machine"].get(key), session["machine"].get(key)) for key in ("processor", "gpus")
            }
            for name, (old, new) in facts.items():
                if old != new:
                    raise UsageError(
                        f"{self.folder} was measured with another {name}: {old}, now {new}", hint="use another --out"
                    )
        run["model"] = dict(model)
        run["sessions"].append({"begun": _now(), **session})
        with atomic_write(self.folder / RUN) as file:
            file.write((json.dumps(run, indent=1) + "\n").encode())
        return run


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
