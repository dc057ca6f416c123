"""The model's promises beside parity: costs, gradients, generation, saving and strict loading."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, TextStreamer

from mplus_cli.core.adapters import lora_parameters
from mplus_cli.core.backbones import FAMILIES
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.prefix import MemoryPrefix
from mplus_cli.errors import CheckpointError, UsageError
from tests.core.helpers import filled_memory, random_ids, tiny_config, tiny_model

GREEDY = {"do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_a_write_computes_no_logits_and_builds_no_graph(model, monkeypatch):
    monkeypatch.setattr(model.lm_head, "forward", lambda *_: pytest.fail("a write computed logits"))
    memory = filled_memory(model, 6)
    assert not memory.short_term.values.requires_grad and memory.read_cache is None


def test_position_tables_are_made_once_per_pass(model, monkeypatch):
    memory, calls = filled_memory(model, 6), []
    original = model.model.rotary_emb.forward
    monkeypatch.setattr(model.model.rotary_emb, "forward", lambda *a, **k: calls.append(1) or original(*a, **k))
    model.inject(random_ids(1, 16), memory)
    assert len(calls) == 2  # prefix and text
    calls.clear()
    with torch.no_grad():
        model(random_ids(1, 5), memory=memory)
    assert len(calls) == 2


def test_short_term_keys_are_reused_while_memory_is_unchanged(model, monkeypatch):
    memory, made = filled_memory(model, 9), []
    original = MemoryPrefix._short_term
    monkeypatch.setattr(MemoryPrefix, "_short_term", lambda self, i: made.append(i) or original(self, i))
    first = model.generate(random_ids(1, 5), memory=memory, max_new_tokens=4, **GREEDY)
    assert made == [0, 1, 2]
    again = model.generate(random_ids(1, 5), memory=memory, max_new_tokens=4, **GREEDY)
    assert made == [0, 1, 2] and torch.equal(first, again)
    other = random_ids(1, 7, seed=8)
    with torch.no_grad():
        warm = model(other, memory=memory).logits
    memory.changed()
    with torch.no_grad():
        cold = model(other, memory=memory).logits
    torch.testing.assert_close(warm, cold, atol=1e-6, rtol=0)
    model.inject(random_ids(1, 16, seed=4), memory)
    made.clear()
    model.generate(random_ids(1, 5), memory=memory, max_new_tokens=1, **GREEDY)
    assert made == [0, 1, 2]


def test_only_what_the_last_questions_did_not_retrieve_is_projected(model):
    """The same logits as with nothing kept, over questions, writes and evictions, from fewer projected rows."""
    memory, projected, seen, saved = filled_memory(model, 9), [], [], 0
    original = model.project_memory
    model.project_memory = lambda index, rows: projected.append((index, rows.shape[-2])) or original(index, rows)
    try:
        with torch.no_grad():
            for step in range(12):
                if step % 5 == 2:
                    model.inject(random_ids(1, 16, seed=40 + step), memory)
                short = 1 + memory.short_term.fill[0]
                projected.clear()
                warm = model(random_ids(1, 5, seed=step), memory=memory).logits
                now = [set(memory.last_retrieval[i][0].positions.tolist()) for i in range(3)]
                for i in range(3):
                    count = sum(n for layer, n in projected if layer == i and n != short)
                    last, ever = (set().union(*(s[i] for s in seen[-n:])) for n in (1, len(seen)))
                    assert len(now[i] - ever) <= count <= len(now[i] - last), (step, i)
                    saved += len(now[i]) - count
                seen.append(now)
                fresh = copy.deepcopy(memory)
                fresh.changed()
                fresh.retrieved_rows.use("nothing")
                torch.testing.assert_close(
                    warm, model(random_ids(1, 5, seed=step), memory=fresh).logits, atol=1e-6, rtol=0
                )
    finally:
        del model.project_memory
    assert saved  # some were shared


def test_changed_weights_are_not_read_from_the_cache():
    model = tiny_model(seed=3)
    memory = filled_memory(model, 5)
    with torch.no_grad():
        model(random_ids(1, 5), memory=memory)
        model.model.layers[1].self_attn.k_proj.base_layer.weight.mul_(2)
        warm = model(random_ids(1, 5), memory=memory).logits
        memory.changed()
        torch.testing.assert_close(warm, model(random_ids(1, 5), memory=memory).logits, atol=1e-6, rtol=0)


def test_a_superseded_cache_is_refused(model):
    memory = filled_memory(model, 5)
    with torch.no_grad():
        first = model(random_ids(1, 5), memory=memory)
        model(random_ids(1, 5, seed=1), memory=memory)
        with pytest.raises(UsageError, match="overwritten"):
            model(random_ids(1, 1), past_key_values=first.past_key_values)


def test_only_the_last_position_gets_logits_at_prefill(model, monkeypatch):
    memory, rows = filled_memory(model, 5), []
    original = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda x: rows.append(x.shape[1]) or original(x))
    model.generate(random_ids(1, 9), memory=memory, max_new_tokens=3, **GREEDY)
    assert rows == [1, 1, 1]


def test_reading_in_training_mode_equals_reading_from_buffers(model):
    memory = filled_memory(model, 9)
    with torch.no_grad():
        cached = model(random_ids(1, 6), memory=memory).logits
    live = model(random_ids(1, 6), memory=memory)
    torch.testing.assert_close(cached, live.logits.detach(), atol=2e-5, rtol=0)
    live.logits.sum().backward()
    model.zero_grad()


def test_gradients_flow_through_a_write_into_the_write_adapter_only_from_the_read():
    """The two-chunk task: loss on a read over a write's fresh memory tokens trains both adapters."""
    model = tiny_model(seed=1)
    delta = model.write(random_ids(2, 16), None)
    loss = model(random_ids(2, 6, seed=1), memory_tokens=delta, labels=random_ids(2, 6, seed=1)).loss
    loss.backward()
    for adapter in ("write", "read"):
        grads = [p.grad for p in lora_parameters(model, adapter)]
        assert grads and all(g is not None and torch.isfinite(g).all() for g in grads)
        assert sum(float(g.abs().sum()) for g in grads) > 0
    assert model.new_memory_positional_emb.grad.abs().sum() > 0
    assert model.bos_embedding.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.retrievers.parameters())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_write_equals_a_plain_forward_with_memory_rows_as_inputs(family):
    """A slow reference: every layer run once over the concatenation [BOS | memory | text], without a cache."""
    model = tiny_model(family)
    memory = filled_memory(model, 5)
    ids, context = random_ids(1, 11), memory.context(0)[None]
    model.adapters.use("write")
    hidden, made = model.model.embed_tokens(ids), []
    for index, layer in enumerate(model.model.layers):
        rows = torch.cat([model.bos_embedding[index][None], context[:, index], hidden], dim=1)
        rows = torch.cat([rows[:, :-8], rows[:, -8:] + model.new_memory_positional_emb], dim=1)
        tables = model.position_tables(torch.arange(rows.shape[1])[None])
        out = layer(rows, attention_mask=None, position_embeddings=tables, past_key_values=None, use_cache=False)
        made.append(out[:, -8:])
        hidden = out[:, -11:]
    with torch.no_grad():
        torch.testing.assert_close(model.write(ids, context), torch.stack(made, dim=1), atol=2e-5, rtol=0)


