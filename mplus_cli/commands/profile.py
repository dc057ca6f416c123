"""`mplus profile`: what M+ and its alternatives cost on this machine, by length of text."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mplus_cli.commands import profile_options as given
from mplus_cli.commands.options import JsonFlag, QuietFlag, VerboseFlag
from mplus_cli.console import Progress, output, table
from mplus_cli.errors import MPlusError, UsageError

if TYPE_CHECKING:
    from mplus_cli.profiling.gpus import Gpu
    from mplus_cli.profiling.planning import Plan, Planned
    from mplus_cli.profiling.request import Request


def profile(
    length: given.LengthsOption = None,
    system: given.SystemsOption = None,
    model: given.ModelOption = None,
    random_weights: given.RandomOption = None,
    offload: given.OffloadOption = False,
    prompt: given.PromptOption = None,
    new_tokens: given.NewTokensOption = None,
    stored: given.StoredOption = None,
    quantize: given.QuantizeOption = None,
    adapters: given.AdaptersOption = None,
    device: given.DeviceOption = None,
    dtype: given.DtypeOption = None,
    threads: given.ThreadsOption = None,
    repeats: given.RepeatsOption = None,
    writes: given.WritesOption = None,
    out: given.OutOption = None,
    resume: given.ResumeOption = False,
    yes: given.YesOption = False,
    estimate: given.EstimateOption = False,
    gpu: given.GpuOption = None,
    breakdown: given.BreakdownOption = False,
    compare_paper: given.PaperOption = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Measure memory, latency and FLOPs by length of text, for M+ and what it is compared with.

    `mplus profile --len 128k`. Every cell of the table has a process of its own and is kept when it is done; Ctrl-C and
    --resume go on where it stopped.
    """
    from mplus_cli.profiling.request import PAPER_PROMPT, Request, new_folder, parse_lengths

    request = Request(
        out=new_folder(out, resume),
        systems=tuple(system or ()),
        lengths=parse_lengths(length or ()),
        model=model,
        random_weights=random_weights,
        offload=offload,
        prompt=PAPER_PROMPT if compare_paper and prompt is None and not resume else prompt,
        new_tokens=new_tokens,
        stored=stored,
        quantize=quantize,
        adapters=adapters,
        device=device,
        dtype=dtype,
        threads=threads,
        repeats=repeats,
        writes=writes,
        breakdown=breakdown,
    )
    _profile(Request.load(request.out).joined(request) if resume else request, yes, estimate, gpu, compare_paper)


def _profile(request: Request, yes: bool, estimate: bool, gpu: str | None, compare_paper: bool) -> None:
    from mplus_cli.profiling.gpus import find_gpu
    from mplus_cli.profiling.planning import make_plan
    from mplus_cli.profiling.running import check

    output.debug("reading the model's configuration")
    if gpu is not None and (not estimate or request.device is not None):
        raise UsageError("--gpu plans for a GPU that is not here: it goes with --estimate, and not with --device")
    planned_for = None if gpu is None else find_gpu(gpu)
    plan = make_plan(request, planned_for)
    if estimate:
        _estimate(plan, planned_for)
        return
    try:
        cells = check(plan, yes)
    except UsageError:
        from mplus_cli.profiling.forecast import purposes

        output.info(purposes(plan.cells).text(table))  # the estimate first, then the refusal
        raise
    _measure(plan, cells, compare_paper)


def _estimate(plan: Plan, gpu: Gpu | None) -> None:
    from mplus_cli.profiling.forecast import forecast, machine_rates

    tables, data = forecast(plan, machine_rates(plan, gpu), gpu)
    output.result("\n\n".join(one.text(table) for one in tables), data)
    for one in plan.obstacles:
        output.warn(f"{one.title}: {one.obstacle}")


def _measure(plan: Plan, cells: list[Planned], compare_paper: bool) -> None:
    from mplus_cli.machine import machine
    from mplus_cli.profiling.report import all_tables, as_json, notes, write
    from mplus_cli.profiling.results import Results
    from mplus_cli.profiling.running import failed, run

    results = Results(plan.request.out)
    output.info(f"profiling {plan.name} on {plan.placement}, {len(cells)} cells, into {plan.request.out}")
    with Progress("profiling", len(cells), "cells") as progress:
        rows = run(plan, cells, results, progress.update, output.warn)
    facts = machine()
    files = write(plan, rows, facts, plan.request.out, output.warn, compare_paper)
    text = "\n\n".join(one.text(table) for one in all_tables(plan, rows, compare_paper))
    output.result(text, as_json(plan, rows, facts) | {"files": [str(path) for path in files]})
    for line in notes(plan, rows, facts):
        output.info(line)
    output.hint(", ".join(map(str, files)))
    if failed(rows):
        raise MPlusError("no cell could be measured", hint=f"{sys.argv[0]} profile --verbose, or --estimate")
