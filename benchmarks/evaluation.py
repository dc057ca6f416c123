"""Samples per second of `mplus eval`, one item at a time against many, on the bundled model.

    python benchmarks/evaluation.py                      # chronicle, mplus and memoryllm, batches of 1 and 16
    python benchmarks/evaluation.py --task retention --system mplus --batch 1 --batch 4 --json out.json

Every run is a process of its own. Wall time counts the answering alone, as `results.json` does; processor time is of
the whole process, start included, and says what the machine really did when others use it too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def measure(task: str, system: str, batch: int, limit: int, model: str | None) -> dict[str, Any]:
    """One run of `mplus eval`: samples, seconds, samples per second of wall and of processor time."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "mplus_cli", "eval", task, "--system", system, "--limit", str(limit)]
        command += ["--batch", str(batch), "--out", str(out), "--json", *(["--model", model] if model else [])]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.exit(done.stderr)
    (result,) = json.loads(done.stdout)["results"]
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "task": task,
        "system": system,
        "batch": batch,
        "samples": result["scored"],
        "wall_seconds": result["time"]["seconds"]["wall"],
        "processor_seconds": round(processor, 2),
        "samples_per_second": result["time"]["samples_per_second"],
        "samples_per_processor_second": round(result["scored"] / processor, 2),
        "score": result["scores"][result["metric"]]["mean"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="chronicle")
    parser.add_argument("--system", action="append")
    parser.add_argument("--batch", action="append", type=int)
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--model")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = []
    print(f"{'system':12} {'batch':>5} {'samples':>8} {'wall s':>8} {'cpu s':>8} {'per s':>8} {'per cpu s':>10} score")
    for system in options.system or ["mplus", "memoryllm"]:
        for batch in options.batch or [1, 16]:
            one = measure(options.task, system, batch, options.limit, options.model)
            found.append(one)
            print(
                f"{system:12} {batch:5} {one['samples']:8} {one['wall_seconds']:8.1f} {one['processor_seconds']:8.1f} "
                f"{one['samples_per_second']:8.2f} {one['samples_per_processor_second']:10.2f} {one['score']:.3f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
