"""The journal: means over steps and processes, whole lines only, and nothing twice after a resume."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from mplus_cli.training.journal import Journal, Window, merge, read_journal
from mplus_cli.training.processes import Processes
from mplus_cli.training.status import status_line

ALONE = Processes(0, 1, torch.device("cpu"))


def output(loss: float, task: str = "two_chunk", tokens: int = 10, **parts: float) -> SimpleNamespace:
    found = {name: torch.tensor(value) for name, value in parts.items()}
    return SimpleNamespace(loss=torch.tensor(loss), task=task, parts=found, tokens=tokens, ids=["a"])


def test_means_are_over_batches_of_all_processes():
    one, other = Window(), Window()
    one.add(output(1.0, ce=1.0))
    one.add(output(4.0, "multi_chunk", recall=0.5))
    other.add(output(2.0, ce=3.0))
    found = merge([one, other])
    assert found["loss"] == pytest.approx(7 / 3)
    assert found["tasks"]["two_chunk"] == {"loss": 1.5, "share": pytest.approx(2 / 3)}
    assert found["parts"] == {"ce": 2.0, "recall": 0.5}
    assert found["tokens"] == 30


def test_a_measure_of_nothing_does_not_spoil_the_mean():
    window = Window()
    window.add(output(1.0, recall=float("nan")))
    window.add(output(1.0, recall=0.25))
    assert merge([window])["parts"]["recall"] == 0.25


def test_a_resumed_journal_takes_back_what_will_be_done_again(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    assert [line["step"] for line in read_journal(path)] == [1, 2, 3]
    journal = Journal(path, None, 2, ALONE)
    journal.window.add(output(1.0))
    journal.write(3, {"new": True})
    journal.close()
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1]["new"] and lines[-1]["loss"] == 1.0


def test_losses_are_kept_exactly(tmp_path):
    value = float(torch.tensor(2.718281828))
    journal = Journal(tmp_path / "log.jsonl", None, 0, ALONE)
    journal.window.add(output(value))
    journal.write(1, {})
    assert read_journal(tmp_path / "log.jsonl")[0]["loss"] == value


def test_the_status_line():
    line = {
        "step": 1200,
        "loss": 2.5,
        "tasks": {"multi_chunk": {"loss": 2.5, "share": 1.0}},
        "parts": {"recall": 0.31, "recall_over_chance": 10.3},
        "rates": {"write_adapter": 3.68e-5, "read_adapter": 3.68e-5, "retriever": 1e-4},
        "tokens_per_second": 12345.6,
        "mfu": 0.314,
        "peak_bytes": 70_000_000_000,
    }
    assert status_line(line, 100_000) == (
        "step 1,200/100,000, loss 2.5000 (multi_chunk 2.500), recall 31% = 10.3 x chance, lr 3.7e-05/0.0001, "
        "12,346 tokens/s, MFU 31%, 70.0 GB"
    )
