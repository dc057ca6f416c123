"""Options that several builders share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mplus_cli.console import output

if TYPE_CHECKING:
    from mplus_cli.data.building import Manifest

SOURCES, RUNNING = "Source", "Running (changes no byte of the result)"
_COUNTER = "tokenizer.json, model folder or hub id."

OutOption = Annotated[
    Path, typer.Option("--out", "-o", help="New folder to build in; an interrupted build goes on in its own.")
]
TokenizerOption = Annotated[str, typer.Option("--tokenizer", help=f"What counts the tokens: {_COUNTER}")]
OptionalTokenizer = Annotated[str | None, typer.Option("--tokenizer", help=f"Count tokens too: {_COUNTER}")]
SeedOption = Annotated[int, typer.Option("--seed", help="Another seed, another sample or order.")]
ShardOption = Annotated[int, typer.Option("--rows-per-shard", min=1, help="Documents in each file.")]

RevisionOption = Annotated[
    str | None,
    typer.Option("--revision", help="Commit, branch or tag on the hub. Default: today's.", rich_help_panel=SOURCES),
]
FilesOption = Annotated[
    str | None, typer.Option("--files", help="Only files that match, such as 'train/*'.", rich_help_panel=SOURCES)
]
LicenceOption = Annotated[
    str | None,
    typer.Option(
        "--licence", help="Of a local source, for the manifest; the hub states its own.", rich_help_panel=SOURCES
    ),
]
BadRowsOption = Annotated[
    int, typer.Option("--max-bad-rows", min=0, help="Stop after more unreadable rows.", rich_help_panel=RUNNING)
]
ProcessesOption = Annotated[
    int | None,
    typer.Option("--processes", "-p", min=1, help="Default: one per core.", rich_help_panel=RUNNING),
]


def show_result(out: Path, manifest: Manifest, spent: str = "", **more: Any) -> None:
    """What every builder ends with: its manifest as tables, or as JSON.

    Args:
        spent: a last line for people.
        more: further keys of the JSON.
    """
    from mplus_cli.data.building.report import summary

    text = "\n\n".join(filter(None, [summary(out, manifest), spent]))
    output.result(text, manifest.to_json() | {"path": str(out)} | more)
    output.hint(f"mplus build-data show {out}")
