"""`mplus inject`: summaries, refusals, and interruption of a real process."""

from __future__ import annotations

import io
import json
import signal
import sys
import time
from pathlib import Path

import pytest

from mplus_cli import MemoryState, MPlusForCausalLM
from mplus_cli.inference.locate import last_state
from tests.commands.helpers import process
from tests.fixtures import book


def test_summary(mplus, tmp_path, book_file, model_folder):
    code, out, err = mplus("inject", book_file, "--state", tmp_path / "m.pt", "--model", model_folder)
    assert code == 0
    assert "injected 1,750 tokens in 28 chunks" in out and str(book_file) in out
    assert "32 of 32 short-term, 80 of 80 long-term" in out
    assert f"model {model_folder} on cpu, float32" in err
    assert "hint: " not in err and f'mplus ask "..." --state {tmp_path}/m.pt' in err


def test_json(mplus, tmp_path, book_file, model_folder):
    code, out, err = mplus("inject", book_file, "--state", tmp_path / "m.pt", "--model", model_folder, "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["tokens"] == len(book(20).encode())
    assert document["chunks"] == -(-document["tokens"] // 64)
    assert document["injected"] == [str(book_file)]
    assert (document["short_term"], document["long_term"]) == (32, 80)
    assert document["file_size"] == (tmp_path / "m.pt").stat().st_size


def test_the_state_is_remembered(state):
    assert last_state() == state


def test_a_second_time_there_is_nothing_to_do(mplus, state, book_file):
    size = state.stat().st_size
    code, out, err = mplus("inject", book_file, "--state", state)
    assert code == 0
    assert "nothing to inject" in out
    assert "--again" in err
    assert state.stat().st_size == size


def test_continuing_names_no_model(mplus, state, tmp_path):
    (tmp_path / "more.txt").write_text("One more page about the miller.\n" * 5)
    code, out, _ = mplus("inject", tmp_path / "more.txt", "--state", state)
    assert code == 0 and "more.txt" in out


def test_fresh_starts_over_with_the_bundled_or_named_model(mplus, state, tmp_path, model_folder):
    (tmp_path / "more.txt").write_text("One more page about the miller.\n" * 5)
    arguments = ["inject", tmp_path / "more.txt", "--state", state, "--model", model_folder, "--fresh", "--json"]
    code, out, _ = mplus(*arguments)
    assert code == 0
    assert json.loads(out)["long_term"] == 0


def test_stdin(mplus, tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"A page from a pipe about the miller of Vorn.")))
    code, out, _ = mplus("inject", "-", "--state", tmp_path / "m.pt", "--model", model_folder)
    assert code == 0 and "from stdin" in out


def test_another_model_is_refused(mplus, state, tmp_path, other_model_folder):
    before = state.read_bytes()
    (tmp_path / "more.txt").write_text("One more page.\n" * 9)
    code, out, err = mplus("inject", tmp_path / "more.txt", "--state", state, "--model", other_model_folder)
    assert (code, out) == (2, "")
    assert "model" in err
    assert state.read_bytes() == before


def test_same_seed_same_memory_other_seed_other_memory(mplus, tmp_path, book_file, model_folder):
    tokens = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = tmp_path / f"{name}.pt"
        assert mplus("inject", book_file, "--state", path, "--model", model_folder, "--seed", seed, "-q")[0] == 0
        tokens.append(_short_term(path, model_folder))
    assert tokens[0] == tokens[1] != tokens[2]


def _short_term(path, model_folder) -> bytes:
    with MemoryState.open(path) as state:
        memory = state.load_memory(MPlusForCausalLM.from_pretrained(model_folder))
        return memory.short_term.ordered(0)[0].numpy().tobytes()


def test_a_model_that_is_not_there(mplus, tmp_path, book_file):
    code, out, err = mplus("inject", book_file, "--state", tmp_path / "m.pt", "--model", "nobody/nothing")
    assert (code, out) == (2, "")
    assert "nobody/nothing" in err and "folder" in err
    assert not (tmp_path / "m.pt").exists()


def test_a_folder_without_a_model(mplus, tmp_path, book_file):
    code, _, err = mplus("inject", book_file, "--state", tmp_path / "m.pt", "--model", tmp_path)
    assert code == 2 and "config.json" in err


@pytest.mark.parametrize("name", ["--device", "--dtype"])
def test_unknown_placement(mplus, tmp_path, book_file, model_folder, name):
    code, _, err = mplus("inject", book_file, "--state", tmp_path / "m.pt", "--model", model_folder, name, "nonsense")
    assert code == 2 and f"unknown {name} 'nonsense'" in err


def test_a_state_that_is_being_written(mplus, state, tmp_path):
    (tmp_path / "more.txt").write_text("One more page.\n" * 9)
    with MemoryState.open(state, writable=True):
        code, _, err = mplus("inject", tmp_path / "more.txt", "--state", state)
    assert code == 2 and "writ" in err


@pytest.mark.parametrize("content", [b"not a memory file", b"\x80\x04\x95pickle", b""])
def test_a_corrupt_state_is_refused_and_left_alone(mplus, tmp_path, book_file, content):
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    code, out, err = mplus("inject", book_file, "--state", path)
    assert (code, out) == (2, "")
    assert "bad.pt" in err
    assert path.read_bytes() == content


