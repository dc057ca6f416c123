"""One call of `mplus profile`, from the request to the measured cells."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mplus_cli.errors import MPlusError, UsageError
from mplus_cli.machine import MODEL_PACKAGES, machine, versions
from mplus_cli.profiling.cells import FAILED, OK, OOM, REFUSED, run_cell
from mplus_cli.profiling.planning import Plan, Planned
from mplus_cli.profiling.results import Results

Show = Callable[[float, str], None]  # cells done, what is going on


@dataclass(frozen=True)
class Row:
    """A cell in the report: its plan, and what came of it. `result` has `status` `skipped` where it was not run."""

    planned: Planned
    result: dict[str, Any]


def check(plan: Plan, yes: bool) -> list[Planned]:
    """The cells to run.

    Raises:
        UsageError: a system that was named cannot be run at some length, or nothing can; unless `yes`.
    """
    if yes or not plan.obstacles:
        return list(plan.cells)
    left = [one for one in plan.cells if not one.obstacle]
    if plan.request.systems or not left:
        lines = "".join(f"\n  {one.title}: {one.obstacle}" for one in plan.obstacles)
        raise UsageError(
            f"{len(plan.obstacles)} of {len(plan.cells)} cells are more than the model or the machine allows:{lines}",
            hint="shorter --len or fewer --system; --yes tries all the same; --estimate runs nothing",
        )
    return left


def run(plan: Plan, cells: list[Planned], results: Results, show: Show, warn: Callable[[str], None]) -> list[Row]:
    """Measure what has not been measured yet, one cell after another.

    Raises:
        MPlusError: Ctrl-C, bad input that only the loaded model shows, or every cell failed; what is measured is kept.
    """
    if results.damaged:
        warn(f"{results.damaged} damaged lines of {results.folder} are left out; their cells are measured again")
    results.folder.mkdir(parents=True, exist_ok=True)
    plan.request.save()
    session = {"command": ["mplus", *sys.argv[1:]], "versions": versions(*MODEL_PACKAGES), "machine": machine()}
    results.begin(plan.facts, session)
    left = [one for one in cells if not results.done(one.cell.key)]
    done = len(cells) - len(left)
    for one in left:
        what = one.title
        start = time.monotonic()
        try:
            found = run_cell(one.cell, plan.choice, _how(plan, one), lambda doing: show(done, f"{what}, {doing}"))  # noqa: B023
        except KeyboardInterrupt:
            kept = f"interrupted; {done} of {len(cells)} cells are measured and kept"
            raise MPlusError(kept, hint=plan.request.resume_command, exit_code=130) from None
        if found["status"] == REFUSED:
            raise UsageError(found["why"], hint=found.get("hint"))
        if found["status"] in (FAILED, OOM):
            warn(f"{what}: {'out of memory' if found['status'] == OOM else 'failed'}: {found['why']}")
        results.append(one.cell.key, {**_about(one), **found, "seconds": time.monotonic() - start})
        done += 1
        show(done, what)
    return rows(plan, results)


def rows(plan: Plan, results: Results) -> list[Row]:
    """Every cell of a plan with its result, in the order asked for."""
    skipped = {"status": "skipped"}
    return [
        Row(one, results.cells.get(one.cell.key) or skipped | {"why": one.obstacle or "not measured yet"})
        for one in plan.cells
    ]


def failed(found: list[Row]) -> bool:
    """Whether nothing at all could be measured."""
    return bool(found) and not any(row.result["status"] in (OK, OOM) for row in found)


def _how(plan: Plan, one: Planned) -> dict[str, Any]:
    request = plan.request
    name = f"{one.cell.asked.spec.folder}-{one.cell.length}.json.gz"
    return {
        "repeats": request.repeats,
        "writes": request.writes,
        "with_breakdown": request.breakdown,
        "trace": str(request.out / "traces" / name) if request.breakdown else None,
    }


def _about(one: Planned) -> dict[str, Any]:
    cell = one.cell
    return {
        "prompt": cell.prompt,
        "new_tokens": cell.new_tokens,
        "stored": cell.stored,
        "estimate": {key: one.estimate[key] for key in ("peak_bytes", "flops", "state_bytes")},
    }
