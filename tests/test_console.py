"""Results on stdout, everything else on stderr, in every mode."""

import io
import json
import re

import pytest

from mplus_cli import console
from mplus_cli.console import LineReader, Output, Progress, duration, size, table
from mplus_cli.errors import UsageError


def speak(output: Output) -> None:
    output.info("info")
    output.hint("hint")
    output.warn("trouble")
    output.stream("ans")
    output.result("text", {"a": 1})


@pytest.mark.parametrize(
    ("mode", "out", "err"),
    [
        ({}, "anstext\n", "info\nhint\nwarning: trouble\n"),
        ({"quiet": True}, "anstext\n", "warning: trouble\n"),
        ({"json": True}, '{\n  "a": 1\n}\n', "warning: trouble\n"),
    ],
)
def test_modes(capsys, mode, out, err):
    speak(Output(**mode))
    assert capsys.readouterr() == (out, err)


def test_errors_carry_their_hint(capsys):
    Output(quiet=True).error(UsageError("bad", hint="do this"))
    assert capsys.readouterr() == ("", "error: bad\nhint: do this\n")


def test_errors_are_json_lines_in_json_mode(capsys):
    Output(json=True).error(UsageError("bad\nworse", hint=None))
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err) == {"error": "bad\nworse", "hint": None, "exit_code": 2}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_progress_starts_after_two_seconds_and_counts_from_where_it_began(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(console.time, "monotonic", clock)
    with Progress("injecting", 1000) as progress:
        progress.update(500)  # resumed at half
        assert capsys.readouterr().err == ""
        clock.now += 10
        progress.update(600, "7 tokens/s")
        assert capsys.readouterr().err == "injecting: 60% 7 tokens/s, 40 s left\n"
        clock.now += 1
        progress.update(610)
        assert capsys.readouterr().err == ""


def test_time_before_the_first_report_says_nothing_about_the_speed(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(console.time, "monotonic", clock)
    with Progress("training", 100) as progress:
        clock.now += 60
        progress.update(10)
        assert capsys.readouterr().err == "training: 10% ? left\n"
        clock.now += 20
        progress.update(20)
    assert capsys.readouterr().err == "training: 20% 2 min 40 s left\n"


def test_quiet_has_no_progress(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(console.time, "monotonic", clock)
    monkeypatch.setattr(console.output, "quiet", True)
    with Progress("injecting", 10) as progress:
        progress.update(0)
        clock.now += 60
        progress.update(5)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4167, "0.42 s"), (12.3, "12 s"), (185, "3 min 05 s"), (7_800, "2 h 10 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (3_140_000, "3.1 MB"), (5e12, "5000.0 GB")])
def test_size(count, text):
    assert size(count) == text


def test_table():
    assert table(["name", "n"], [["a", "1"], ["long", "22"]]) == "name   n\na      1\nlong  22"


def test_a_table_on_a_terminal_is_ruled_and_takes_nothing_for_markup(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    made = table(["name", "n"], [["[a]", "1"], ["long", "22"]])
    lines = [re.sub(r"\x1b\[\d*m", "", line) for line in made.split("\n")]
    assert [line.split() for line in lines if "─" not in line] == [["name", "n"], ["[a]", "1"], ["long", "22"]]
    assert sum("─" in line for line in lines) == 1
    monkeypatch.setattr(console.output, "json", True)
    assert "─" not in table(["name"], [["a"]])


def test_progress_with_a_unit_tells_the_rate(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(console.time, "monotonic", clock)
    for unit, says in (("rows", "10 rows/s"), ("bytes", "10 B/s")):
        with Progress("reading", 1000, unit) as progress:
            progress.update(0)
            clock.now += 20
            progress.update(200, "here")
        assert capsys.readouterr().err == f"reading: 20% here, {says}, 1 min 20 s left\n"


def test_piped_lines_have_no_prompt(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n  two \n"))
    with LineReader("> ", tmp_path / "history") as reader:
        assert list(reader) == ["one", "two"]
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "history").exists()
