"""Options of `mplus profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mplus_cli.commands import options

WHAT, HOW, SHOWN = "What is measured", "How", "What is shown"

LengthsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--len", "-l", metavar="N[,N...]", help="Tokens of text, k = 1024. Default: 2k,8k,32k.", rich_help_panel=WHAT
    ),
]
SystemsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--system",
        "-s",
        metavar="SYSTEM",
        help="mplus, memoryllm, window, full, snapkv, or NAME:key=value; repeat for more. Default: all that run here.",
        rich_help_panel=WHAT,
    ),
]
ModelOption = Annotated[str | None, options.model_option(panel=WHAT)]
RandomOption = Annotated[
    str | None,
    typer.Option(
        "--random-weights",
        metavar="NAME|DIR",
        help="A configuration with random weights: llama-3.1-8b, llama-3.2-3b, llama-3.2-1b, 100m, 56m, 1m, or a "
        "folder with a config.json.",
        rich_help_panel=WHAT,
    ),
]
OffloadOption = Annotated[bool, options.offload_option(WHAT)]
PromptOption = Annotated[
    int | None,
    typer.Option(
        "--prompt",
        min=1,
        help="Last tokens of the text, which are read and not injected. Default: 512, at most a quarter.",
        rich_help_panel=WHAT,
    ),
]
NewTokensOption = Annotated[
    int | None,
    typer.Option("--new-tokens", min=0, help="Generated after the first. Default: 16.", rich_help_panel=WHAT),
]
StoredOption = Annotated[
    int | None,
    typer.Option("--stored", min=0, help="Long-term tokens in memory before the text.", rich_help_panel=WHAT),
]
QuantizeOption = Annotated[str | None, options.quantize_option(HOW)]
AdaptersOption = Annotated[
    str | None,
    typer.Option(
        "--adapters",
        metavar="merged|separate",
        help="Adapters merged into copies of the weights or not. Default: merged where that is exact and small.",
        rich_help_panel=HOW,
    ),
]
DeviceOption = Annotated[str | None, options.device_option(HOW)]
DtypeOption = Annotated[str | None, options.dtype_option(HOW)]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads on a CPU. Default: what suits.", rich_help_panel=HOW)
]
RepeatsOption = Annotated[
    int | None,
    typer.Option("--repeats", min=1, help="Timed questions. Default: 5, fewer where slow.", rich_help_panel=HOW),
]
WritesOption = Annotated[
    int | None,
    typer.Option("--writes", min=0, help="Timed writes, 0 for all. Default: the last 32.", rich_help_panel=HOW),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder of the results. Default: a new profile-results.", rich_help_panel=HOW),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on in --out, or in the latest folder; --len and --system add to it.", rich_help_panel=HOW
    ),
]
YesOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Also try what should not fit model or machine.", rich_help_panel=HOW)
]
EstimateOption = Annotated[
    bool, typer.Option("--estimate", help="From formulas; nothing is run or written.", rich_help_panel=SHOWN)
]
GpuOption = Annotated[
    str | None,
    typer.Option("--gpu", help="With --estimate: plan for H100, A100, RTX 4090, ..., bfloat16.", rich_help_panel=SHOWN),
]
BreakdownOption = Annotated[
    bool, typer.Option("--breakdown", help="Time by phase too, and traces of it.", rich_help_panel=SHOWN)
]
PaperOption = Annotated[
    bool,
    typer.Option(
        "--compare-paper", help="The published numbers beside these; prompts of 2,048.", rich_help_panel=SHOWN
    ),
]
