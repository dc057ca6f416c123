"""The interactive session of `mplus ask`: questions, and commands that begin with a slash."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from mplus_cli.commands.ask import render
from mplus_cli.commands.inject import progress_detail
from mplus_cli.commands.memory import render_summary
from mplus_cli.console import LineReader, Progress, output
from mplus_cli.errors import MPlusError, UsageError
from mplus_cli.inference.locate import user_file

if TYPE_CHECKING:
    from mplus_cli.inference.session import Session

HELP = """/inject FILE...   put texts into memory, for this session
/save             write what was injected to the memory file
/memory           what memory holds
/help             this list
/quit             leave (also Ctrl-D)
Anything else is a question. Only chat models see earlier questions and answers."""


def converse(session: Session, explain: bool = False, show_prompt: bool = False) -> None:
    """Read lines until `/quit` or the end of input. An error in one line ends that line, not the session."""
    output.hint(f"asking {session.path} with the model {session.loaded.name}; /help lists the commands")
    warned = False
    with LineReader("> ", user_file("history")) as reader:
        for line in reader:
            try:
                if line in ("/quit", "/exit"):
                    if not session.unsaved or warned:
                        return
                    warned = True
                    output.warn(f"{session.unsaved} injected chunks are not saved: /save, or /quit again to drop them")
                elif line.startswith("/"):
                    _command(session, line)
                elif line:
                    _question(session, line, explain, show_prompt)
            except MPlusError as error:
                output.error(error)
            except KeyboardInterrupt:
                output.info("\ninterrupted")
    if session.unsaved and not warned:
        output.warn(f"{session.unsaved} injected chunks were not saved")


def _question(session: Session, line: str, explain: bool, show_prompt: bool) -> None:
    if show_prompt:
        output.aside(session.prompt(line))
    answer = session.ask(line, output.stream)
    render(line, answer, session.explain() if explain else None)


def _command(session: Session, line: str) -> None:
    try:
        name, *arguments = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{line}: {error}") from error
    if name == "/inject":
        _inject(session, arguments)
    elif name == "/save":
        output.info(f"saved {session.save():,} chunks to {session.path}")
    elif name == "/memory":
        output.aside(render_summary(session.state.summary(), session.state.sources()))
        if session.unsaved:
            output.aside(f"and {session.unsaved:,} chunks of this session that are not saved")
    elif name == "/help":
        output.aside(HELP)
    else:
        raise UsageError(f"unknown command {name}", hint="/help lists the commands")


def _inject(session: Session, files: list[str]) -> None:
    from mplus_cli.data.sources import read_sources

    if not files:
        raise UsageError("/inject needs a file", hint="/inject BOOK.txt")
    sources = read_sources(files)
    with Progress("injecting", sum(len(source.text) for source in sources)) as progress:
        report = session.inject(sources, lambda step: progress.update(step.chars_done, progress_detail(step)))
    output.info(f"injected {report.tokens:,} tokens in {report.chunks:,} chunks; /save keeps them")
