"""Memory values in less space: what is lost, and that it is lost once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mplus_cli.core.value_codec import value_codec
from mplus_cli.errors import MPlusError, UsageError
from tests.core.helpers import filled_memory, random_ids, tiny_model

KINDS = [
    (name, dtype)
    for name in ("model", "bfloat16", "float8", "int8")
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    if (name, dtype) != ("bfloat16", torch.float16)
]


@st.composite
def rows(draw, dtype: torch.dtype) -> torch.Tensor:
    """Entries of very different sizes, down to zero and subnormal and up to the largest there are."""
    width = draw(st.integers(1, 40))
    info = torch.finfo(dtype)
    most = min(info.max, 1.6e38)
    entry = st.one_of(
        st.floats(-most, most),
        st.floats(-4, 4),
        st.sampled_from([0.0, -0.0, most, -most, info.tiny, info.smallest_normal / 2]),
        st.builds(lambda sign, bits: sign * 2.0**bits, st.sampled_from([1, -1]), st.integers(-120, 15)),
    )
    return torch.tensor(draw(st.lists(entry, min_size=width, max_size=width)), dtype=torch.float64).to(dtype)[None]


@pytest.mark.parametrize(("name", "dtype"), KINDS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_was_rounded_once_is_never_changed_again(name, dtype, data):
    """The same codes, the same scale, the same numbers: so a file and a resumed injection agree byte for byte."""
    codec, given_rows = value_codec(name, dtype), data.draw(rows(dtype))
    stored = codec.encode(given_rows)
    once = codec.decode(stored)
    assert stored.dtype == codec.stored and stored.shape[-1] == given_rows.shape[-1] + codec.extra
    assert once.dtype == dtype and once.isfinite().all()
    assert torch.equal(codec.encode(once).view(torch.uint8), stored.view(torch.uint8)) or (
        codec.extra == 0 and torch.equal(once, codec.round(once))
    )
    assert torch.equal(codec.round(given_rows), once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["float8", "int8"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_errors_are_bounded(name, dtype, data):
    """int8: 1/127 of the row's largest entry, for every entry. float8: 1/16 of the entry itself, and beneath that

    2 ** -10 of a scale that is at most 1/232 of the largest entry."""
    codec, given_rows = value_codec(name, dtype), data.draw(rows(dtype))
    x, kept = given_rows.double(), codec.round(given_rows).double()
    most = x.abs().amax()
    bound = most / 127 if name == "int8" else torch.maximum(x.abs() / 16, most / 232 / 1024)
    assert ((x - kept).abs() <= bound + 2.0**-101).all()


def test_a_typical_row_is_kept_well():
    """Of Gaussian entries: relative error of the row."""
    x = torch.randn(2000, 256, generator=torch.Generator().manual_seed(0))
    error = {
        name: float((value_codec(name, torch.float32).round(x) - x).norm() / x.norm())
        for name in ("bfloat16", "int8", "float8")
    }
    assert error["bfloat16"] < 0.002 and error["int8"] < 0.012 and 0.015 < error["float8"] < 0.03


def test_each_row_has_a_scale_of_its_own():
    x = torch.randn(1, 8).expand(3, -1) * torch.tensor([[1e-6], [1.0], [1e6]])
    for name in ("int8", "float8"):
        kept = value_codec(name, torch.float32).round(x)
        assert ((kept - x).abs().amax(1) <= x.abs().amax(1) / 16).all()


def test_float8_keeps_small_entries_beside_a_large_one():
    x = torch.tensor([[1000.0, 1.0, -0.5, 0.3]])
    assert torch.equal(value_codec("int8", torch.float32).round(x)[0, 1:], torch.zeros(3))
    assert ((value_codec("float8", torch.float32).round(x) - x).abs() <= x.abs() / 16).all()


def test_rows_decode_alike_in_numpy():
    """The lines that the description of the file gives."""
    x = torch.randn(5, 7, 32, generator=torch.Generator().manual_seed(1)) * 10
    values = value_codec("int8", torch.float32).encode(x).numpy()
    numbers = np.ldexp(values[..., :-1].astype(np.float32), values[..., -1:])
    assert np.array_equal(numbers, value_codec("int8", torch.float32).round(x).numpy())
    values = value_codec("float8", torch.float32).encode(x).numpy()
    table = np.arange(256, dtype=np.uint8)
    sign, exponent, mantissa = 1.0 - 2 * (table >> 7), (table >> 3 & 15).astype(int), (table & 7).astype(int)
    codes = sign * np.where(exponent, np.ldexp(8.0 + mantissa, exponent - 10), np.ldexp(1.0 * mantissa, -9))
    numbers = np.ldexp(codes[values[..., :-1]], values[..., -1:].astype(int) - 127)
    assert np.array_equal(numbers.astype(np.float32), value_codec("float8", torch.float32).round(x).numpy())


@pytest.mark.parametrize("name", ["int8", "float8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -3e38])
def test_numbers_that_codes_cannot_hold_are_refused(name, bad):
    with pytest.raises(MPlusError, match="not finite"):
        value_codec(name, torch.float32).encode(torch.tensor([[1.0, bad]]))


def test_names_are_checked():
    with pytest.raises(UsageError, match="int4") as error:
        value_codec("int4", torch.float32)
    assert "model, bfloat16, float8, int8" in str(error.value.hint)
    with pytest.raises(UsageError, match="save nothing"):
        value_codec("bfloat16", torch.float16)
    assert value_codec("bfloat16", torch.bfloat16) == value_codec("model", torch.bfloat16)


# -- in a memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", ["bfloat16", "float8", "int8"])
def test_a_token_is_the_same_in_short_and_long_term_memory_and_journal(values):
    model = tiny_model()
    memory = model.new_memory(2, seed=[1, 2], values=values)
    memory.keep_journal()
    for step in range(10):
        model.inject(random_ids(2, 16, seed=step), memory)
    for row in range(2):
        written = torch.cat([record.values for record in memory.journal[row]], dim=1)
        assert torch.equal(written, memory.codec.round(written))
        for layer in range(3):
            short, created = (part[layer] for part in memory.short_term.ordered(row))
            assert torch.equal(short, written[layer, created])
            store = memory.long_term[row].layers[layer]
            held, created = store.take(layer, store.all_positions())
            assert len(created) > 40 and torch.equal(held, written[layer, created])
            assert store.values.dtype == memory.codec.stored and held.dtype == torch.float32
            keys = torch.cat(list(store.keys.views()))
            assert torch.allclose(keys, model.memory_keys(layer, held), atol=1e-6)


@pytest.mark.parametrize("values", ["float8", "int8"])
def test_rows_of_a_batch_do_not_depend_on_each_other(values):
    model = tiny_model()
    both = model.new_memory(2, seed=[1, 2], values=values)
    alone = [model.new_memory(1, seed=seed, values=values) for seed in (1, 2)]
    for step in range(8):
        ids = random_ids(2, 16, seed=step)
        model.inject(ids, both)
        for row, memory in enumerate(alone):
            model.inject(ids[row : row + 1], memory)
    question = random_ids(2, 9, seed=77)
    with torch.inference_mode():
        together = model(question, memory=both).logits
        for row, memory in enumerate(alone):
            assert torch.allclose(model(question[row : row + 1], memory=memory).logits[0], together[row], atol=2e-3)


def test_answers_stay_close_and_default_memory_is_as_it_was():
    model, question = tiny_model(), random_ids(1, 9, seed=99)

    def logits(**options) -> torch.Tensor:
        memory = model.new_memory(1, seed=0, **options)
        for step in range(10):
            model.inject(random_ids(1, 16, seed=step), memory)
        with torch.inference_mode():
            return model(question, memory=memory).logits

    exact, plain = logits(), logits(values="model")
    with torch.inference_mode():
        assert torch.equal(exact, plain) and torch.equal(exact, model(question, memory=filled_memory(model, 10)).logits)
    distance = {name: float((logits(values=name) - exact).norm() / exact.norm()) for name in ("bfloat16", "int8")}
    assert 0 < distance["bfloat16"] < 0.02 and 0 < distance["int8"] < 0.1


def test_only_what_is_retrieved_is_decoded(monkeypatch):
    model = tiny_model()
    memory = model.new_memory(1, seed=0, values="int8")
    for step in range(14):
        model.inject(random_ids(1, 16, seed=step), memory)
    decoded: list[int] = []
    kind = type(memory.codec)
    decode = kind.decode
    monkeypatch.setattr(kind, "decode", lambda self, rows: decoded.append(len(rows)) or decode(self, rows))
    with torch.inference_mode():
        model(random_ids(1, 9, seed=99), memory=memory)
    assert len(memory.long_term[0]) == 80 and decoded == [16, 16, 16]


def test_a_memory_that_a_checkpoint_carries_is_rounded_too():
    model = tiny_model()
    short = torch.randn(3, 20, 64, generator=torch.Generator().manual_seed(0))
    created = torch.arange(-20, 0).expand(3, -1)
    model.initial_memory = {
        "short_term.values": short,
        "short_term.created": created,
        "long_term.values": short + 1,
        "long_term.keys": short[..., :16],
        "long_term.created": created - 20,
        "long_term.recall_frequency": torch.zeros(3, 20),
    }
    memory = model.new_memory(1, values="int8")
    held, store = memory.short_term.ordered(0)[0], memory.long_term[0].layers[0]
    assert torch.equal(held, memory.codec.round(short)) and not torch.equal(held, short)
    assert torch.equal(store.take(0, store.all_positions())[0], memory.codec.round(short[0] + 1))
