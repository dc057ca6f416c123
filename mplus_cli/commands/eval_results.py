"""`mplus eval list`, `show`, `compare` and `plot`: what there is to evaluate, and finished results side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mplus_cli.commands import eval_options as given
from mplus_cli.commands.options import JsonFlag, QuietFlag, VerboseFlag
from mplus_cli.console import output, table

if TYPE_CHECKING:
    from mplus_cli.evaluation.scoring import Scored


def list_tables(json: JsonFlag = False, quiet: QuietFlag = False, verbose: VerboseFlag = False) -> None:
    """Tasks and systems."""
    from mplus_cli.evaluation.system import SYSTEMS
    from mplus_cli.evaluation.task import TASKS

    texts = []
    for kind, rows in (("task", TASKS), ("system", SYSTEMS)):
        width = max(map(len, rows))
        lines = [f"  {n.ljust(width)}  {r.title}" + (f" ({r.paper})" if r.paper else "") for n, r in rows.items()]
        texts.append("\n".join([f"{kind}s", *lines]))
    found = {
        kind: {n: {"title": r.title, "paper": r.paper} for n, r in rows.items()}
        for kind, rows in (("tasks", TASKS), ("systems", SYSTEMS))
    }
    output.result("\n\n".join(texts), found)
    output.hint("settings of one: mplus eval show NAME")


def show(
    name: Annotated[str, typer.Argument(help="A task or a system.")],
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """What a task or system is, and its settings with their defaults."""
    from mplus_cli.evaluation.registry import describe, written

    about = describe(name)
    settings = [[key, written(value)] for key, value in about["settings"].items()]
    text = f"{about['name']}: {about['title']}\n\n{about['text']}"
    output.result(text + ("\n\n" + table(["setting", "default"], settings) if settings else ""), about)


def compare(
    folders: given.FoldersArgument,
    against: Annotated[
        str | None, typer.Option("--against", help="Run to take the differences from. Default: the first.")
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Results side by side, with paired differences over the samples that runs share."""
    from mplus_cli.evaluation.compare import compare as compared

    found = [compared(task, results, against) for task, results in _gathered(folders)]
    for one in found:
        for note in one.notes:
            output.warn(f"{one.task}: {note}")
    data = [{"task": one.task, "runs": one.rows, "notes": one.notes} for one in found]
    output.result("\n\n".join(one.table.text(table) for one in found), data)


def plot(
    folders: given.FoldersArgument,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the PNGs. Default: the first DIR.")] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Draw the results of one or more runs together."""
    from mplus_cli.evaluation.plots import draw
    from mplus_cli.evaluation.registry import folder_name

    gathered = [(task, results, folder_name(results[0].results["task"])) for task, results in _gathered(folders)]
    drawn = [path for task, results, name in gathered for path in draw(task, results, (out or folders[0]) / name)]
    output.result("\n".join(map(str, drawn)), [str(path) for path in drawn])


def _gathered(folders: list[Path]) -> Scored:
    from mplus_cli.evaluation.compare import labelled
    from mplus_cli.evaluation.runs import find_pairs
    from mplus_cli.evaluation.scoring import score_all

    return labelled([(folder, score_all(find_pairs([folder]), output.warn)) for folder in folders])
