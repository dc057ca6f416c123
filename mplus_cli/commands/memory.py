"""`mplus memory`: look into memory files, check them, make a source forgotten, give back unused space."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mplus_cli.commands.options import DeviceOption, JsonFlag, ModelOption, QuietFlag, VerboseFlag
from mplus_cli.console import Progress, output, size, table

app = typer.Typer(help="Look into memory files and take care of them.", no_args_is_help=True)

StateArgument = Annotated[
    Path | None, typer.Argument(metavar="[STATE]", help="Memory file. Default: $MPLUS_STATE, else the last one.")
]


@app.command()
def show(
    state: StateArgument = None, json: JsonFlag = False, quiet: QuietFlag = False, verbose: VerboseFlag = False
) -> None:
    """What a memory file holds: sources, fill, ages, sizes, the model it belongs to."""
    from mplus_cli.core.state.memory_state import MemoryState
    from mplus_cli.inference.locate import find_state

    path = find_state(state)
    with MemoryState.open(path) as opened:
        summary, sources = opened.summary(), opened.sources()
    output.result(render_summary(summary, sources), summary | {"state": str(path), "sources": sources})


@app.command()
def verify(
    state: StateArgument = None, json: JsonFlag = False, quiet: QuietFlag = False, verbose: VerboseFlag = False
) -> None:
    """Check every checksum of a memory file."""
    from mplus_cli.core.state.memory_state import MemoryState
    from mplus_cli.inference.locate import find_state

    path = find_state(state)
    with MemoryState.open(path) as opened, Progress("verifying", path.stat().st_size) as progress:
        checked = opened.verify(lambda done, total: progress.update(done, size(done)))
    text = f"{path}: every checksum is right ({checked['values']:,} memory tokens, {size(checked['bytes'])})"
    output.result(text, {"state": str(path), "ok": True, "checked": checked})


@app.command()
def forget(
    state: Annotated[Path, typer.Argument(help="Memory file.")],
    source: Annotated[str, typer.Option("--source", help="Name of the source, as `mplus memory show` lists it.")],
    model: ModelOption = None,
    device: DeviceOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Remove everything that a source put into a memory file, and prove it."""
    from mplus_cli.inference.jobs import forget_source

    proof = forget_source(state, source, model, device)
    output.result(render_proof(state, source, proof), {"state": str(state), "source": source, **proof})


@app.command()
def compact(
    state: Annotated[Path, typer.Argument(help="Memory file.")],
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Rewrite a memory file without what memory no longer holds."""
    from mplus_cli.core.state.memory_state import MemoryState

    with MemoryState.open(state, writable=True) as opened:
        saved = opened.compact()
    after = state.stat().st_size
    document = {"state": str(state), "before": after + saved, "after": after}
    output.result(f"{state}: {size(after + saved)} -> {size(after)}", document)


def render_proof(state: Path, source: str, proof: dict[str, Any]) -> str:
    """What was removed, and what a fresh look into the new file found."""
    before, after = proof["before"], proof["after"]
    rows = [
        [name.replace("_", "-"), f"{sum(before[name]):,}", f"{sum(after[name]):,}"]
        for name in ("short_term", "long_term")
    ]
    lines = [
        f"{state}: {proof['writes']:,} writes of {source} forgotten, {proof['removed']:,} memory tokens removed",
        f"the new file was opened and searched: {proof['left']:,} memory tokens of {source} are left",
        table(["memory tokens over all layers", "before", "after"], rows),
    ]
    if proof["moved"]:
        lines.insert(1, f"{proof['moved']:,} tokens of other sources moved from short-term to long-term memory")
    return "\n".join(lines)


def render_summary(summary: dict[str, Any], sources: list[dict[str, Any]]) -> str:
    """A memory file for people: what it is, how full, from what, how old."""
    name = (summary["model"] or {}).get("name") or "(unnamed)"
    short, long = summary["short_term"], summary["long_term"]
    long_term = f"{long['tokens']:,} of {long['capacity']:,}" if long["capacity"] else "none"
    lines = [
        f"{summary['path']}: {size(summary['file_bytes'])}, {size(summary['dead_bytes'])} of it no longer in memory",
        f"model {name}, {summary['layers']} layers, {_dtype(summary)}, seed {summary['seed']}",
        f"memory tokens per layer: {short['tokens']:,} of {short['capacity']:,} short-term, {long_term} long-term",
        f"{summary['writes']:,} writes, {summary['tokens']:,} text tokens, last on {summary['updated']}",
    ]
    if (summary["job"] or {}).get("done") is False:
        lines.append("an injection was interrupted; the same command continues it")
    rows = [
        [s["source"], f"{s['tokens']:,}", f"{s['writes']:,}", f"{s['short_term']:,}", f"{s['long_term']:,}"]
        for s in sources
    ]
    headers = ["source", "text tokens", "writes", "in short-term", "in long-term"]
    ages = [
        [f"{age['from']:,} to {age['to']:,}", f"{age['short_term']:,}", f"{age['long_term']:,}"]
        for age in summary["ages"]
    ]
    held = table(["age in memory tokens", "in short-term", "in long-term"], ages)
    return "\n".join([*lines, "", "memory tokens over all layers", table(headers, rows), "", held])


def _dtype(summary: dict[str, Any]) -> str:
    """What memory was computed in, and how its values are kept where that is another way."""
    kept = summary["values"]
    return summary["dtype"] if kept == "model" else f"{summary['dtype']} with values in {kept}"
