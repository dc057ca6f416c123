"""What a stage starts from: plain backbones, checkpoints of earlier stages, nothing; and what it refuses."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.errors import CheckpointError, UsageError
from mplus_cli.training.groups import all_groups
from mplus_cli.training.starting import starting_model
from tests.fixtures import byte_tokenizer, save_tiny_model
from tests.training.helpers import BACKBONE, save_backbone, tiny_recipe


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def stages(tmp_path_factory, backbone):
    """Folders of the results of stages 1 to 3, each changed a little by `training`."""
    folders, model = {}, backbone
    for stage in (1, 2, 3):
        folder = tmp_path_factory.mktemp(f"stage{stage}")
        made = starting_model(tiny_recipe(stage, model))
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_B" in name or "positional" in name:
                    parameter.normal_(0, 0.1 * stage)
        made.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        folders[stage] = model = folder
    return folders


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2", "mistral"])
def test_a_plain_backbone_becomes_stage_1(tmp_path, family):
    folder = save_backbone(tmp_path, family=family, vocab_size=264)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    model = starting_model(tiny_recipe(1, folder))
    weights = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    for name, value in plain.state_dict().items():
        assert torch.equal(weights[name], value), name
    ids = torch.tensor([[50, 51, 52, 53]])
    assert torch.equal(model.bos_embedding[1, 0], plain.get_input_embeddings().weight[0])  # of <|begin_of_text|>
    assert not model.new_memory_positional_emb.any()
    with torch.no_grad():
        reading = model(ids, adapter="read").logits
        writing = model(ids, adapter="write").logits
    assert torch.equal(reading, writing) and reading.isfinite().all()  # adapters begin as nothing
    assert {name for name in all_groups(model)} == {
        "backbone",
        "write_adapter",
        "read_adapter",
        "bos_embedding",
        "new_memory_positional_emb",
    }


def test_tied_embeddings_stay_tied(tmp_path):
    model = starting_model(tiny_recipe(1, save_backbone(tmp_path, family="qwen3", tie_word_embeddings=True)))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "out")
    again = MPlusForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_weights_go_from_stage_to_stage(stages):
    for before, after in ((1, 2), (2, 3)):
        old = dict(MPlusForCausalLM.from_pretrained(stages[before]).named_parameters())
        new = starting_model(tiny_recipe(after, stages[before]))
        parameters = dict(new.named_parameters())
        for name, value in old.items():
            assert torch.equal(parameters[name], value), name
        added = parameters.keys() - old.keys()
        assert all(name.startswith("retrievers.") for name in added) and bool(added) == (after == 3)
        assert new.config.trained_stages == list(range(1, after + 1))


def test_stage_3_changes_the_memory_and_adds_retrievers(stages):
    model = starting_model(tiny_recipe(3, stages[2], memory={"short_term_size": 12, "retrieval_budget": 4}))
    assert (model.config.short_term_size, model.config.long_term_capacity, model.config.retrieval_budget) == (12, 40, 4)
    for parameter in model.retrievers.parameters():
        bound = parameter.shape[1] ** -0.5
        assert 0.5 * bound < parameter.abs().max() <= bound  # as linear layers begin
    same = starting_model(tiny_recipe(3, stages[2], memory={"short_term_size": 12, "retrieval_budget": 4}))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    other = starting_model(tiny_recipe(3, stages[2], seed=9))
    assert not torch.equal(next(other.retrievers.parameters()), next(model.retrievers.parameters()))


def test_the_retriever_may_come_in_stage_2(stages):
    trained = ["read_adapter", "retriever"]
    recipe = tiny_recipe(2, stages[1], train=trained, loss={"retriever": "published"})
    model = starting_model(recipe)
    assert len(model.retrievers) == 2


def test_a_stage_can_go_on_from_its_own_result(stages):
    model = starting_model(tiny_recipe(3, stages[3]))
    saved = MPlusForCausalLM.from_pretrained(stages[3])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), saved.parameters(), strict=True))
    assert model.config.trained_stages == [1, 2, 3]


def test_a_checkpoint_that_does_not_say_its_stages_is_taken_for_its_parts(tmp_path):
    folder = save_tiny_model(tmp_path)  # has adapters and retrievers
    recipe = tiny_recipe(3, folder)
    assert starting_model(recipe).config.trained_stages == [3]


@pytest.mark.parametrize("stage", [2, 3])
def test_a_plain_backbone_is_no_start_for_later_stages(backbone, stage):
    with pytest.raises(CheckpointError) as error:
        starting_model(tiny_recipe(stage, backbone))
    for part in ("write_adapter", "read_adapter", "bos_embedding", "new_memory_positional_emb", "stage 1 makes them"):
        assert part in error.value.message
    assert error.value.hint == f"mplus train --stage 1 model={backbone}"


def test_stage_3_wants_stage_2_first(stages):
    with pytest.raises(CheckpointError, match="goes on from stage 2; .* has been through: 1"):
        starting_model(tiny_recipe(3, stages[1]))


def test_sizes_that_do_not_fit_are_named(stages):
    with pytest.raises(CheckpointError, match=r"lora_A.read.weight is \(2, 32\) instead of \(3, 32\)"):
        starting_model(tiny_recipe(2, stages[1], memory={"lora": {"r": 3, "alpha": 4}}))
    with pytest.raises(CheckpointError, match="key_proj"):
        starting_model(tiny_recipe(3, stages[3], memory={"retriever_size": 6}))


def test_parts_a_recipe_would_lose_are_named(stages):
    with pytest.raises(CheckpointError, match=r"retrievers.0.key_proj.0.weight is there, and the recipe has no place"):
        starting_model(tiny_recipe(2, stages[3]))


def test_models_that_are_none(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="No model at"):
        starting_model(tiny_recipe(1, tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(CheckpointError, match="'gpt2' cannot carry a memory"):
        starting_model(tiny_recipe(1, tmp_path))


def test_a_missing_model_that_a_recipe_makes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="No model at 'runs/default-base/model'") as refused:
        starting_model(tiny_recipe(1, "runs/default-base/model"))
    assert refused.value.hint.startswith("It is what this makes: mplus train --config")
    assert refused.value.hint.endswith("recipes/default/base.yaml")


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path):
    folder = save_backbone(tmp_path, vocab_size=200)
    with pytest.raises(UsageError, match="259 tokens, more than the 200"):
        starting_model(tiny_recipe(1, folder))


def test_precision(backbone):
    model = starting_model(tiny_recipe(1, backbone, precision="bfloat16"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_rotary_frequencies_follow_recipe_then_checkpoint(tmp_path, backbone):
    rounded = {"rope_frequency_dtype": "bfloat16"}
    model = starting_model(tiny_recipe(1, backbone, memory=rounded))
    frequencies = model.model.rotary_emb.inv_freq
    assert torch.equal(frequencies, frequencies.bfloat16().float())
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert starting_model(tiny_recipe(2, tmp_path)).config.rope_frequency_dtype == "bfloat16"


# -- from nothing --


def base_recipe(folder, **sections):
    sizes = {name: size for name, size in BACKBONE.items() if name != "vocab_size"}
    backbone = {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True} | sizes
    return tiny_recipe("base", folder, new_backbone=backbone, **sections)


def test_a_backbone_from_nothing(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    model = starting_model(base_recipe(tmp_path))
    assert model.config.text_config.vocab_size == 259 and model.config.trained_stages == ["base"]
    assert set(all_groups(model)) == {"backbone", "bos_embedding", "new_memory_positional_emb"}
    layer = model.model.layers[0]
    for output in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
        assert 0 < output.std() < 0.02 * output.shape[1] ** -0.5  # layers add next to nothing, but let gradient through
    assert layer.self_attn.q_proj.weight.std().item() == pytest.approx(32**-0.5, rel=0.1)
    assert (layer.self_attn.k_norm.weight == 1.5).all() and (layer.input_layernorm.weight == 1).all()
    assert model.bos_embedding.std() > 0.5
    again, other = starting_model(base_recipe(tmp_path)), starting_model(base_recipe(tmp_path, seed=6))
    assert torch.equal(model.model.embed_tokens.weight, again.model.embed_tokens.weight)
    assert not torch.equal(model.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_stage_1_goes_on_from_the_base_stage(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    base = starting_model(base_recipe(tmp_path))
    folder = tmp_path / "base"
    base.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    model = starting_model(tiny_recipe(1, folder))
    weights = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert all(torch.equal(weights[name], value) for name, value in base.state_dict().items())
    assert "write_adapter" in all_groups(model) and model.config.trained_stages == ["base", 1]
    with pytest.raises(CheckpointError, match="needs write_adapter, read_adapter, and"):
        starting_model(tiny_recipe(2, folder))
    ids = torch.tensor([[50, 51, 52]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, base(ids).logits)
