"""Writes as a pipeline over layers: the same memory bit for bit, whole writes whatever goes wrong, no thread left."""

from __future__ import annotations

import os
import signal
import threading
import time
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mplus_cli.core.adapters import READ, WRITE
from mplus_cli.core.backbones import FAMILIES
from mplus_cli.core.pipeline import WriteText, inject_stream, stage_ends
from mplus_cli.core.placement import place, spans_of
from mplus_cli.errors import UsageError
from tests.core.helpers import random_ids, tiny_model
from tests.core.test_batch import left_padded

CPU = torch.device("cpu")
LENGTHS = (16, 16, 5, 3, 16, 16, 2, 16, 16, 16, 9, 16)  # K = 8: some rewrite memory tokens


def one_row(lengths=LENGTHS) -> list[WriteText]:
    return [WriteText(random_ids(1, n, seed=at), notes=[{"chunk": at}]) for at, n in enumerate(lengths)]


def rows_of(lengths: list[list[int]]) -> list[WriteText]:
    """One text per list, with a row of each length."""
    texts = []
    for at, own in enumerate(lengths):
        ids, mask = left_padded([random_ids(n, seed=31 * at + row) for row, n in enumerate(own)])
        texts.append(
            WriteText(ids, mask if len(set(own)) > 1 else None, [{"chunk": at, "row": r} for r in range(len(own))])
        )
    return texts


def empty_memory(model, batch: int = 1, **options):
    memory = model.new_memory(batch, seed=list(range(3, 3 + batch)), **options)
    memory.keep_journal()
    return memory


def content(memory) -> list:
    """Everything that writing leaves behind, as plain numbers, so that equal means equal bit for bit."""
    out: list = [memory.created_total, memory.short_term.fill]
    for row in range(memory.batch_size):
        values, created = memory.short_term.ordered(row)
        out += [values.tolist(), created.tolist(), memory.short_term.created[row].tolist()]
        for layer, store in enumerate(memory.long_term[row].layers if memory.long_term else []):
            held, numbers = store.take(layer, store.all_positions())
            keys = [key for block in store.keys.views() for key in block.tolist()]
            out += [held.tolist(), numbers.tolist(), keys, store.created.start, store.recall_frequency.tolist()]
        for one in memory.journal[row]:
            keys = None if one.keys is None else one.keys.tolist()
            out.append([one.created, one.values.tolist(), one.dropped.tolist(), keys, one.note])
    return out


def sequential(model, texts, batch: int = 1, **options) -> list:
    memory = empty_memory(model, batch, **options)
    for text in texts:
        model.inject(text.input_ids, memory, text.attention_mask, text.notes)
    return content(memory)


def pipelined(model, texts, stages: int, batch: int = 1, **options) -> list:
    memory = empty_memory(model, batch, **options)
    assert list(inject_stream(model, texts, memory, stages)) == texts
    assert not writing_threads()
    return content(memory)


def writing_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mplus-")]


# -- the same memory --


@pytest.mark.parametrize(("family", "attn"), [*((family, "sdpa") for family in sorted(FAMILIES)), ("llama", "eager")])
def test_every_number_of_stages_gives_the_same_memory(family, attn):
    model, texts = tiny_model(family, attn=attn), one_row()
    expected = sequential(model, texts)
    for stages in (2, 3, 7):
        assert pipelined(model, texts, stages) == expected


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"long_term_capacity": 0}, {}),
        ({"eviction": "recall_frequency", "merge_every": 3, "initial_recall_frequency": 2.0}, {}),
        ({"short_term_size": 8}, {}),
        ({"lora": None}, {}),
        ({}, {"values": "int8"}),
        ({}, {"values": "float8"}),
        ({}, {"offload": True}),
    ],
    ids=["memoryllm", "published eviction", "all dropped", "no adapters", "int8", "float8", "offload"],
)
def test_every_kind_of_memory(changes, options):
    model, texts = tiny_model(**changes), one_row()
    assert pipelined(model, texts, 3, **options) == sequential(model, texts, **options)


def test_merged_adapters_and_inference_mode():
    model, texts = tiny_model().prepare_for_inference(READ, WRITE), one_row()
    assert pipelined(model, texts, 3) == sequential(model, texts)
    with torch.inference_mode():
        assert pipelined(model, texts, 3) == sequential(model, texts)


