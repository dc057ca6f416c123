"""`mplus eval reproduce`: every table and figure of both papers, how to make it, and ours beside the published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mplus_cli.commands.options import JsonFlag, QuietFlag, VerboseFlag
from mplus_cli.console import output, table


def reproduce(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Such as mplus-table-2. Default: all, in short.")
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", "-r", help="Folder of `mplus eval` or `mplus profile`; repeat for more."),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Everything, as one Markdown document.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """List every table and figure of the papers: commands, what they need, published numbers, and yours beside them."""
    from mplus_cli.reproduction import report
    from mplus_cli.reproduction.found import find
    from mplus_cli.reproduction.rates import choose_rate
    from mplus_cli.reproduction.table import choose

    chosen = choose(tuple(names or ()))
    found = find(results or (), output.warn)
    rate = choose_rate(found.profiles)
    if markdown:
        text = report.markdown(chosen, found, rate)
    else:
        parts = [] if names else [report.overview(chosen, found).text(table)]
        for entry in chosen:
            numbers = report.values(entry, found)
            if names:
                parts.append("\n".join([f"{entry.id}: {entry.title}", *report.details(entry, found, rate)]))
            if numbers is not None and (names or any(found.numbers(value.ours) for value in entry.values)):
                parts.append(numbers.text(table))
        text = "\n\n".join(parts)
    output.result(text, report.as_json(chosen, found, rate))
    if not (names or markdown):
        output.hint("commands, needs and times: mplus eval reproduce ID..., or --markdown")
