"""Endurance: going on to the same figures after everything that can end a process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.errors import StateError
from mplus_cli.evaluation.items import Item
from mplus_cli.evaluation.tasks import integrity_run
from tests.evaluation.helpers import answers, evaluate
from tests.evaluation.tasks.helpers import system, task_settings
from tests.evaluation.tasks.integrity_runs import CHUNK, MODEL, TASK, measured
from tests.fixtures import tiny_model

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("short_books")


class Stop(Exception):
    pass


@pytest.mark.parametrize(("name", "stops"), [("mplus", (3, 9, 9, 20)), ("memoryllm", (7, 13, 29))], ids=str)
def test_a_run_that_was_ended_goes_on_to_the_same_figures(whole, tmp_path, monkeypatch, name, stops):
    """Ended without a word as by SIGKILL, wherever: what comes after is bit for bit what would have come."""
    monkeypatch.setattr(integrity_run, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(integrity_run, "SAVE_SHARE", 1e9)
    monkeypatch.setattr(integrity_run, "TELL_SECONDS", 0.0)
    made, found, _ = whole
    done: dict[str, dict] = {}
    for stop in (*stops, None):

        def tell(part: float, words: str, stop=stop) -> None:
            if stop is not None and round(part * 30) >= stop:
                raise Stop

        left = [q for q in made[0].questions if f"{made[0].id}/{q.id}" not in done]
        item = Item(made[0].id, (), tuple(left), made[0].metadata)
        asked = system(name, MODEL, f"chunk_size={CHUNK}")
        try:
            for answer in TASK.measure_long(asked, [item], tmp_path, tell):
                done[answer.sample_id] = answer.extra
        except Stop:
            assert stop is not None
    assert done == {key: extra for key, extra in found[name].items() if key in done} and len(done) == len(
        made[0].questions
    )


PUBLISHED = {"eviction": "recall_frequency", "fill_rule": "tile", "merge_every": 3, "initial_recall_frequency": 3.0}


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (["memory_dtype=int8"], {}),
        (["short_term_size=16", "long_term_capacity=40"], {}),
        (["retriever_score=contrastive"], {"retriever_score": "mean_sigmoid"}),
        ([], PUBLISHED),
    ],
    ids=["coded values", "other sizes", "another score", "the published rule"],
)
def test_every_kind_of_memory_goes_on_exactly(tmp_path, monkeypatch, options, sizes):
    monkeypatch.setattr(integrity_run, "TELL_SECONDS", 0.0)
    model = tiny_model(**sizes).prepare_for_inference("read", "write")
    made = list(TASK.items(task_settings(TASK, "updates=20", "start=5", "per_decade=1", "questions=3", model=model)))

    def extras(folder: Path, questions, tell) -> dict:
        asked, found = system("mplus", model, f"chunk_size={CHUNK}", *options), {}
        with contextlib.suppress(KeyboardInterrupt):
            for answer in TASK.measure_long(asked, [replace(made[0], questions=questions)], folder, tell):
                found[answer.question] = answer.extra
        return found

    def stop_late(part: float, words: str) -> None:
        if round(part * 20) == 13:
            os.kill(os.getpid(), signal.SIGINT)

    whole = extras(tmp_path / "whole", made[0].questions, lambda part, words: None)
    found = extras(tmp_path / "ended", made[0].questions, stop_late)
    assert list(found) == ["u5"]
    writes: list[int] = []
    rest = extras(tmp_path / "ended", made[0].questions[1:], lambda part, words: writes.append(round(part * 20)))
    assert found | rest == whole and writes[0] > 13
    kept = [tmp_path / name / "memory" / "stream-0.pt" for name in ("ended", "whole")]
    with MemoryState.open(kept[0]) as one, MemoryState.open(kept[1]) as other:
        assert one.digest() == other.digest() and one.created_total == 160


def test_ctrl_c_saves_and_goes_on_from_there(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(integrity_run, "TELL_SECONDS", 0.0)
    made, found, _ = whole
    writes: list[int] = []

    def tell(part: float, words: str) -> None:
        writes.append(round(part * 30))
        if len(writes) == 17:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, made[:1], tell=tell)
    with MemoryState.open(tmp_path / "memory" / "stream-0.pt") as state:
        assert state.job["updates"] == writes[-1] < 30
    writes.clear()
    left = Item(made[0].id, (), made[0].questions[-1:], made[0].metadata)
    monkeypatch.setattr(os, "kill", None)
    assert measured(tmp_path, [left], tell=lambda part, words: writes.append(round(part * 30))) == {
        "stream-0/u30": found["mplus"]["stream-0/u30"]
    }
    assert writes[0] > 17


def test_a_point_that_is_missing_from_before_is_made_again_from_the_beginning(whole):
    made, found, folder = whole
    one = Item(made[0].id, (), made[0].questions[1:2], made[0].metadata)
    again = measured(folder / "mplus", [one])
    assert again == {f"stream-0/{made[0].questions[1].id}": found["mplus"][f"stream-0/{made[0].questions[1].id}"]}


def test_a_damaged_memory_is_named_and_nothing_is_lost_silently(whole, tmp_path):
    made, _, folder = whole
    kept = tmp_path / "memory" / "stream-0.pt"
    kept.parent.mkdir()
    data = bytearray((folder / "memoryllm" / "memory" / "stream-0.pt").read_bytes())
    data[len(data) // 2] ^= 255
    kept.write_bytes(data[: len(data) - 100])
    with pytest.raises(StateError) as caught:
        measured(tmp_path, made[:1], "memoryllm")
    assert "to begin stream-0 again" in str(caught.value.hint) and str(kept) in str(caught.value.hint)


KILLED = """
import sys
from mplus_cli.evaluation.tasks import integrity_run, integrity_stream
integrity_stream.BOOK_CHUNKS = 12
integrity_run.SAVE_SECONDS = 0.2
integrity_run.SAVE_SHARE = 1.0
from mplus_cli.cli import main
main()
"""


def test_the_default_model_is_killed_and_resumed(tmp_path):
    """End to end, with the bundled model: SIGKILL in the middle, --resume, the same as an untroubled run."""
    model, task = (
        ROOT / "assets" / "default",
        "integrity:updates=160,start=40,per_decade=3,questions=4,probe=3,ask=both",
    )
    command = ["eval", task, "-s", "mplus", "-m", str(model), "--out", str(tmp_path / "out"), "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen([sys.executable, "-c", KILLED, *command], env=environment, stderr=subprocess.PIPE)
    folder = tmp_path / "out" / task.replace(":", "-") / "mplus"
    end = time.monotonic() + 120
    while not (_lines(folder) and (folder / "memory" / "stream-0.pt").is_file()):
        assert running.poll() is None and time.monotonic() < end, running.communicate()
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    with MemoryState.open(folder / "memory" / "stream-0.pt") as state:
        assert 0 < state.job["updates"] < 160
    before = _lines(folder)
    resumed = evaluate(tmp_path / "out", model, task, systems=("mplus",), batch=None, resume=True)
    untroubled = evaluate(tmp_path / "whole", model, task, systems=("mplus",), batch=None)
    one, other = answers(resumed[0]), answers(untroubled[0])
    assert one == other and len(one) == 3 > before
    last = one["stream-0/u160"]["extra"]
    assert last["newest_asked"] >= 2 and last["fixed_asked"] == 4 and last["long_term"] == 160 * 48 - 384


def _lines(folder: Path) -> int:
    path = folder / "predictions.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