def test_memory_lets_the_model_read_what_its_prompt_does_not_hold(model):
    """Different memories give different answers; the short-term-only view ignores the store."""
    prompt = random_ids(1, 6)
    with torch.no_grad():
        bare = model(prompt).logits
        one = model(prompt, memory=filled_memory(model, 9, seed=1)).logits
        two = model(prompt, memory=filled_memory(model, 9, seed=2)).logits
        memory = filled_memory(model, 9, seed=1)
        short = model(prompt, memory=memory.short_term_only()).logits
        again = model(prompt, memory=memory).logits
    assert not torch.allclose(bare, one) and not torch.allclose(one, two) and not torch.allclose(one, short)
    torch.testing.assert_close(one, again, atol=1e-6, rtol=0)


def test_generation_features(model):
    memory, prompt = filled_memory(model, 9), random_ids(1, 6)
    greedy = model.generate(prompt, memory=memory, max_new_tokens=8, **GREEDY)
    pieces: list[int] = []

    class Streamer(TextStreamer):
        def __init__(self) -> None:
            pass

        def put(self, value) -> None:
            pieces.extend(value.reshape(-1).tolist())

        def end(self) -> None:
            pieces.append(-1)

    model.generate(prompt, memory=memory, max_new_tokens=8, streamer=Streamer(), **GREEDY)
    assert pieces == [*greedy[0].tolist(), -1]
    torch.manual_seed(0)
    sampled = model.generate(
        prompt, memory=memory, max_new_tokens=8, do_sample=True, temperature=2.0, eos_token_id=None
    )
    assert sampled.shape == greedy.shape and not torch.equal(sampled, greedy)
    stop = int(greedy[0, 8])
    stopped = model.generate(prompt, memory=memory, max_new_tokens=8, do_sample=False, eos_token_id=stop)
    assert stopped[0, -1] == stop and stopped.shape[1] <= 9
    with pytest.raises(UsageError, match="num_beams"):
        model.generate(prompt, memory=memory, num_beams=2)


def test_rows_of_prompt_and_memory_must_match(model):
    with pytest.raises(UsageError, match="2 prompts for a memory of 1"):
        model(random_ids(2, 4), memory=filled_memory(model, 2))
    with pytest.raises(UsageError, match="empty"):
        model.inject(random_ids(2, 4), model.new_memory(2), torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]))


