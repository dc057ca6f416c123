"""The command line as a process sees it: exit codes, what goes to stdout, messages on stderr, quick help."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from mplus_cli import __version__, cli
from mplus_cli.errors import MPlusError, UsageError

HEAVY = ("torch", "transformers", "peft", "numpy", "safetensors")


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def mplus(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """Run `mplus` as a process of its own."""
    command = [sys.executable, "-m", "mplus_cli", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_help_is_quick_and_imports_nothing_heavy():
    script = (
        "import resource, sys\nfrom mplus_cli.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], resource.getrusage(resource.RUSAGE_SELF).ru_utime)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    heavy, seconds = done.stdout.splitlines()[-1].rsplit(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 0.5
    for command in ("inject", "ask", "memory"):
        assert command in done.stdout


@pytest.mark.parametrize("arguments", [["inject", "--help"], ["ask", "-h"], ["memory", "show", "--help"]])
def test_every_command_has_help(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    assert "Usage" in out


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"mplus {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments", [[], ["inject"], ["inject", "x", "--nonsense"], ["nonsense"], ["ask", "--seed", "x"]]
)
def test_wrong_usage_exits_2_and_says_so_on_stderr(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert "Usage" in (err or out)
    assert out == "" or not arguments  # only plain `mplus` prints its help there


def test_a_missing_file_is_named_with_exit_2(capsys, tmp_path):
    code, out, err = run(capsys, "inject", tmp_path / "gone.txt", "--state", tmp_path / "m.pt")
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path}/gone.txt: no such file or directory\n"
    assert not (tmp_path / "m.pt").exists()


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty file"), (b"\x00\x01\x02\xff" * 99, "binary file")])
def test_empty_and_binary_files_are_named_before_any_work(capsys, tmp_path, content, reason):
    (tmp_path / "bad.txt").write_bytes(content)
    (tmp_path / "good.txt").write_text("a good text")
    code, out, err = run(capsys, "inject", tmp_path / "good.txt", tmp_path / "bad.txt", "--state", tmp_path / "m.pt")
    assert (code, out) == (2, "")
    assert "bad.txt" in err and reason in err
    assert not (tmp_path / "m.pt").exists()


def test_inject_needs_a_state(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    code, _, err = run(capsys, "inject", tmp_path / "a.txt")
    assert code == 2
    assert "hint: mplus inject SOURCE... --state memory.pt" in err


def test_ask_without_any_memory_says_how_to_make_one(capsys):
    code, out, err = run(capsys, "ask", "Who?")
    assert (code, out) == (2, "")
    assert "hint: mplus inject" in err


def test_errors_are_json_on_stderr_with_json_wherever_the_flag_stands(capsys, monkeypatch):
    for arguments in (["--json", "ask", "Who?"], ["ask", "Who?", "--json"]):
        monkeypatch.setattr(cli.output, "json", False)
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert json.loads(err)["exit_code"] == 2


def _raising(monkeypatch, exception):
    def fail(*args, **kwargs):
        raise exception

    monkeypatch.setattr(cli, "app", fail)


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("exception", "code", "message"),
    [
        (UsageError("bad", hint="better"), 2, "error: bad\nhint: better\n"),
        (MPlusError("failed"), 1, "error: failed\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (
            RuntimeError("odd\nvery odd"),
            1,
            "error: unexpected RuntimeError: odd\nhint: run again with --verbose for the traceback\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "m.pt"),
            1,
            "error: the disk is full while writing m.pt\nhint: free some space and run the same command again\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "m.pt"),
            1,
            "error: m.pt: Permission denied\nhint: run again with --verbose for the traceback\n",
        ),
    ],
)
def test_the_boundary(capsys, monkeypatch, exception, code, message):
    _raising(monkeypatch, exception)
    assert run(capsys, "x") == (code, "", message)


@pytest.mark.parametrize(
    "exception",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: x"),
    ],
)
def test_out_of_memory_names_what_to_lower(capsys, monkeypatch, exception):
    _raising(monkeypatch, exception)
    code, _, err = run(capsys, "x")
    assert code == 1
    assert err.startswith("error: out of memory") and "--dtype bfloat16" in err


def test_traceback_only_when_asked_for(capsys, monkeypatch):
    _raising(monkeypatch, RuntimeError("odd"))
    monkeypatch.setattr(cli.output, "verbose", True)
    assert "Traceback" in run(capsys, "x")[2]
    monkeypatch.setattr(cli.output, "verbose", False)
    assert "Traceback" not in run(capsys, "x")[2]


def test_a_closed_pipe_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "mplus_cli", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert done.stderr == ""


def test_completion_script(capsys, monkeypatch):
    monkeypatch.setenv("_MPLUS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "mplus in")
    monkeypatch.setenv("COMP_CWORD", "1")
    code, out, _ = run(capsys)
    assert (code, out.split()) == (0, ["inject"])


def test_an_answer_comes_without_other_libraries_notes(tmp_path):
    """peft imports bitsandbytes wherever it is installed, which would name a missing kernel at every start."""
    book, state = tmp_path / "book.txt", tmp_path / "book.pt"
    book.write_text("Anna Verlin lives in Tarwick. " * 20)
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path)}
    for arguments in (["inject", str(book), "--state", str(state), "--quiet"], ["ask", "Who?", "--state", str(state)]):
        command = [sys.executable, "-m", "mplus_cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0 and done.stderr == "", done.stderr
