"""`mplus eval`: ask tasks of systems and score the answers. What only reads results is in `eval_results`."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from mplus_cli.commands import eval_card, eval_reproduce, eval_results
from mplus_cli.commands import eval_options as given
from mplus_cli.commands.options import JsonFlag, QuietFlag, VerboseFlag
from mplus_cli.console import Progress, output, table

app = typer.Typer(
    cls=given.TaskGroup,
    help="Measure how much a model remembers. `mplus eval TASK...` asks tasks of systems; see the command `run`.",
    no_args_is_help=True,
)


@app.command("run")
def run(
    tasks: given.TasksArgument = None,
    system: given.SystemsOption = None,
    model: given.ModelOption = None,
    base_model: given.BaseModelOption = None,
    length: given.LengthOption = None,
    limit: given.LimitOption = None,
    seed: given.SeedOption = 0,
    data: given.DataOption = None,
    setting: given.SetOption = None,
    offload: given.OffloadOption = False,
    dtype: given.DtypeOption = None,
    quantize: given.QuantizeOption = None,
    out: given.OutOption = Path("eval-results"),
    resume: given.ResumeOption = False,
    batch: given.BatchOption = None,
    device: given.DeviceOption = None,
    gpus: given.GpusOption = None,
    hostfile: given.HostfileOption = None,
    whole_prompts: given.WholePromptsOption = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Ask tasks of systems: `mplus eval TASK...`, for example `mplus eval chronicle --system mplus --system bm25`.

    Finished samples are kept; Ctrl-C and --resume go on where it stopped.
    """
    from mplus_cli.evaluation.request import Request, with_running

    request = Request(
        out=out,
        tasks=tuple(tasks or ()),
        systems=tuple(system or ()),
        settings=tuple(setting or ()),
        model=model,
        base_model=base_model,
        length=given.tokens(length),
        limit=limit,
        seed=seed,
        data=data,
        offload=offload,
        dtype=dtype,
        quantize=quantize,
        resume=resume,
        batch=batch,
        device=device,
        processes=gpus,
        hostfile=hostfile,
        whole_prompts=whole_prompts,
    )
    if resume and not request.tasks:
        request = with_running(Request.load(out), request)
    from mplus_cli.evaluation.running import run as evaluate

    with Progress("evaluating", 1.0) as progress:
        evaluate(
            request,
            lambda done, of, what: progress.update(
                done / of, f"{what}, {done:,} of {of:,} samples" if isinstance(done, int) else what
            ),
            output.warn,
            ["mplus", *sys.argv[1:]],
            verbose=output.verbose,
        )
    _finish(out)


@app.command("score")
def score(
    folder: given.FolderArgument, json: JsonFlag = False, quiet: QuietFlag = False, verbose: VerboseFlag = False
) -> None:
    """Score finished samples again: tables, results.json, results.md, plots. Needs neither model nor data."""
    _finish(folder)


app.command("list")(eval_results.list_tables)
app.command("show")(eval_results.show)
app.command("compare")(eval_results.compare)
app.command("plot")(eval_results.plot)
app.command("card")(eval_card.card)
app.command("reproduce")(eval_reproduce.reproduce)


def _finish(folder: Path) -> None:
    """Score everything in a folder, draw it, and show the tables."""
    from mplus_cli.evaluation.report import finish, tables

    scored, plots, report = finish(folder, output.warn)
    texts = [one.text(table) for task, results in scored for one in tables(task, results)]
    data = {
        "results": [one.results for _, results in scored for one in results],
        "plots": [str(path) for path in plots],
        "report": str(report),
    }
    output.result("\n\n".join(texts), data)
    output.hint(f"{report}" + (f", {len(plots)} plot{'s' * (len(plots) > 1)} beside it" if plots else ""))
