"""Options of `mplus eval`, and the group that takes tasks where others take a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from mplus_cli.commands import options
from mplus_cli.errors import UsageError

_FLAGS = {"--json", "--quiet", "-q", "--verbose", "-v"}
ASKED, HOW = "What is asked and answered", "Running (changes no answer)"


class TaskGroup(TyperGroup):
    """`mplus eval TASK...` is `mplus eval run TASK...`: anything but a command or help is given to `run`."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        """Put `run` before arguments that name no command."""
        words = [word for word in args if word not in _FLAGS]
        if words and words[0] not in self.commands and words[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


def tokens(text: str | None) -> int | None:
    """A count of tokens such as `4096` or `16k`, k = 1024.

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return None
    number, factor = (text[:-1], 1024) if text[-1:] in ("k", "K") else (text, 1)
    if not number.isdecimal() or int(number) == 0:
        raise UsageError(f"--length {text}: not a number of tokens", hint="for example --length 4096 or --length 16k")
    return int(number) * factor


TasksArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="TASK...", help="NAME or NAME:key=value,key=value. `mplus eval list` lists them."),
]
SystemsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--system",
        "-s",
        metavar="SYSTEM",
        help="NAME or NAME:key=value,key=value; repeat for more. Default: mplus.",
        rich_help_panel=ASKED,
    ),
]
ModelOption = Annotated[str | None, options.model_option(panel=ASKED)]
BaseModelOption = Annotated[
    str | None,
    typer.Option(
        "--base-model",
        help="Plain model for window, full, snapkv, bm25 and closed-book. Default: the backbone of --model.",
        rich_help_panel=ASKED,
    ),
]
LengthOption = Annotated[
    str | None,
    typer.Option(
        "--length", "-l", help="Tokens of text per item, k = 1024. Default: the task's.", rich_help_panel=ASKED
    ),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", "-n", min=1, help="Most items. Default: the task's.", rich_help_panel=ASKED)
]
SeedOption = Annotated[
    int, typer.Option("--seed", help="Of the items chosen and of what memory drops.", rich_help_panel=ASKED)
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Folder or file with the task's data. Default: where it looks.", rich_help_panel=ASKED),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of every task that has it.", rich_help_panel=ASKED),
]
OffloadOption = Annotated[bool, options.offload_option(ASKED)]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.", rich_help_panel=HOW)]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on in --out; without a TASK, with what was asked for there.", rich_help_panel=HOW
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option(
        "--batch", "-b", min=1, help="Items at a time. Default: 16 for small models, else 1.", rich_help_panel=HOW
    ),
]
DeviceOption = Annotated[str | None, options.device_option(HOW)]
DtypeOption = Annotated[str | None, options.dtype_option(ASKED)]
QuantizeOption = Annotated[str | None, options.quantize_option(ASKED)]
GpusOption = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=1,
        help="Share samples over processes, one per GPU; without a GPU, on the CPU.",
        rich_help_panel=HOW,
    ),
]
HostfileOption = Annotated[
    Path | None,
    typer.Option(
        "--hostfile", help="Several machines that all see --out, `NAME slots=N` per line.", rich_help_panel=HOW
    ),
]
WholePromptsOption = Annotated[
    bool,
    typer.Option("--whole-prompts", help="Keep prompts of any length whole in predictions.jsonl.", rich_help_panel=HOW),
]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of results.")]
FoldersArgument = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of results.")]