def test_ctrl_c_commits_and_the_same_command_goes_on(tmp_path, model_folder):
    text = tmp_path / "long.txt"
    text.write_text(book(3000))
    path = tmp_path / "m.pt"
    arguments = ["inject", text, "--state", path, "--model", model_folder]
    chunks, size = [], 0
    for expected in ("model", "continuing an interrupted injection"):
        running = process(arguments)
        assert expected in _read_until(running, expected)
        _wait_until_larger(path, size)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
        assert (running.returncode, out) == (130, "")
        assert "are safe in" in err and "the same command continues" in err and "Traceback" not in err
        with MemoryState.open(path) as state:
            assert state.job["done"] is False
            assert state.summary()["writes"] == state.job["chunk"]  # nothing lost, nothing twice
            chunks.append(state.job["chunk"])
        size = path.stat().st_size
    assert 0 < chunks[0] < chunks[1]
    assert not Path(f"{path}.new").exists()


def _read_until(running, text: str) -> str:
    lines = ""
    while text not in lines:
        line = running.stderr.readline()
        assert line, f"ended without {text!r}: {lines}"
        lines += line
    return lines


def _wait_until_larger(path: Path, size: int) -> None:
    """Wait for a commit."""
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > size) and time.monotonic() < deadline:
        time.sleep(0.05)


def test_memory_values_in_less_space_and_continued(mplus, tmp_path, book_file, model_folder):
    path, plain = tmp_path / "m.pt", tmp_path / "plain.pt"
    arguments = ["inject", book_file, "--model", model_folder, "--state"]
    for where, more in ((plain, []), (path, ["--ltm-dtype", "int8"])):
        assert mplus(*arguments, where, *more)[0] == 0
    assert path.stat().st_size < plain.stat().st_size
    (tmp_path / "more.txt").write_text("One more page about the miller.\n" * 9)
    before = path.read_bytes()
    code, out, err = mplus("inject", tmp_path / "more.txt", "--state", path, "--ltm-dtype", "float8")
    assert (code, out) == (2, "") and path.read_bytes() == before
    assert "keeps its memory values as int8, not as float8" in err and "--fresh --ltm-dtype float8" in err
    for more in ([], ["--ltm-dtype", "int8", "--again"]):
        assert mplus("inject", tmp_path / "more.txt", "--state", path, *more)[0] == 0
    assert "values in int8" in mplus("memory", "show", path)[1]
    assert mplus("memory", "verify", path)[0] == 0
    assert mplus("ask", "Who sold flour?", "--state", path, "--max-new-tokens", 3)[0] == 0


def test_an_unknown_way_to_keep_values_is_refused(mplus, tmp_path, book_file, model_folder):
    arguments = ["inject", book_file, "--state", tmp_path / "m.pt", "--model", model_folder]
    code, out, err = mplus(*arguments, "--ltm-dtype", "int4")
    assert (code, out) == (2, "") and "'int4'" in err and "model, bfloat16, float8, int8" in err
    assert not (tmp_path / "m.pt").exists()


def test_a_quantized_model_and_its_memory(mplus, tmp_path, book_file, model_folder):
    """The state remembers how: nothing has to be said again, and another way is refused."""
    pytest.importorskip("bitsandbytes")
    path = tmp_path / "m.pt"
    code, _, _ = mplus("inject", book_file, "--state", path, "--model", model_folder, "--quantize", "int8")
    assert code == 0
    ask = ["ask", "Who sold flour?", "--state", path, "--max-new-tokens", 3]
    assert mplus(*ask)[0] == 0 and mplus(*ask, "--quantize", "int8")[0] == 0
    code, out, err = mplus(*ask, "--quantize", "int4")
    assert (code, out) == (2, "") and "was quantized to int8; this one is quantized to int4" in err
    (tmp_path / "more.txt").write_text("One more page about the miller.\n" * 9)
    assert mplus("inject", tmp_path / "more.txt", "--state", path)[0] == 0
    assert mplus("memory", "forget", path, "--source", book_file)[0] == 0


def test_quantizing_without_its_library_or_as_nobody_can(mplus, tmp_path, book_file, model_folder, monkeypatch):
    arguments = ["inject", book_file, "--state", tmp_path / "m.pt", "--model", model_folder, "--quantize"]
    assert "one of: int8, int4" in mplus(*arguments, "int3")[2]
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    code, out, err = mplus(*arguments, "int8")
    assert (code, out) == (2, "") and 'pip install "mplus[quantize]"' in err
    assert not (tmp_path / "m.pt").exists()


def test_a_pipeline_or_layers_on_several_devices_change_nothing(mplus, tmp_path, book_file, model_folder):
    digests = set()
    for number, options in enumerate((["--no-pipeline"], ["--pipeline"], ["--device-map", "cpu=1,cpu=2"])):
        path = tmp_path / f"{number}.pt"
        code, out, err = mplus("inject", book_file, "--state", path, "--model", model_folder, *options)
        assert code == 0 and "1,750 tokens in 28 chunks" in out
        with MemoryState.open(path) as state:
            digests.add(state.digest())
    assert len(digests) == 1 and "1 layers on cpu, 2 on cpu" in err
    code, out, _ = mplus("ask", "Who?", "--state", path, "--device-map", "cpu,cpu", "--max-new-tokens", "2", "--json")
    assert code == 0 and json.loads(out)["retrieved"] == [16, 16, 16]


def test_a_bad_device_map_is_one_message(mplus, tmp_path, book_file, model_folder):
    command = ("inject", book_file, "--state", tmp_path / "m.pt", "--model", model_folder, "--device-map")
    for text, message in (("cpu=2,cpu=2", "places 4 layers; the model has 3"), ("there", "unknown --device-map")):
        code, out, err = mplus(*command, text)
        assert (code, out) == (2, "") and message in err and "Traceback" not in err
    code, _, err = mplus(*command, "cpu,cpu", "--device", "cpu")
    assert code == 2 and "contradict" in err
    assert not (tmp_path / "m.pt").exists()
