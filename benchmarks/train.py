"""Speed of training: tokens per second of every stage, where the time goes, and what a second process brings.

    python benchmarks/train.py                     # the figures of the README
    python benchmarks/train.py --configurations default --steps 8 --processes 1 --json out.json

Two configurations: the default model's recipes as they are, and the same with a backbone of 100M parameters and
smaller batches. The stages run one after the other for a few steps each, every one from the result of the one before,
on chronicles that are made here. Every run has `--threads` threads per process, so that two processes are compared with
one on equal terms; and, as the measure of what the machine's second core can bring, with two separate runs at once.
Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STAGES = ("base", "1", "2", "3")
WARM_UP = 2  # lines of the journal that are left out: the first step runs every task, the second first fills buffers
LIMITS = {"data": 0.10, "upkeep": 0.10}  # shares
SPEEDUP = 1.6  # of two processes, where each has a core
CONFIGURATIONS: dict[str, dict[str, list[str]]] = {
    "default": {stage: [] for stage in STAGES},
    "100M": {
        "base": [
            "new_backbone.hidden_size=768",
            "new_backbone.num_hidden_layers=12",
            "new_backbone.num_attention_heads=12",
            "new_backbone.num_key_value_heads=4",
            "new_backbone.head_dim=64",
            "new_backbone.intermediate_size=2816",
            "data.batch_size=4",
            "data.look_ahead=16",
            "tasks.copying.rows=4",
        ],
        **{stage: ["data.batch_size=2", "data.look_ahead=8", "tasks.max_contexts=[[null,8]]"] for stage in "123"},
    },
}


def make_text(folder: Path) -> list[str]:
    """Chronicles enough for some steps, and the override that names them."""
    out = folder / "chronicle"
    command = [sys.executable, "-m", "mplus_cli", "build-data", "chronicle", "-o", str(out), "--train", "80"]
    options = ["--test", "0", "--characters", "20000", "--two-passage-rate", "0", "--processes", "1"]
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return [f"data.sources=[{out}]"]


def overrides(configuration: str, stage: str, start: Path | None, steps: int) -> list[str]:
    """What differs from the shipped recipe: sizes, length, and no evaluation or saving within the run."""
    short = [
        f"steps={steps}",
        "optimizer.warmup_steps=0",
        "logging.every=1",
        "checkpoint.every=1000000",
        "data.eval_documents=0",
    ]
    cap = [] if configuration != "default" else [f"tasks.max_contexts={longest_contexts(stage)}"]
    model = [] if start is None else [f"model={start}"]
    return [*cap, *CONFIGURATIONS[configuration][stage], *short, *model]


def longest_contexts(stage: str) -> str:
    """The last of the recipe's caps: most of a run is spent with it."""
    import yaml

    recipe = yaml.safe_load(recipe_file(stage).read_text())
    return f"[[null,{recipe['tasks'].get('max_contexts', [[None, 1]])[-1][1]}]]"


def recipe_file(stage: str) -> Path:
    return ROOT / "recipes" / "default" / ("base_bare.yaml" if stage == "base" else f"stage{stage}.yaml")


def run(stage: str, changes: list[str], out: Path, processes: int, threads: int) -> list[dict[str, Any]]:
    """Train as a process of its own; the lines of its journal after warming up."""
    mine = ["--one"] if processes == 1 else []
    command = [sys.executable, str(Path(__file__)), *mine, "--"] if mine else [sys.executable, "-m", "mplus_cli"]
    command += ["train", "--config", str(recipe_file(stage)), "--out", str(out), *changes]
    command += [] if processes == 1 else ["--gpus", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"stage {stage} on {processes} processes: {done.stderr}")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()][WARM_UP:]
    if processes == 1:
        seconds = json.loads((out / "upkeep.json").read_text())
        for line in lines:
            line["seconds"]["upkeep"] = seconds[str(line["step"])]
    return lines