def test_autocast_of_the_caller():
    model, texts = tiny_model(), one_row()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = pipelined(model, texts, 3), sequential(model, texts)
    assert found == expected != sequential(model, texts)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 3).flatmap(
        lambda rows: st.lists(st.lists(st.integers(1, 20), min_size=rows, max_size=rows), min_size=1, max_size=9)
    ),
    st.integers(2, 3),
)
def test_rows_of_any_length(lengths, stages):
    """Padded rows, rows shorter than K, rows that cannot share a pass, memories that are hardly begun."""
    texts = rows_of(lengths)
    assert pipelined(MODEL, texts, stages, len(lengths[0])) == sequential(MODEL, texts, len(lengths[0]))


def test_a_memory_that_holds_something_already():
    first, second = one_row()[:5], one_row()[5:]
    memory = empty_memory(MODEL)
    for text in first:
        MODEL.inject(text.input_ids, memory, text.attention_mask, text.notes)
    assert list(inject_stream(MODEL, second, memory, 2)) == second
    assert content(memory) == sequential(MODEL, one_row())


@pytest.mark.parametrize("counts", [[2, 1], [1, 1, 1], [0, 3]])
def test_layers_on_several_devices(counts):
    """Two devices that are one: every layer's memory is with its layer, and nothing else changes."""
    spread = tiny_model()
    place(spread, spans_of(counts, [CPU] * len(counts)))
    assert [tensor.shape[1] for tensor in empty_memory(spread).short_term.parts] == [n for n in counts if n]
    for stages in (1, 2, 3):
        assert pipelined(spread, one_row(), stages) == sequential(MODEL, one_row())
    texts = rows_of([[16, 16], [9, 16], [3, 4], [16, 2]])
    assert pipelined(spread, texts, 3, 2, values="int8") == sequential(MODEL, texts, 2, values="int8")


def test_reading_what_was_written_over_several_devices():
    spread = tiny_model()
    place(spread, spans_of([1, 2], [CPU, CPU]))
    answers, question = [], random_ids(2, 6, seed=77)
    for model in (MODEL, spread):
        memory = empty_memory(model, 2)
        list(inject_stream(model, rows_of([[16, 16]] * 9), memory, 2))
        options = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 6}
        answers.append([model.generate(question, memory=memory, **options).tolist() for _ in range(2)])
    assert answers[0] == answers[1]


MODEL = tiny_model()


# -- at once --


def test_stages_end_where_devices_do_and_are_even():
    model = tiny_model()
    assert stage_ends(model, 1) == [3]
    assert stage_ends(model, 2) == [2, 3]
    assert stage_ends(model, 9) == [1, 2, 3]
    place(model, spans_of([2, 1], [CPU, CPU]))
    assert stage_ends(model, 1) == stage_ends(model, 2) == [2, 3]
    assert stage_ends(model, 3) == [1, 2, 3]


def test_layers_work_on_different_chunks_at_once(monkeypatch):
    """The last layer holds the first chunk until the first layer has begun the second."""
    model, begun = tiny_model(), threading.Event()
    on_call(monkeypatch, model, 0, lambda number: begun.set() if number == 1 else None)
    on_call(monkeypatch, model, 2, lambda number: number or ensure(begun.wait(20)))
    assert pipelined(model, one_row(), 2) == sequential(MODEL, one_row())


def test_few_texts_are_taken_ahead():
    taken: list[int] = []
    texts = one_row([16] * 12)
    memory = empty_memory(MODEL)
    for done, _ in enumerate(inject_stream(MODEL, (taken.append(at) or t for at, t in enumerate(texts)), memory, 2)):
        assert memory.created_total == [8 * (done + 1)]  # it is in, and none after it
        assert len(taken) <= done + 1 + 4


# -- what goes wrong --


def on_call(monkeypatch, model, layer: int, call) -> None:
    """Call `call(number of earlier calls)` before a layer runs."""
    module, number = model.model.layers[layer], iter(range(1000))
    forward = module.forward

    def wrapped(*args, **kwargs):
        call(next(number))
        return forward(*args, **kwargs)

    monkeypatch.setattr(module, "forward", wrapped)


def ensure(happened: bool) -> None:
    if not happened:
        raise RuntimeError("nothing happened at once")


def whole_writes(memory, texts) -> int:
    """Texts in a memory that is just what writing so many leaves."""
    count = memory.created_total[0] // 8
    assert content(memory) == sequential(MODEL, texts[:count])
    return count


