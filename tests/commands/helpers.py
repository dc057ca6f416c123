"""Running the command line in tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

from mplus_cli import cli
from mplus_cli.console import output


class CommandLine:
    """Runs `mplus` in this process; each run starts with default output modes."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        output.json = output.quiet = output.verbose = False
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        return int(ended.value.code or 0), out, err


def process(arguments: Sequence[object], **options) -> subprocess.Popen[str]:
    """`mplus` as a process of its own."""
    command = [sys.executable, "-m", "mplus_cli", *(str(argument) for argument in arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
