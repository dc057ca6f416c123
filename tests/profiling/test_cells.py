"""A cell in its own process: its own peak memory, and every way in which it can end."""

from __future__ import annotations

import multiprocessing
import signal

import pytest

from mplus_cli.profiling import cells
from mplus_cli.profiling.cells import FAILED, OK, OOM, REFUSED, run_cell
from mplus_cli.profiling.loading import ModelChoice
from tests.profiling.helpers import cell, config_folder

QUICK = {"repeats": 1, "writes": 1}


@pytest.fixture
def choice(tmp_path):
    return ModelChoice(None, str(config_folder(tmp_path)), "cpu", "float32", None, 1)


def silent(doing: str) -> None:
    pass


def test_peaks_are_each_cells_own(choice):
    """A large cell before a small one does not show in the small one's peak."""
    large = run_cell(cell("mplus:long_term_capacity=60000", 300, stored=60_000), choice, QUICK, silent)
    small = run_cell(cell("memoryllm", 300), choice, QUICK, silent)
    assert large["status"] == small["status"] == OK
    assert large["peak_bytes"] - small["peak_bytes"] > 0.9 * 3 * 60_000 * 64 * 4
    assert sum(small["peak_parts"].values()) == small["peak_bytes"]


def test_out_of_memory_is_a_result(choice):
    found = run_cell(cell("memoryllm:short_term_size=40000000000"), choice, QUICK, silent)
    assert found["status"] == OOM
    assert "memory" in found["why"]


def test_killed_for_memory(choice):
    """The system's out-of-memory killer leaves no word; the process is just gone."""
    heard = []

    def kill(doing: str) -> None:
        heard.append(doing)
        for process in multiprocessing.active_children():
            process.kill()

    found = run_cell(cell(), choice, QUICK, kill)
    assert found["status"] == OOM
    assert "killed" in found["why"]
    assert heard


def test_ctrl_c_leaves_no_process(choice):
    def interrupt(doing: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(cell(), choice, QUICK, interrupt)
    assert multiprocessing.active_children() == []


def test_bad_input_that_only_the_model_shows(tmp_path):
    folder = config_folder(tmp_path, lora=None)
    choice = ModelChoice(None, str(folder), "cpu", "float32", "merged", 1)
    found = run_cell(cell(), choice, QUICK, silent)
    assert (found["status"], found["why"]) == (REFUSED, "--adapters merged: this model has no adapters")


@pytest.mark.parametrize(
    ("code", "said", "status"),
    [
        (-signal.SIGKILL, "", OOM),
        (-signal.SIGABRT, "terminate called after throwing an instance of 'std::bad_alloc'", OOM),
        (1, "OSError: [Errno 12] Cannot allocate memory", OOM),
        (-signal.SIGSEGV, "", FAILED),
        (1, "Traceback\nValueError: strange", FAILED),
    ],
)
def test_what_an_end_without_a_word_means(code, said, status):
    verdict = cells._verdict(code, said)
    assert verdict["status"] == status
    assert status == OOM or str(code) in verdict["why"]
