"""Layers brought ahead of their turn, and reads that take everything from elsewhere, against plain reads."""

from __future__ import annotations

import pytest
import torch

from mplus_cli.core import prefix as prefix_module
from mplus_cli.core.cache import BufferLayer
from mplus_cli.core.prefix import MemoryPrefix
from mplus_cli.core.retrieved_rows import QUESTIONS_HELD, questions_held
from mplus_cli.core.streaming import Ahead, HostLink, Returning
from tests.core.helpers import filled_memory, random_ids, tiny_model

CPU = torch.device("cpu")


class SlowLink(HostLink):
    """Like a device with memory of its own: what was sent is a copy, and cannot be seen before it is waited for."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.sent = 0

    def to_device(self, tensors):
        copies, late = [torch.full_like(t, torch.nan) for t in tensors], [t.clone() for t in tensors]
        self.sent += sum(t.nbytes for t in tensors)

        class Late:
            def wait(self):
                for copy, tensor in zip(copies, late, strict=True):
                    copy.copy_(tensor)
                return copies

        return Late()


def test_every_layer_is_asked_for_once_and_one_ahead():
    asked = []
    ahead = Ahead([SlowLink(CPU)] * 4, lambda layer: asked.append(layer) or [torch.full((2,), float(layer))])
    for layer in range(4):
        (found,) = ahead.take(layer)
        assert found.tolist() == [layer, layer]
        assert asked == list(range(min(layer + 2, 4)))


def test_layers_out_of_turn_are_right_too():
    ahead = Ahead([HostLink(CPU)] * 4, lambda layer: [torch.tensor(layer)])
    assert [int(ahead.take(layer)[0]) for layer in (2, 0, 3, 3, 1)] == [2, 0, 3, 3, 1]


def test_small_results_come_back_as_they_are():
    scores, live = torch.randn(5), torch.arange(5)
    found = Returning((scores, live)).wait()
    assert torch.equal(found[0], scores) and torch.equal(found[1], live)


def test_an_offloaded_memory_holds_nothing_for_the_next_question_on_a_gpu():
    gpu = torch.device("cuda")
    assert (questions_held(CPU, True), questions_held(gpu, False), questions_held(gpu, True)) == (QUESTIONS_HELD, 1, 0)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_reads_from_elsewhere_and_in_parts_equal_plain_ones(batch, rows_at_once, monkeypatch):
    """Offloaded values and keys, copied layer by layer, and short-term memory projected a few rows at a time."""
    model = tiny_model()
    memory = filled_memory(model, 9, batch)
    questions = [random_ids(batch, n, seed=n) for n in (5, 300, 4)]

    def read():
        memory.changed()
        with torch.no_grad():
            return [model(ids, memory=memory).logits for ids in questions]

    plain = read()
    found = [one.created.clone() for layer in memory.last_retrieval for one in layer]
    links = []
    monkeypatch.setattr(MemoryPrefix, "_away", lambda self, held: True)
    monkeypatch.setattr(prefix_module, "HostLink", lambda device: links.append(SlowLink(device)) or links[-1])
    per_row = prefix_module._projection_bytes(model)
    monkeypatch.setattr(prefix_module, "PROJECTED_AT_ONCE", rows_at_once * batch * per_row)
    memory.retrieved_rows.questions = 0
    for ours, theirs in zip(read(), plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    again = [one.created for layer in memory.last_retrieval for one in layer]
    assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True))
    assert all(link.sent for link in links) and not memory.retrieved_rows._pools


def test_a_buffer_has_room_for_the_prompt_and_not_much_more():
    model = tiny_model()
    memory = filled_memory(model, 9)
    for length in (5, 255, 256, 700):
        memory.changed()
        with torch.no_grad():
            cache = model(random_ids(1, length), memory=memory).past_key_values
        assert length < cache.layers[0].keys.shape[2] - cache.prefix_length <= length + 256


def test_generation_makes_room_for_prompt_and_answer_at_once(monkeypatch):
    model = tiny_model()
    memory = filled_memory(model, 9)
    monkeypatch.setattr(BufferLayer, "_grow", lambda *_: pytest.fail("a buffer was copied to a larger one"))
    for prompt, new in ((250, 20), (10, 600)):
        memory.changed()
        model.generate(random_ids(1, prompt), memory=memory, max_new_tokens=new, do_sample=False, eos_token_id=None)
        layer = memory.read_cache.layers[0]
        assert layer.keys.shape[2] - layer.prefix_length < prompt + new + 256
