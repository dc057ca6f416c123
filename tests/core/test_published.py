"""Published layouts: M+ and MemoryLLM-8B checkpoints written the way their authors name things."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.published_layout import _created, convert_config
from mplus_cli.errors import CheckpointError
from tests.core.helpers import SIZES, random_ids, tiny_model

LORA = {"inference_mode": False, "r": 4, "lora_alpha": 8, "lora_dropout": 0.1}
LORA["target_modules"] = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj", "gate_proj"]
MEMORYLLM = SIZES | {
    "model_type": "memoryllm",
    "num_tokens": 8,
    "num_blocks": 4,
    "num_memory_tokens": 32,
    "add_bos_embedding": True,
    "drop_memory_per_layer": True,
    "add_decoder_lora": True,
    "lora_config": LORA,
    "max_length": 512,
    "torch_dtype": "float32",
    "architectures": ["MemoryLLM"],
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def published_names(model) -> dict[str, torch.Tensor]:
    """The tensors of one of our models under the authors' names."""
    out = {}
    for name, tensor in model.state_dict().items():
        name = name.replace(".write.weight", ".default.weight").replace(".read.weight", ".decoder_adapter.weight")
        out[name] = tensor.clone()
    return out


@pytest.fixture
def folder(tmp_path):
    ours = tiny_model("llama", long_term_capacity=0)
    memory = torch.randn(3, 32, 64)
    (tmp_path / "config.json").write_text(json.dumps(MEMORYLLM))
    save_file(published_names(ours) | {"memory": memory}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path, ours, memory


def test_memoryllm_loads_as_m_plus_without_long_term_memory(folder):
    path, ours, memory = folder
    model = MPlusForCausalLM.from_pretrained(path)
    assert not model.config.has_long_term_memory and len(model.retrievers) == 0
    assert model.config.short_term_size == 32 and model.config.memory_tokens_per_write == 8
    held = model.new_memory()
    assert torch.equal(held.short_term.ordered(0)[0], memory) and held.long_term == []
    other = ours.new_memory()
    other.short_term.load(0, *held.short_term.ordered(0))
    ids = random_ids(1, 16)
    for step in range(6):
        model.inject(random_ids(1, 16, seed=step), held)
        ours.inject(random_ids(1, 16, seed=step), other)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, memory=held).logits, ours(ids, memory=other).logits, atol=1e-5, rtol=0)


def test_a_published_checkpoint_saves_and_reloads_in_our_layout(folder, tmp_path):
    model = MPlusForCausalLM.from_pretrained(folder[0])
    model.save_pretrained(tmp_path / "ours")
    loaded = MPlusForCausalLM.from_pretrained(tmp_path / "ours")
    assert loaded.fingerprint()["weights_sha256"] == model.fingerprint()["weights_sha256"]
    assert torch.equal(loaded.new_memory().short_term.values, model.new_memory().short_term.values)


def test_published_dtype_decides_the_rounding_of_rotary_frequencies():
    config = convert_config(MEMORYLLM | {"torch_dtype": "bfloat16", "rope_theta": 500_000.0, "rope_scaling": LLAMA3})
    assert config.rope_frequency_dtype == "bfloat16"
    model = MPlusForCausalLM(config)
    frequencies = model.model.rotary_emb.inv_freq
    assert torch.equal(frequencies, frequencies.bfloat16().float())
    plain = MPlusForCausalLM(convert_config(MEMORYLLM | {"rope_theta": 500_000.0}))
    assert not torch.allclose(plain.model.rotary_emb.inv_freq, frequencies, rtol=0.1)  # llama3 scaling is in force


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"add_decoder_lora": False}, "add_decoder_lora is not true"),
        ({"add_bos_embedding": None, "lora_config": None}, "add_bos_embedding is not true; lora_config is missing"),
        ({"selector_layers": [1]}, "selector_layers"),
        ({"update_ltm_mode": "decouple"}, "update_ltm_mode is 'decouple'"),
    ],
)
def test_variants_that_are_not_supported_are_named(change, message):
    with pytest.raises(CheckpointError, match=message):
        convert_config(MEMORYLLM | change)


def test_memory_tensors_that_do_not_fit_are_named(folder):
    path, ours, _ = folder
    save_file(published_names(ours) | {"ltm.0": torch.zeros(1)}, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"Missing: \['memory'\]; unexpected: \['ltm.0'\]"):
        MPlusForCausalLM.from_pretrained(path)


def test_a_dropped_adapter_set_is_not_silent(folder):
    """The failure that cost reproducers their accuracy: half of the LoRA tensors missing without a word."""
    path, ours, memory = folder
    tensors = {k: v for k, v in published_names(ours).items() if "decoder_adapter" not in k}
    save_file(tensors | {"memory": memory}, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"Missing \(36\): .*lora_A\.read"):
        MPlusForCausalLM.from_pretrained(path)


def test_ages_that_tie_or_collide_keep_their_order_only():
    ages = torch.tensor([[300.0, 700.0, 300.0, 10.0]])
    created = _created(ages, short_term=32)[0].tolist()
    assert created == [-35, -36, -34, -33]  # oldest first: 700, then 300 twice, then 10; all before short-term memory
    assert _created(torch.tensor([[40.0, 90.0, 33.0]]), short_term=32)[0].tolist() == [-41, -91, -34]
