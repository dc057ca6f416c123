"""Options that several commands share, and the output flags, which may stand before or after the command's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

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


def model_option(help: str = "Folder or hub id. Default: the bundled model.", panel: str | None = None) -> Any:
    """`--model`, in the panel where a command's help shows it."""
    return typer.Option("--model", "-m", help=help, rich_help_panel=panel)


def device_option(panel: str | None = None) -> Any:
    """`--device`."""
    return typer.Option("--device", help="cpu, cuda, cuda:N or mps. Default: the best there is.", rich_help_panel=panel)


def device_map_option(panel: str | None = None) -> Any:
    """`--device-map`."""
    text = "Layers over several GPUs: auto, or for example cuda:0,cuda:1 or cuda:0=20,cuda:1=12 (layers)."
    return typer.Option("--device-map", metavar="MAP", help=text, rich_help_panel=panel)


def dtype_option(panel: str | None = None) -> Any:
    """`--dtype`."""
    text = "float32, bfloat16 or float16. Default: what suits the device."
    return typer.Option("--dtype", help=text, rich_help_panel=panel)


def quantize_option(panel: str | None = None) -> Any:
    """`--quantize`."""
    text = "Weights of the backbone in less space: int8 or int4."
    return typer.Option("--quantize", metavar="BITS", help=text, rich_help_panel=panel)


def offload_option(panel: str | None = None) -> Any:
    """`--offload` of commands that take several systems."""
    text = "Keep short-term memory and retrieval keys on the host too (mplus, memoryllm)."
    return typer.Option("--offload", help=text, rich_help_panel=panel)


StateOption = Annotated[
    Path | None,
    typer.Option("--state", "-s", help="Memory file. Default: $MPLUS_STATE, else the one last injected into."),
]
ModelOption = Annotated[
    str | None, model_option("Folder or hub id of a model. Default: the one the state names, else the bundled one.")
]
DeviceOption = Annotated[str | None, device_option()]
DeviceMapOption = Annotated[str | None, device_map_option()]
DtypeOption = Annotated[str | None, dtype_option()]
QuantizeOption = Annotated[str | None, quantize_option()]
LtmDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--ltm-dtype",
        metavar="DTYPE",
        help="How a new memory file keeps memory values: model (as computed), bfloat16, float8 or int8.",
    ),
]