def test_saved_model_reloads_bit_identical(model, tmp_path):
    model.save_pretrained(tmp_path)
    for loaded in (MPlusForCausalLM.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert isinstance(loaded, MPlusForCausalLM)
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert all(
            torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
        )
        assert loaded.fingerprint()["weights_sha256"] == model.fingerprint()["weights_sha256"]
        assert loaded.fingerprint()["config_sha256"] == model.fingerprint()["config_sha256"]
        prompt = random_ids(1, 6)
        outs = [m.generate(prompt, memory=filled_memory(m, 9), max_new_tokens=5, **GREEDY) for m in (model, loaded)]
        assert torch.equal(*outs)


def test_carried_memory_and_tied_head_survive_saving(tmp_path):
    config = tiny_config("qwen3")
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    model = MPlusForCausalLM(config).eval()
    memory = filled_memory(model, 9)
    values, created = memory.short_term.ordered(0)
    store = memory.long_term[0].layers
    columns = [store[i].take(i, store[i].all_positions()) for i in range(3)]
    model.initial_memory = {
        "short_term.values": values,
        "short_term.created": created,
        "long_term.values": torch.stack([c[0] for c in columns]),
        "long_term.created": torch.stack([c[1] for c in columns]),
        "long_term.keys": torch.stack([torch.cat(list(s.keys.views())) for s in store]),
        "long_term.recall_frequency": torch.zeros(3, len(store[0])),
    }
    model.config.initial_short_term_size = 32
    model.save_pretrained(tmp_path)
    loaded = MPlusForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    with torch.no_grad():
        expected = model(random_ids(1, 4), memory=memory).logits
        actual = loaded(random_ids(1, 4), memory=loaded.new_memory()).logits
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def edited(folder, tmp_path, edit):
    target = tmp_path / "edited"
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    edit(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("bos_embedding"), r"Missing \(1\): bos_embedding"),
        (lambda t: [t.pop(k) for k in list(t) if ".read." in k], r"Missing \(36\): .*lora_A\.read.* and 24 more"),
        (lambda t: t.update({"model.extra": torch.zeros(1)}), r"Unexpected \(1\): model\.extra"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(5, 64)}), r"Wrong shape \(1\): lm_head.weight: \(5, 64\)"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_by_name(model, tmp_path, edit, message):
    model.save_pretrained(tmp_path / "good")
    with pytest.raises(CheckpointError, match=message):
        MPlusForCausalLM.from_pretrained(edited(tmp_path / "good", tmp_path, edit))


def test_other_unusable_checkpoints(model, tmp_path):
    with pytest.raises(CheckpointError, match="not a model folder|not a folder"):
        MPlusForCausalLM.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "good")
    config = tmp_path / "good" / "config.json"
    text = config.read_text()
    config.write_text(json.dumps(json.loads(text) | {"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="plain 'llama' model without memory"):
        MPlusForCausalLM.from_pretrained(tmp_path / "good")
    config.write_text(json.dumps(json.loads(text) | {"eviction": "newest", "retrieval_budget": 0}))
    with pytest.raises(CheckpointError, match="eviction is 'newest'.*retrieval_budget"):
        MPlusForCausalLM.from_pretrained(tmp_path / "good")
    config.write_text(text)
    weights = tmp_path / "good" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        MPlusForCausalLM.from_pretrained(tmp_path / "good")


def test_rotary_frequencies_are_rounded_where_the_weights_were_trained_so():
    plain, rounded = tiny_model(), tiny_model(rope_frequency_dtype="bfloat16")
    frequencies = plain.model.rotary_emb.inv_freq
    assert torch.equal(rounded.model.rotary_emb.inv_freq, frequencies.bfloat16().float())
    assert not torch.equal(rounded.model.rotary_emb.inv_freq, frequencies)


def test_adapters_switch_without_changing_what_trains():
    model = tiny_model()
    frozen = {n for n, p in model.named_parameters() if "base_layer" in n}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    with torch.no_grad():
        context = None
        first = model.write(random_ids(1, 16), context)
        model(random_ids(1, 4))
        assert torch.equal(model.write(random_ids(1, 16), context), first)
        assert not torch.equal(model.write(random_ids(1, 16), context, adapter="read"), first)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == frozen


def test_inference_mode_and_no_grad_may_alternate(model):
    """Buffers and blocks made in one mode are used in the other."""
    prompt = random_ids(1, 5)
    with torch.inference_mode():
        memory = filled_memory(model, 9)
        first = model(prompt, memory=memory).logits.clone()
    with torch.no_grad():
        torch.testing.assert_close(model(prompt, memory=memory).logits, first, atol=1e-6, rtol=0)
    model.inject(random_ids(1, 16), memory)
    with torch.inference_mode():
        model.inject(random_ids(1, 16), memory)
        model(prompt, memory=memory)


def test_generation_settings_come_with_the_checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, 7]}))
    assert MPlusForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == [2, 7]
