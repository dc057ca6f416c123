"""Memory files whose values are codes: half or a quarter of the size, everything else as ever."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mplus_cli.core.state.file import StateFile
from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.core.state.superblock import CODED_FORMAT, FORMAT_VERSION
from mplus_cli.errors import StateError
from tests.core.helpers import random_ids, tiny_config, tiny_model
from tests.core.state.memories import LAYERS, WIDTH, FakeModel, content, note, same

CODED = ["bfloat16", "float8", "int8"]


def filled(path: Path, model: FakeModel, writes: int = 20, sources: str = "ab", **options):
    """A state of many commits, and the memory that is in it."""
    with MemoryState.create(path, model, memory := model.new_memory(seed=4), **options) as state:
        for number in range(writes):
            model.write(memory, 8, source=sources[number % len(sources)])
            state.commit(memory)
    return memory


@pytest.mark.parametrize("values", CODED)
def test_a_resumed_injection_equals_an_uninterrupted_one_byte_for_byte(tmp_path, values):
    """The same digest; logits differ by the order of slots in a sum alone."""
    model = tiny_model()

    def inject(memory, numbers) -> None:
        for number in numbers:
            model.inject(random_ids(1, 16, seed=number), memory, notes=[note(number)])

    with MemoryState.create(tmp_path / "whole.pt", model, memory := model.new_memory(seed=7, values=values)) as whole:
        inject(memory, range(20))
        whole.commit(memory)
        expected, digest = memory, whole.digest()
    path = tmp_path / "parts.pt"
    with MemoryState.create(path, model, memory := model.new_memory(seed=7, values=values)) as state:
        inject(memory, range(6))
        state.commit(memory)
    for start in (6, 13):
        with MemoryState.open(path, writable=True) as state:
            assert state.values == values
            memory = state.load_memory(model)
            assert memory.codec.name == values
            inject(memory, range(start, start + 7))
            state.commit(memory)
    with MemoryState.open(path) as state:
        assert state.digest() == digest
        loaded = state.load_memory(model)
    assert same(content(loaded), content(expected))
    with torch.inference_mode():
        question = random_ids(1, 9, seed=99)
        logits = [model(question, memory=each).logits for each in (loaded, expected)]
    assert torch.allclose(*logits, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "values", "share"),
    [(torch.float32, "bfloat16", 0.5), (torch.float32, "int8", 0.25), (torch.bfloat16, "float8", 0.5)],
)
def test_the_file_is_as_much_smaller_as_its_values(tmp_path, dtype, values, share):
    config = tiny_config(long_term_capacity=400)
    filled(tmp_path / "plain", FakeModel(config, dtype=dtype), 50)
    filled(tmp_path / "coded", FakeModel(config, dtype=dtype, values=values), 50)
    files = [StateFile.open(tmp_path / name) for name in ("plain", "coded")]
    sizes = [sum(frame.values.size for frame in file.frames) for file in files]
    rest = [file.length - size for file, size in zip(files, sizes, strict=True)]
    rows = 50 * 8 * LAYERS
    assert sizes[0] == rows * WIDTH * dtype.itemsize
    assert sizes[1] == int(sizes[0] * share) + (rows if values != "bfloat16" else 0)
    assert abs(rest[0] - rest[1]) < 64 * 51  # a frame ends at a multiple of 64 bytes
    for file in files:
        file.close()


@pytest.mark.parametrize("values", CODED)
def test_verify_forget_and_compact(tmp_path, values):
    model, path = FakeModel(tiny_config(), values=values), tmp_path / "mem.pt"
    memory = filled(path, model)
    with MemoryState.open(path, writable=True) as state:
        counted = state.verify()
        assert counted["values"] == 20 * 8 * LAYERS
        assert state.dead_bytes > 0 and state.compact() > 0 and state.dead_bytes == 0
        assert same(content(state.load_memory(model)), content(memory))
    proof = MemoryState.forget(path, "a", model)
    assert proof["left"] == 0 and proof["moved"] > 0
    with MemoryState.open(path) as state:
        state.verify()
        assert [source["source"] for source in state.sources()] == ["b"] and state.values == values
        after = state.load_memory(model)
        for layer, store in enumerate(after.long_term[0].layers):
            held, _ = store.take(layer, store.all_positions())
            keys = torch.cat(list(store.keys.views()))
            assert torch.equal(keys, model.memory_keys(layer, held))


def test_a_damaged_code_or_scale_is_noticed(tmp_path):
    model, path = FakeModel(tiny_config(), values="int8"), tmp_path / "mem.pt"
    filled(path, model)
    file = StateFile.open(path)
    frame, sound = file.frames[-1], path.read_bytes()
    file.close()
    for at in (frame.values_at, frame.values_at + WIDTH):  # the first code of a row, and its scale
        raw = bytearray(sound)
        raw[at] ^= 1
        path.write_bytes(raw)
        with MemoryState.open(path) as state, pytest.raises(StateError, match="the value of memory token 152 in layer"):
            state.verify()


def test_programs_that_do_not_know_codes_are_told_by_the_format(tmp_path):
    """The version says so; with plain values it is what it always was."""
    for values, version in (("model", FORMAT_VERSION), ("bfloat16", FORMAT_VERSION), ("int8", CODED_FORMAT)):
        path = tmp_path / values
        filled(path, FakeModel(tiny_config(), values=values), 3)
        raw = path.read_bytes()
        assert [int.from_bytes(raw[at + 8 : at + 12], "little") for at in (0, 4096)] == [version, version]
        with MemoryState.open(path) as state:
            summary = state.summary()
        assert (summary["format"], summary["values"], summary["hidden_size"]) == (version, values, WIDTH)
        assert ("values" in state.identity) == (values != "model")


@pytest.mark.parametrize("values", ["float8", "int8"])
def test_another_program_dtype_may_read_and_not_write(tmp_path, values):
    path, model = tmp_path / "mem.pt", FakeModel(tiny_config(), values=values)
    memory = filled(path, model)
    for dtype in (torch.bfloat16, torch.float16):
        other = FakeModel(tiny_config(), dtype=dtype)
        with MemoryState.open(path) as state:
            loaded = state.load_memory(other)
            assert torch.equal(loaded.short_term.ordered(0)[0], memory.short_term.ordered(0)[0].to(dtype))
            store = loaded.long_term[0].layers[0]
            assert store.take(0, store.all_positions())[0].dtype == dtype
        with MemoryState.open(path, writable=True) as state, pytest.raises(StateError, match="float32") as error:
            state.load_memory(other)
        assert error.value.hint == "Add --dtype float32."


def test_a_state_is_continued_as_it_was_begun(tmp_path):
    model, path = FakeModel(tiny_config(), values="int8"), tmp_path / "mem.pt"
    memory = filled(path, model)
    with MemoryState.open(path) as state:
        state.check_values("int8")
        with pytest.raises(StateError, match="keeps its memory values as int8, not as float8") as error:
            state.check_values("float8")
        assert "--fresh --ltm-dtype float8" in str(error.value.hint)
    with MemoryState.open(path, writable=True) as state:
        state.load_memory(model)
        plain = FakeModel(tiny_config()).new_memory(seed=4)
        plain.keep_journal()
        plain.created_total = [memory.created_total[0]]
        with pytest.raises(StateError, match="does not continue"):
            state.commit(plain)
    filled(tmp_path / "half", FakeModel(tiny_config(), dtype=torch.bfloat16))
    with MemoryState.open(tmp_path / "half") as state:
        state.check_values("bfloat16")
        state.check_values("model")


def test_a_file_that_does_not_say_what_it_was_computed_in_is_refused(tmp_path, monkeypatch):
    from mplus_cli.core.state import memory_state

    made = memory_state.identity_of
    monkeypatch.setattr(memory_state, "identity_of", lambda *a: made(*a) | {"dtype": ["float32"]})
    model, path = FakeModel(tiny_config(), values="int8"), tmp_path / "mem.pt"
    with MemoryState.create(path, model, memory := model.new_memory()) as state:
        state.commit(memory)
    with MemoryState.open(path) as state, pytest.raises(StateError, match="contradicts itself"):
        state.load_memory(model)


def test_the_reader_in_the_readme_and_one_line_read_int8(tmp_path):
    code = re.search(
        r"```python\n(def read_memory\(.*?)```", (Path(__file__).parents[3] / "README.md").read_text(), re.S
    )
    assert code
    names: dict = {}
    exec("import struct\nimport numpy as np\nfrom safetensors.numpy import load\n" + code[1], names)
    path = tmp_path / "mem.pt"
    memory = filled(path, FakeModel(tiny_config(), values="int8"))
    values, created = memory.short_term.ordered(0)
    for layer, (short, long) in enumerate(names["read_memory"](path)):
        assert list(short) == created[layer].tolist()
        assert np.array_equal(numbers(np.array(list(short.values()))), values[layer])
        part = memory.long_term[0].layers[layer]
        assert np.array_equal(numbers(np.array([v for _, v, _ in long])), part.take(layer, part.all_positions())[0])


def numbers(values: np.ndarray) -> np.ndarray:
    return np.ldexp(values[..., :-1].astype(np.float32), values[..., -1:])
