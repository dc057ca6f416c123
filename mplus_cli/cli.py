"""The `mplus` command: global options, the subcommands, and the one place where errors become messages and exit codes.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted. This module and the command modules import neither torch nor
transformers at the top, so that `mplus --help` is quick.
"""

from __future__ import annotations

import errno
import sys
import traceback
from typing import Annotated

import typer

from mplus_cli import __version__
from mplus_cli.commands import ask, build_data, eval, inject, memory, profile, train
from mplus_cli.commands.options import JsonFlag, QuietFlag, VerboseFlag
from mplus_cli.console import output
from mplus_cli.errors import MPlusError, is_out_of_memory

app = typer.Typer(
    name="mplus",
    help="Long-term memory inside a language model: inject a book once, ask about it later.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("inject")(inject.inject)
app.command("ask")(ask.ask)
app.add_typer(memory.app, name="memory")
app.command("train")(train.train)
app.add_typer(eval.app, name="eval")
app.command("profile")(profile.profile)
app.add_typer(build_data.app, name="build-data")


def _version(value: bool) -> None:
    if value:
        output.result(f"mplus {__version__}", {"version": __version__})
        raise typer.Exit()


@app.callback()
def global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Long-term memory inside a language model: inject a book once, ask about it later."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit the process with its code."""
    try:
        app(arguments, prog_name="mplus")
    except MPlusError as error:
        _fail(error, error)
    except KeyboardInterrupt:
        _fail(_INTERRUPTED, None)
    except SystemExit as end:
        if end.code == 130:  # Typer ends a command so, without a word
            _fail(_INTERRUPTED, None)
        raise
    except Exception as exception:  # the boundary: whatever was not foreseen ends here as one line
        _fail(translate(exception), exception)


def _fail(error: MPlusError, cause: BaseException | None) -> None:
    if cause is not None and output.verbose:
        traceback.print_exception(cause, file=sys.stderr)
    output.error(error)
    sys.exit(error.exit_code)


def translate(exception: Exception) -> MPlusError:
    """The message for an exception that no command foresaw: memory, disk, files, and last of all a bug."""
    text = str(exception).strip().splitlines()
    first_line = text[0] if text else ""
    if is_out_of_memory(exception):
        return MPlusError(
            f"out of memory: {first_line or type(exception).__name__}",
            hint="a smaller --chunk-size, --dtype bfloat16 or --device cpu needs less",
        )
    if isinstance(exception, OSError) and exception.errno in _DISK_FULL:
        where = f" while writing {exception.filename}" if exception.filename else ""
        return MPlusError(f"the disk is full{where}", hint="free some space and run the same command again")
    if isinstance(exception, OSError) and exception.filename is not None and exception.strerror:
        return MPlusError(f"{exception.filename}: {exception.strerror}", hint=_TRACEBACK_HINT)
    return MPlusError(f"unexpected {type(exception).__name__}: {first_line}", hint=_TRACEBACK_HINT)


_INTERRUPTED = MPlusError("interrupted", exit_code=130)
_DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no quota error
_TRACEBACK_HINT = "run again with --verbose for the traceback"
