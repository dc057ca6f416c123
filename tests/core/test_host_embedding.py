"""Token embeddings on the host against those beside the weights."""

from __future__ import annotations

import torch

from mplus_cli.core.host_embedding import HostEmbedding, embeddings_on_host
from tests.core.helpers import random_ids, tiny_model


def test_it_gives_the_same_bits_names_and_fingerprint():
    plain, hosted = tiny_model(), tiny_model()
    names, before = list(plain.state_dict()), plain.fingerprint()
    assert embeddings_on_host(hosted, least=0)
    assert list(hosted.state_dict()) == names and hosted.fingerprint() == before
    memories = [model.new_memory() for model in (plain, hosted)]
    for model, memory in zip((plain, hosted), memories, strict=True):
        for step in range(6):
            model.inject(random_ids(1, 16, seed=step), memory)
    assert torch.equal(memories[0].short_term.values, memories[1].short_term.values)
    read = [
        model(random_ids(1, 5), memory=memory).logits for model, memory in zip((plain, hosted), memories, strict=True)
    ]
    assert torch.equal(*read)
    told = [
        model.generate(random_ids(1, 5), memory=memory, max_new_tokens=6, do_sample=False, eos_token_id=None)
        for model, memory in zip((plain, hosted), memories, strict=True)
    ]
    assert torch.equal(*told)


def test_the_table_stays_when_the_model_moves_and_rows_follow():
    model = tiny_model()
    embeddings_on_host(model, least=0)
    model.to("meta")  # a device that is not the host
    table = model.get_input_embeddings()
    assert isinstance(table, HostEmbedding) and table.weight.device.type == "cpu"
    assert model.device.type == "meta" and model.lm_head.weight.is_meta
    rows = model.embed(random_ids(1, 5))
    assert rows.is_meta and rows.shape == (1, 5, 64)
    model.bfloat16()
    assert table.weight.dtype == torch.bfloat16 and model.embed(random_ids(1, 5)).dtype == torch.bfloat16


def test_small_tables_and_shared_ones_stay():
    small = tiny_model()
    assert not embeddings_on_host(small)
    small.lm_head.weight = small.model.embed_tokens.weight
    assert not embeddings_on_host(small, least=0)
    assert type(small.get_input_embeddings()) is torch.nn.Embedding
