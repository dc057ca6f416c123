"""Copies a training checkpoint into the core model, checks that both compute the same numbers, and saves it.

python -m recipes.default_model.export WORK/far.pt assets/default --tokenizer TOKENIZER
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, Qwen3Config

from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from recipes.default_model.fast_model import PROJECTIONS, FastModel, Sizes

LONG_TERM_CAPACITY = 65_536
TOLERANCE = 2e-4


def core_config(s: Sizes, end_of_line: int) -> MPlusConfig:
    """The core's configuration of these sizes. An answer is one line, so a newline ends generation."""
    backbone = Qwen3Config(
        vocab_size=s.vocabulary,
        hidden_size=s.hidden,
        intermediate_size=s.mlp,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads,
        head_dim=s.head_dim,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": s.rope_theta},
        rms_norm_eps=s.eps,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_of_line,
        pad_token_id=None,
    )
    return MPlusConfig(
        backbone,
        memory_tokens_per_write=s.memory_tokens,
        short_term_size=s.short_term,
        long_term_capacity=LONG_TERM_CAPACITY,
        retrieval_budget=s.budget,
        chunk_size=s.chunk,
        retriever_size=s.retriever,
        retriever_score="log_sum_exp",
        lora={"r": s.lora_rank, "alpha": s.lora_alpha, "target_modules": list(PROJECTIONS)},
    )


def core_tensors(model: FastModel) -> dict[str, Tensor]:
    """The parameters under the core's names."""
    out = {
        "model.embed_tokens.weight": model.embed,
        "lm_head.weight": model.embed,
        "model.norm.weight": model.final_norm,
        "new_memory_positional_emb": model.new_memory[None, None],
        "bos_embedding": torch.stack([layer.bos for layer in model.layers]),
    }
    for i, layer in enumerate(model.layers):
        block, search = f"model.layers.{i}.", f"retrievers.{i}."
        out[block + "input_layernorm.weight"] = layer.input_norm
        out[block + "post_attention_layernorm.weight"] = layer.post_norm
        out[block + "self_attn.q_norm.weight"] = layer.q_norm
        out[block + "self_attn.k_norm.weight"] = layer.k_norm
        for name, weight in layer.weights.items():
            path = block + ("mlp." if re.match("gate|up|down", name) else "self_attn.") + name
            out[path + (".base_layer.weight" if name in PROJECTIONS else ".weight")] = weight
            if name in PROJECTIONS:
                for mode in ("write", "read"):
                    out[f"{path}.lora_A.{mode}.weight"] = layer.adapters[mode][name].a
                    out[f"{path}.lora_B.{mode}.weight"] = layer.adapters[mode][name].b
        for name, pair in (("query_proj", layer.query), ("key_proj", layer.key)):
            out[f"{search}{name}.0.weight"], out[f"{search}{name}.2.weight"] = pair[0].weight, pair[1].weight
    return {k: v.detach().clone() for k, v in out.items()}


@torch.no_grad()
def largest_difference(model: FastModel, core: MPlusForCausalLM) -> float:
    """The core against the training form: a chain of two writes, then the logits of a read of both."""
    chunks = torch.randint(0, model.s.vocabulary, (2, 1, model.s.chunk))
    first = model.write(chunks[0], None)
    second = model.write(chunks[1], first)
    ours = [torch.stack(first, 1), torch.stack(second, 1)]
    theirs = [core.write(chunks[0], None)]
    theirs.append(core.write(chunks[1], theirs[0]))
    ids = chunks[1][:, 10:40]
    hidden, _ = model.read(ids, [torch.cat(pair, 1) for pair in zip(first, second, strict=True)])
    logits = core(ids, memory_tokens=torch.cat(theirs, 2)).logits
    differences = [(a - b).abs().max() / b.abs().max() for a, b in zip(ours, theirs, strict=True)]
    differences.append((model.logits(hidden) - logits).abs().max() / logits.abs().max())
    return float(torch.stack(differences).max())


def export(checkpoint: str | Path, folder: str | Path, tokenizer_folder: str | Path) -> float:
    """Writes the core checkpoint with its tokenizer; returns the largest relative difference between the two forms."""
    model = FastModel(Sizes(), torch.float32)
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    end_of_line = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    core = MPlusForCausalLM(core_config(model.s, end_of_line)).eval()
    core.load_state_dict(core_tensors(model), strict=True)
    difference = largest_difference(model, core)
    if difference > TOLERANCE:
        raise SystemExit(f"The core computes something else: relative difference {difference:.2e}")
    core.generation_config = GenerationConfig(
        max_new_tokens=24, do_sample=False, eos_token_id=end_of_line, pad_token_id=end_of_line
    )
    core.save_pretrained(folder)
    for file in Path(tokenizer_folder).glob("tokenizer*.json"):
        if file.resolve().parent != Path(folder).resolve():
            shutil.copy(file, folder)
    for file in Path(folder).iterdir():  # safetensors makes files that only their owner can read
        file.chmod(0o644)
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("folder")
    parser.add_argument("--tokenizer", required=True)
    args = parser.parse_args()
    difference = export(args.checkpoint, args.folder, args.tokenizer)
    size = sum(f.stat().st_size for f in Path(args.folder).iterdir()) / 1e6
    print(f"{args.folder}: {size:.1f} MB, largest relative difference to the training form {difference:.1e}")


if __name__ == "__main__":
    main()
