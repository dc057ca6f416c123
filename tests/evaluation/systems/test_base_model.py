"""The base model made of a memory model: the right weights, the right start, nothing of the memory."""

from __future__ import annotations

import pytest
import torch

from mplus_cli.core.loading import encode
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.prompting import Prompt, generate
from mplus_cli.evaluation.system import SystemSettings
from mplus_cli.evaluation.systems.base_model import backbone, base_model, start_tokens, stood_alone
from tests.core.helpers import tiny_model as family_model
from tests.evaluation.systems.helpers import ask, bundled, loaded, random_items, system, texts
from tests.fixtures import book, byte_tokenizer, tiny_model

TOKENIZER = byte_tokenizer()


def ids_of(text: str, tokenizer=TOKENIZER) -> torch.Tensor:
    return torch.tensor([encode(tokenizer, text)])


def test_a_backbone_made_inside_a_memory_model_reads_as_the_memory_model_does_without_memory():
    model, tokenizer = bundled().model, bundled().tokenizer
    base = base_model(bundled(), SystemSettings())
    assert base.kind == {"model": "backbone of default", "adapter": "read", "start": "a BOS row in every layer"}
    ids = ids_of(book(3), tokenizer)
    with torch.inference_mode():
        expected = model(ids).logits
        found = base.model(torch.cat([torch.tensor([base.start]), ids], dim=1)).logits[:, 1:]
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_padded_prompts_keep_their_start():
    base = base_model(bundled(), SystemSettings())
    asked = [Prompt(encode(base.tokenizer, text), 8) for text in (book(2), "Who?", "The miller of")]
    together = generate(base.model, base.tokenizer, asked, base.ends, "none", base.start)
    alone = [generate(base.model, base.tokenizer, [one], base.ends, "none", base.start)[0] for one in asked]
    assert [one.raw for one in together] == [one.raw for one in alone]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_backbone_that_stood_alone_is_read_without_adapters(family):
    """Hugging Face's own class with the bare weights, shared; the adapters change nothing."""
    model = family_model(family)
    assert stood_alone(model)
    plain = backbone(model)
    assert type(plain).__name__.lower() == f"{family}forcausallm"
    shared = model.model.layers[0].self_attn.q_proj.base_layer.weight
    assert plain.model.layers[0].self_attn.q_proj.weight.data_ptr() == shared.data_ptr()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        expected = plain(ids).logits
        for name, parameter in model.named_parameters():
            if ".lora_" in name or "bos_embedding" in name:
                parameter.zero_()
        assert torch.equal(plain(ids).logits, expected)
        bare = model(ids).logits  # with an adapter of zeros, behind BOS rows of zeros
    assert not torch.allclose(bare, expected, atol=1e-3)


def test_merging_an_adapter_leaves_the_shared_weights_alone():
    model = family_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = backbone(model, "read")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    weight, own = merged.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj
    change = own.lora_B["read"].weight @ own.lora_A["read"].weight * own.scaling["read"]
    torch.testing.assert_close(weight, own.base_layer.weight + change)


def test_what_says_that_a_backbone_stood_alone():
    model = family_model("llama")
    model.config.trained_stages = ["base", "stage1"]
    assert not stood_alone(model)
    model.config.trained_stages = ["stage1"]
    assert stood_alone(model)
    model.config.text_config.bos_token_id = None
    model.config.text_config.architectures = None
    assert not stood_alone(model)
    model.config.text_config.architectures = ["LlamaForCausalLM"]
    assert stood_alone(model)


class _WithBegin:
    """A tokenizer that begins texts with 0 as Llama's does."""

    def __call__(self, text: str, add_special_tokens: bool = True, **options):
        ids = TOKENIZER(text, add_special_tokens=False, **options)["input_ids"]
        return {"input_ids": [0, *ids] if add_special_tokens else ids}


def test_start_tokens_are_those_of_the_tokenizer():
    assert start_tokens(_WithBegin()) == [0]  # type: ignore[arg-type]
    assert start_tokens(TOKENIZER) == []


def test_the_begin_token_comes_exactly_once(monkeypatch):
    model = tiny_model()
    base = base_model(loaded(model), SystemSettings())
    object.__setattr__(base, "start", [0])
    read = []
    original = base.model.forward
    monkeypatch.setattr(base.model, "forward", lambda **given: read.append(given["input_ids"]) or original(**given))
    asked = [Prompt(encode(TOKENIZER, text), 1) for text in ("What?", "Who was it?")]
    generate(base.model, TOKENIZER, asked, [], "none", base.start)
    assert read[0][:, 0].tolist() == [0, 0]
    assert (read[0] == 0).sum(1).tolist() == [1 + 6, 1]  # padding is 0 too, and masked


def test_another_base_model_can_be_named(tmp_path):
    other = backbone(tiny_model(seed=7))
    other.save_pretrained(tmp_path / "plain")
    TOKENIZER.save_pretrained(tmp_path / "plain")
    named = system("closed-book", loaded(tiny_model()), base_model=str(tmp_path / "plain"))
    assert named.describe()["base"]["model"] == str(tmp_path / "plain")
    assert type(named.base.model).__name__ == "LlamaForCausalLM"
    items = random_items(2)
    own = texts(ask(system("closed-book", loaded(tiny_model())), items))
    assert texts(ask(named, items)) != own


def test_a_base_model_may_be_what_the_base_stage_made(tmp_path):
    """Its backbone is read, as the bundled model's is; not the one that answers from memory."""
    model = bundled()
    model.model.save_pretrained(tmp_path / "made")
    model.tokenizer.save_pretrained(tmp_path / "made")
    named = base_model(loaded(tiny_model()), SystemSettings(base_model=str(tmp_path / "made")))
    own = base_model(model, SystemSettings())
    ids = torch.tensor([[*own.start, 40, 41, 42]])
    assert named.start == own.start and named.window == own.window
    torch.testing.assert_close(named.model(ids).logits, own.model(ids).logits)
    assert named.kind["model"] == f"backbone of {tmp_path / 'made'}"


def test_a_base_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=f"--base-model {tmp_path} cannot be loaded"):
        system("full", loaded(tiny_model()), base_model=str(tmp_path))
