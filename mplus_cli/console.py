"""What the user sees: results on stdout, everything else on stderr.

Modes: human (default), `--json` (one JSON document on stdout), `--quiet` (results and errors only). Without a terminal
the lines are plain: no colours, no cursor movement, no wrapping. Rich is imported when something is first drawn.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mplus_cli.errors import MPlusError

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.live import Live

PLAIN_PROGRESS_SECONDS = 10.0
PROGRESS_AFTER_SECONDS = 2.0


@dataclass
class Output:
    """The output mode of this process, set by the global options."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def result(self, text: str, data: Any) -> None:
        """Print a command's result: `text` for people, `data` as one JSON document with `--json`."""
        if self.json:
            sys.stdout.write(json.dumps(data, ensure_ascii=False, indent=2) + "\n")
        elif text:
            sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()

    def stream(self, text: str) -> None:
        """Print a piece of an answer while it is being made; nothing with `--json` (the document comes at the end)."""
        if not self.json:
            sys.stdout.write(text)
            sys.stdout.flush()

    def info(self, text: str) -> None:
        """A line about what is going on, on stderr."""
        if not self.quiet and not self.json:
            self._line(text, None)

    def aside(self, text: str) -> None:
        """Something the user asked for that is not the result itself, on stderr."""
        if not self.json:
            self._line(text, None)

    def hint(self, text: str) -> None:
        """What the user may want to type next, on stderr."""
        if not self.quiet and not self.json:
            self._line(text, "dim")

    def warn(self, text: str) -> None:
        """Something that will surprise the user later, on stderr in every mode."""
        self._line(f"warning: {text}", "yellow")

    def debug(self, text: str) -> None:
        """Detail for `--verbose`."""
        if self.verbose:
            self._line(text, "dim")

    def error(self, error: MPlusError) -> None:
        """One error and what to do about it, on stderr; a JSON line there with `--json`."""
        if self.json:
            record = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
            sys.stderr.write(json.dumps(record, ensure_ascii=False) + "\n")
            return
        self._line(f"error: {error.message}", "bold red")
        if error.hint:
            self._line(f"hint: {error.hint}", "dim")

    def _line(self, text: str, style: str | None) -> None:
        if style is not None and is_terminal(sys.stderr):
            rich_stderr().print(text, style=style, markup=False, highlight=False, soft_wrap=True)
        else:
            sys.stderr.write(text + "\n")


output = Output()


def is_terminal(stream: TextIO) -> bool:
    """True where colours and a moving progress bar make sense."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def rich_stderr() -> RichConsole:
    """A Rich console on the current stderr."""
    from rich.console import Console

    return Console(stderr=True)


class Progress:
    """Progress with rate and time left, on stderr, for work that takes longer than two seconds.

    A moving bar on a terminal, a plain line every ten seconds elsewhere, nothing with `--quiet`.

    Args:
        label: what is being done, a few words.
        total: amount of work in any unit; `update` is given how much of it is done.
        unit: a plural such as "rows", or "bytes", to show the rate in; without it `detail` says what matters.
    """

    def __init__(self, label: str, total: float, unit: str = "") -> None:
        self.label, self.total, self.unit = label, max(total, 1e-9), unit
        self.start = time.monotonic()
        self._begun: tuple[float, float] | None = None
        self._next_line = self.start + PROGRESS_AFTER_SECONDS
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, done: float, detail: str = "") -> None:
        """Say that `done` of `total` is done; `detail` is shown after the bar (rates, fills)."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = done, now  # what was done before, and how long it took, says nothing about the speed
        if output.quiet or now - self.start < PROGRESS_AFTER_SECONDS:
            return
        detail = ", ".join(filter(None, (detail, self._rate(done, now))))
        if is_terminal(sys.stderr):
            self._draw(done, detail)
        elif not output.json and now >= self._next_line:
            self._next_line = now + PLAIN_PROGRESS_SECONDS
            said = ", ".join(filter(None, (detail, f"{self._left(done, now)} left")))
            sys.stderr.write(f"{self.label}: {done / self.total:.0%} {said}\n")

    def _speed(self, done: float, now: float) -> float:
        base, begin = self._begun or (done, now)
        return (done - base) / max(now - begin, 1e-9)

    def _rate(self, done: float, now: float) -> str:
        if not self.unit:
            return ""
        speed = self._speed(done, now)
        if self.unit == "bytes":
            return f"{size(speed)}/s"
        return f"{speed:,.{0 if speed >= 10 or not speed else 1}f} {self.unit}/s"

    def _left(self, done: float, now: float) -> str:
        speed = self._speed(done, now)
        return duration((self.total - done) / speed) if speed > 0 else "?"

    def _draw(self, done: float, detail: str) -> None:
        if self._live is None:
            from rich.console import Group
            from rich.live import Live
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress
            from rich.text import Text

            columns = (TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.percentage:>3.0f}%"))
            self._bar = RichProgress(*columns, TextColumn("{task.fields[left]} left"))
            self._task = self._bar.add_task(self.label, total=self.total, left="?")
            self._detail = Text(style="dim")
            self._live = Live(Group(self._bar, self._detail), console=rich_stderr(), transient=True)
            self._live.start()
        self._bar.update(self._task, completed=done, left=self._left(done, time.monotonic()))
        self._detail.plain = detail


def duration(seconds: float) -> str:
    """Seconds for people: `0.42 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"


def size(count: float) -> str:
    """Bytes for people: `512 B`, `3.1 MB`, `2.4 GB` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def table(headers: list[str], rows: list[list[str]]) -> str:
    """A table: the first column to the left, the others to the right. Ruled on a terminal, plain lines elsewhere."""
    if is_terminal(sys.stdout) and not output.json:
        return _ruled_table(headers, rows)
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    lines = []
    for row in [headers, *rows]:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _ruled_table(headers: list[str], rows: list[list[str]]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    ruled = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for number, header in enumerate(headers):
        ruled.add_column(header, justify="right" if number else "left", overflow="fold")
    for row in rows:
        ruled.add_row(*(Text(cell) for cell in row))
    console = Console(file=io.StringIO(), force_terminal=True)
    with console.capture() as captured:
        console.print(ruled)
    return "\n".join(line.rstrip() for line in captured.get().strip("\n").split("\n"))


class LineReader:
    """Lines typed by the user, or piped in, stripped. Remembers typed lines between sessions where readline exists.

    Args:
        prompt: shown on a terminal only.
        history: file of earlier lines.
    """

    def __init__(self, prompt: str, history: Path) -> None:
        self.prompt, self.history = prompt, history
        self.interactive = sys.stdin.isatty()

    def __enter__(self) -> LineReader:
        if self.interactive:
            with contextlib.suppress(ImportError, OSError):
                import readline

                readline.set_history_length(1000)
                readline.read_history_file(self.history)
        return self

    def __exit__(self, *exc: object) -> None:
        if self.interactive:
            with contextlib.suppress(ImportError, OSError):
                import readline

                self.history.parent.mkdir(parents=True, exist_ok=True)
                readline.write_history_file(self.history)

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                yield self._line().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                sys.stderr.write("\n(Ctrl-D or /quit leaves)\n")

    def _line(self) -> str:
        if self.interactive and sys.stdout.isatty():
            return input(self.prompt)  # readline draws the prompt and knows its width
        if self.interactive:
            sys.stderr.write(self.prompt)
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line