def figures(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Tokens per second, and the share of each part of the loop."""
    total = {name: sum(line["seconds"][name] for line in lines) for name in lines[0]["seconds"]}
    training = total["total"] - total["checkpoint"] - total["validation"]
    upkeep = total.get("upkeep", 0.0)
    parts = {"data": total["data"], "forward": total["forward"] - upkeep, "backward": total["backward"]}
    parts |= {"optimizer": total["optimizer"], "upkeep": upkeep}
    parts["rest"] = training - sum(parts.values())
    return {
        "tokens_per_second": sum(line["tokens"] for line in lines) / training,
        "seconds_per_step": training / len(lines),
        "shares": {name: seconds / training for name, seconds in parts.items()},
        "peak_bytes": max(line["peak_bytes"] for line in lines),
    }


def measure_upkeep(arguments: list[str]) -> None:
    """Run `mplus` in this process and note per step what was spent on keeping memories: writing into short-term and
    long-term memory, making retrieval keys, refreshing them, lending stores, beginning anew."""
    from mplus_cli import cli
    from mplus_cli.core.memory import Memory
    from mplus_cli.training import lending
    from mplus_cli.training.journal import Journal
    from mplus_cli.training.rows import RowState

    spent = [0.0]
    by_step: dict[int, float] = {}

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent[0] += time.perf_counter() - begin

        return wrapper

    write = Journal.write

    def noted(self: Journal, step: int, extra: dict[str, Any]) -> dict[str, Any]:
        by_step[step], spent[0] = spent[0], 0.0
        return write(self, step, extra)

    Memory.append = timed(Memory.append)  # type: ignore[method-assign]
    lending.lend = timed(lending.lend)
    RowState.refresh_keys = timed(RowState.refresh_keys)  # type: ignore[method-assign]
    RowState.renew = timed(RowState.renew)  # type: ignore[method-assign]
    Journal.write = noted  # type: ignore[method-assign]
    try:
        cli.main(arguments)
    finally:
        out = Path(arguments[arguments.index("--out") + 1])
        if out.is_dir():
            (out / "upkeep.json").write_text(json.dumps(by_step))


def benchmark(configuration: str, text: list[str], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All stages of one configuration."""
    found: dict[str, Any] = {}
    start = None
    for stage in STAGES:
        changes = [*overrides(configuration, stage, start, options.steps + WARM_UP), *text]
        for count in options.processes:
            out = folder / f"{configuration}-{stage}-{count}"
            found.setdefault(stage, {})[str(count)] = figures(run(stage, changes, out, count, options.threads))
            print(row(configuration, stage, count, found[stage][str(count)]), flush=True)
        if {1, 2} <= set(options.processes):
            both = side_by_side(stage, changes, folder / f"{configuration}-{stage}", options.threads)
            found[stage]["separate"] = {"tokens_per_second": both}
        start = folder / f"{configuration}-{stage}-{options.processes[0]}" / "model"
    return found


def side_by_side(stage: str, changes: list[str], out: Path, threads: int) -> float:
    """Tokens per second of two runs at once that know nothing of each other, together."""
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(lambda name: run(stage, changes, out.with_name(f"{out.name}-{name}"), 1, threads), "ab")
        return sum(figures(lines)["tokens_per_second"] for lines in runs)


HEADER = (
    "configuration  stage  processes  tokens/s  s/step   data  forward  backward  optimizer  upkeep    rest  peak GB"
)


def row(configuration: str, stage: str, count: int, found: dict[str, Any]) -> str:
    shares = found["shares"]
    widths = {"data": 5, "forward": 7, "backward": 8, "optimizer": 9, "upkeep": 6, "rest": 6}
    parts = "  ".join(
        ("-" if name == "upkeep" and count > 1 else f"{shares[name]:.1%}").rjust(width)
        for name, width in widths.items()
    )
    return (
        f"{configuration:<13}  {stage:>5}  {count:>9}  {found['tokens_per_second']:>8,.0f}  "
        f"{found['seconds_per_step']:>6.2f}  {parts}  {found['peak_bytes'] / 1e9:>7.2f}"
    )


def verdict(found: dict[str, Any]) -> list[str]:
    """What misses its target."""
    problems = []
    for configuration, stages in found.items():
        for stage, counts in stages.items():
            for name, limit in LIMITS.items():
                share = counts["1"]["shares"][name] if "1" in counts else 0.0
                if share > limit:
                    problems.append(f"{configuration} stage {stage}: {name} takes {share:.0%}, more than {limit:.0%}")
            if {"1", "2"} <= counts.keys():
                one = counts["1"]["tokens_per_second"]
                gain, most = counts["2"]["tokens_per_second"] / one, counts["separate"]["tokens_per_second"] / one
                print(
                    f"{configuration} stage {stage}: two processes are {gain:.2f} times as fast as one, "
                    f"two separate runs {most:.2f} times"
                )
                if gain < SPEEDUP:
                    problems.append(f"{configuration} stage {stage}: {gain:.2f} times, less than {SPEEDUP}")
    return problems


def main() -> None:
    if "--one" in sys.argv:
        measure_upkeep(sys.argv[sys.argv.index("--") + 1 :])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configurations", nargs="+", default=list(CONFIGURATIONS), choices=list(CONFIGURATIONS))
    parser.add_argument("--steps", type=int, default=12, help="measured steps per stage, after warming up")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--threads", type=int, default=1, help="per process")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.threads} threads per process"
    )
    print(HEADER)
    with tempfile.TemporaryDirectory() as name:
        text = make_text(Path(name))
        found = {c: benchmark(c, text, Path(name), options) for c in options.configurations}
    problems = verdict(found)
    print("\n".join(problems) or "every target is met")
    if options.json:
        options.json.write_text(json.dumps({"cores": os.cpu_count(), "threads": options.threads, **found}, indent=2))


if __name__ == "__main__":
    main()
