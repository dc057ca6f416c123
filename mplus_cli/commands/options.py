"""Options that several commands share, and the output flags, which may stand before or after the command's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from mplus_cli.console import output


def _raises(flag: str) -> Callable[[bool], bool]:
    """A callback that turns an output flag on, never off: `mplus --json ask` and `mplus ask --json` are the same."""

    def callback(value: bool) -> bool:
        if value:
            setattr(output, flag, True)
        return value

    return callback


OUTPUT_PANEL = "Output"
JsonFlag = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the result as one JSON document.", callback=_raises("json"), rich_help_panel=OUTPUT_PANEL
    ),
]
QuietFlag = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Results and errors only.", callback=_raises("quiet"), rich_help_panel=OUTPUT_PANEL
    ),
]
VerboseFlag = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="More detail; tracebacks.", callback=_raises("verbose"), rich_help_panel=OUTPUT_PANEL
    ),
]

StateOption = Annotated[
    Path | None,
    typer.Option("--state", "-s", help="Memory file. Default: $MPLUS_STATE, else the one last injected into."),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Folder or hub id of a model. Default: the one the state names, else the bundled one."
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:N or mps. Default: the best there is."),
]
DtypeOption = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, bfloat16 or float16. Default: what suits the device."),
]
QuantizeOption = Annotated[
    str | None,
    typer.Option("--quantize", metavar="BITS", help="Weights of the backbone in less space: int8 or int4."),
]
LtmDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--ltm-dtype",
        metavar="DTYPE",
        help="How a new memory file keeps memory values: model (as computed), bfloat16, float8 or int8.",
    ),
]