@pytest.mark.parametrize("layer", [0, 2])
def test_an_error_in_a_layer_reaches_the_caller_behind_whole_writes(monkeypatch, layer):
    model, texts = tiny_model(), one_row([16] * 10)

    def fail(number: int) -> None:
        if number == 4:
            raise RuntimeError("out of something")

    on_call(monkeypatch, model, layer, fail)
    memory = empty_memory(model)
    with pytest.raises(RuntimeError, match="out of something"):
        list(inject_stream(model, texts, memory, 2))
    assert whole_writes(memory, texts) == 4 and not writing_threads()


def test_an_error_in_the_texts_or_a_bad_text():
    memory, texts = empty_memory(MODEL), one_row([16] * 6)

    def broken():
        yield from texts
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk"):
        list(inject_stream(MODEL, broken(), memory, 2))
    assert whole_writes(memory, texts) >= 1 and not writing_threads()
    before = content(memory)
    with pytest.raises(UsageError, match="empty"):
        list(inject_stream(MODEL, [WriteText(random_ids(1, 4), torch.zeros(1, 4))], memory, 2))
    with pytest.raises(UsageError, match="2 rows of text"):
        list(inject_stream(MODEL, [WriteText(random_ids(2, 16))], memory, 2))
    assert content(memory) == before and not writing_threads()


def test_closing_forgets_what_is_under_way():
    memory, texts = empty_memory(MODEL), one_row([16] * 10)
    stream = inject_stream(MODEL, texts, memory, 3)
    assert list(islice(stream, 4)) == texts[:4]
    assert writing_threads()
    stream.close()
    assert whole_writes(memory, texts) == 4 and not writing_threads()
    list(inject_stream(MODEL, texts[4:], memory, 3))
    assert whole_writes(memory, texts) == 10


def test_ctrl_c_while_layers_work(monkeypatch):
    model, texts = tiny_model(), one_row([16] * 12)
    on_call(monkeypatch, model, 2, lambda number: number == 5 and os.kill(os.getpid(), signal.SIGINT))
    memory = empty_memory(model)
    with pytest.raises(KeyboardInterrupt):
        list(inject_stream(model, texts, memory, 2))
    assert whole_writes(memory, texts) <= 8 and not writing_threads()


def test_ctrl_c_while_memory_changes(monkeypatch):
    """The interrupt comes between the change of short-term memory and that of long-term memory."""
    memory, texts = empty_memory(MODEL), one_row([16] * 12)
    append, number = memory.short_term.append, iter(range(100))

    def interrupted(*args):
        if next(number) == 6:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # by now the caller's thread has been interrupted
        return append(*args)

    monkeypatch.setattr(memory.short_term, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(inject_stream(MODEL, texts, memory, 2))
    assert whole_writes(memory, texts) == 7 and not writing_threads()


def test_reading_between_texts_is_refused_not_wrong():
    model, memory, texts = tiny_model(), empty_memory(MODEL), one_row([16] * 8)
    stream = inject_stream(model, texts, memory, 2)
    next(stream)
    with torch.no_grad():
        model(random_ids(1, 4), memory=memory)
    with pytest.raises(UsageError, match="on their way"):
        list(stream)
    assert whole_writes(memory, texts) >= 1 and not writing_threads()
    with torch.no_grad():  # and what follows is as ever
        model(random_ids(1, 4), memory=memory)
    done = memory.created_total[0] // 8
    list(inject_stream(model, texts[done:], memory, 2))
    assert whole_writes(memory, texts) == 8


def test_reading_while_nothing_is_under_way_changes_no_write():
    """The first write makes too few tokens for another to follow at once."""
    model, memory, texts = tiny_model(), empty_memory(MODEL), one_row([3, 16, 16, 16])
    stream = inject_stream(model, texts, memory, 2)
    next(stream)
    with torch.no_grad():
        model(random_ids(1, 4), memory=memory)
    assert list(stream) == texts[1:] and content(memory) == sequential(MODEL, texts)


def test_changing_the_memory_between_texts_is_refused():
    memory = empty_memory(MODEL)
    stream = inject_stream(MODEL, one_row([16] * 8), memory, 2)
    next(stream)
    MODEL.inject(random_ids(1, 16, seed=99), memory)
    with pytest.raises(UsageError, match="on their way"):
        next(stream)
    assert memory.created_total == [16] and not writing_threads()
