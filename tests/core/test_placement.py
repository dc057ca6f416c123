"""Layers on several devices: shared out evenly, each with its memory, and nothing is computed across two devices."""

from __future__ import annotations

import pytest
import torch

from mplus_cli.core.adapters import READ, WRITE
from mplus_cli.core.host_embedding import embeddings_on_host
from mplus_cli.core.placement import Span, joined, layer_bytes, parted, place, share_out, spans_of
from tests.core.helpers import random_ids, tiny_model
from tests.core.two_devices import CPU, MixedDevices, Places, place_of

FIRST, SECOND = torch.device("xpu:0"), torch.device("xpu:1")


def test_layers_are_shared_out_evenly_as_far_as_there_is_room():
    assert share_out(32, 1, 0, [100, 100]) == [16, 16]
    assert share_out(33, 1, 0, [100, 100]) == [17, 16]
    assert share_out(32, 1, 10, [20, 100]) == [10, 22]  # the first also holds the embeddings
    assert share_out(32, 2, 0, [10, 20, 1000]) == [5, 10, 17]
    assert share_out(3, 1, 0, [9, 9, 9, 9]) == [1, 1, 1, 0]
    assert share_out(32, 1, 5, [4, 100]) == [0, 32]
    assert sum(share_out(32, 10, 0, [100, 100])) == 20  # too little


def test_spans():
    assert spans_of([2, 0, 1], [CPU, FIRST, SECOND]) == [Span(0, 2, CPU), Span(2, 3, SECOND)]
    whole = torch.arange(6).view(3, 2)
    parts = parted(whole, spans_of([2, 1], [CPU, CPU]))
    assert [part.tolist() for part in parts] == [[[0, 1], [2, 3]], [[4, 5]]]
    assert torch.equal(joined(parts), whole)
    with pytest.raises(ValueError, match="not the 3 layers"):
        place(tiny_model(), spans_of([2, 2], [CPU, CPU]))


def test_bytes_of_a_layer_and_of_the_rest_are_all_weights():
    model = tiny_model()
    one, rest = layer_bytes(model)
    memory = 4 * (32 * 64 + 80 * 16 + 2 * 2 * 16 * (32 + 16))
    assert 3 * (one - memory) + rest == sum(parameter.nbytes for parameter in model.parameters())


def test_token_embeddings_on_the_host_take_no_room_on_a_device():
    model = tiny_model()
    one, rest = layer_bytes(model)
    assert embeddings_on_host(model, least=0)
    assert layer_bytes(model) == (one, rest - model.get_input_embeddings().weight.nbytes)


@pytest.fixture
def two_devices():
    with Places():
        yield


def test_the_pretence_catches_what_a_gpu_would(two_devices):
    here, there = torch.ones(2, 2, device="xpu:0"), torch.ones(2, 2).to(SECOND)
    with pytest.raises(MixedDevices, match="matmul"):
        here @ there
    with pytest.raises(MixedDevices):
        torch.cat([here, torch.ones(2, 2)])
    with pytest.raises(MixedDevices):
        here.numpy()
    with pytest.raises(MixedDevices):
        torch.ones(2, 2)[torch.tensor([0], device="xpu:0")]
    assert (here @ there.to(here)).device == FIRST and here[torch.tensor([0])].device == FIRST
    assert (here * 2).cpu().device == CPU and torch.zeros_like(there).device == SECOND


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("options", [{}, {"offload": True}, {"values": "int8"}], ids=str)
def test_nothing_is_computed_across_devices(two_devices, merged, options):
    """Writing (padded rows and short ones too), reading, generating, over two devices, give what one gives."""
    answers, contents = [], []
    for spans in ([], spans_of([2, 1], [FIRST, SECOND])):
        model = tiny_model()
        if spans:
            place(model, spans)
        if merged:
            model.prepare_for_inference(READ, WRITE)
        memory = model.new_memory(2, seed=[1, 2], **options)
        memory.keep_journal()
        for step in range(7):
            model.inject(random_ids(2, 16, seed=step), memory)
        ids, mask = random_ids(2, 12, seed=20), torch.ones(2, 12, dtype=torch.int64)
        mask[0, :7] = 0
        model.inject(ids, memory, mask)
        asked, kwargs = random_ids(2, 6, seed=30), {"do_sample": False, "eos_token_id": None, "max_new_tokens": 4}
        whole = model.generate(asked, memory=memory, **kwargs)
        again = model.generate(ids[:, -6:], memory=memory, attention_mask=mask[:, -6:], **kwargs)
        answers.append([whole.tolist(), again.tolist()])
        contents.append([memory.short_term.ordered(row)[0].cpu().tolist() for row in range(2)])
        contents[-1] += [record.values.tolist() for record in memory.journal[0]]
        if spans:
            check_places(model, memory, options)
    assert contents[0] == contents[1]
    assert answers[0] == answers[1]


def check_places(model, memory, options) -> None:
    devices = [FIRST, FIRST, SECOND]
    for layer, device in enumerate(devices):
        modules = (model.model.layers[layer], model.retrievers[layer])
        assert {place_of(p) for module in modules for p in module.parameters()} == {device}
        held = memory.read_cache.layers[layer].keys
        home = CPU if options.get("offload") else device
        assert (place_of(held), place_of(memory.short_term.layer(layer))) == (device, home)
        assert {place_of(block) for block in memory.long_term[0].layers[layer].keys.views()} == {home}
    assert {place_of(p) for p in (model.lm_head.weight, model.bos_embedding, model.model.norm.weight)} == {FIRST}
