"""What training tests share: a tiny backbone on disk, tiny recipes of every stage, random documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mplus_cli.config import merge
from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.training.examples import Example, Question
from mplus_cli.training.groups import select
from mplus_cli.training.recipe import Recipe
from mplus_cli.training.recipe_files import recipe_from
from mplus_cli.training.rows import RowState
from mplus_cli.training.step import StepRunner
from mplus_cli.training.tasks.choosing import TaskDraw, TaskName
from tests.fixtures import byte_tokenizer

BACKBONE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 259,
}
MEMORY = {
    "memory_tokens_per_write": 4,
    "short_term_size": 16,
    "retrieval_budget": 6,
    "retriever_size": 8,
    "chunk_size": 12,
    "lora": {"r": 2, "alpha": 4},
}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def save_backbone(folder: Path, seed: int = 0, family: str = "llama", **sizes: Any) -> Path:
    """A plain Hugging Face model with random weights and the byte tokenizer."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **(BACKBONE | SPECIAL | sizes))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def tiny_recipe(stage: Any, model: Path | str = "nowhere", **sections: Any) -> Recipe:
    """A recipe of a stage with tiny sizes, float32; `tasks={...}` and the like are merged in."""
    memory: dict[str, Any] = dict(MEMORY)
    if stage == 3:
        memory["long_term_capacity"] = 40
    if stage == "base":
        memory["lora"] = None
    below = {
        "stage": stage,
        "model": str(model),
        "steps": 20,
        "seed": 5,
        "precision": "float32",
        "memory": memory,
        "data": {"min_chunk": 6, "max_chunk": 12, "window": 48, "batch_size": 2},
        "optimizer": {"lr": 1e-2, "retriever_lr": 1e-2, "lr_scaling": "none"},
    }
    return recipe_from(merge(below, sections))


def tiny_memory_model(recipe: Recipe, seed: int = 0) -> MPlusForCausalLM:
    """A random model of a recipe's sizes, with adapters, BOS rows and everything else different from zero."""
    memory = recipe.memory
    text = AutoConfig.for_model("llama", **(BACKBONE | SPECIAL))
    lora = None if memory.lora is None else {"r": memory.lora.r, "alpha": memory.lora.alpha}
    config = MPlusConfig(
        text_config=text,
        memory_tokens_per_write=memory.memory_tokens_per_write,
        short_term_size=memory.short_term_size,
        long_term_capacity=memory.long_term_capacity or (memory.retrieval_budget if recipe.has_retrievers else 0),
        retrieval_budget=memory.retrieval_budget,
        retriever_size=memory.retriever_size,
        retriever_score=memory.retriever_score,
        eviction=memory.eviction,
        merge_every=2,
        initial_recall_frequency=3.0,
        write_query="write_retriever" in recipe.trained_groups,
        lora=lora,
    )
    torch.manual_seed(seed)
    model = MPlusForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.5 if "retrievers" in name else 0.2, generator=generator)
    select(model, recipe.trained_groups)
    return model


def runner_of(recipe: Recipe, seed: int = 0, model: MPlusForCausalLM | None = None, rank: int = 0) -> StepRunner:
    """A runner on a tiny random model."""
    model = tiny_memory_model(recipe, seed) if model is None else model
    return StepRunner(model, recipe, RowState(model, recipe, rank), recipe.seed, byte_tokenizer())


def documents(
    count: int, contexts: int | list[int] = 3, seed: int = 0, chunk: int = 10, target: int = 9, questions: int = 0
) -> list[Example]:
    """Random documents.

    Args:
        contexts: chunks of each, or of the first, second, ... document.
        chunk: tokens of the longest chunk; the others are up to two shorter.
        questions: about each context.
    """
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        many = contexts if isinstance(contexts, int) else contexts[number]
        chunks = [_tokens(rng, chunk - int(rng.integers(0, 3))) for _ in range(many)]
        asked = [
            Question(_tokens(rng, 4 + int(rng.integers(0, 3))), _tokens(rng, 2), context)
            for context in range(many)
            for _ in range(questions)
        ]
        ids = _tokens(rng, target + number)
        made.append(Example(f"document-{seed}-{number}", chunks, ids, list(ids), False, tuple(asked)))
    return made


def text_documents(texts: list[list[str]], target: str, repeat: bool = False) -> list[Example]:
    """Documents of given texts; one list of contexts each."""
    encode = byte_tokenizer().encode
    made = []
    for number, contexts in enumerate(texts):
        ids = encode(target, add_special_tokens=False)
        chunks = [encode(text, add_special_tokens=False) for text in contexts]
        made.append(Example(f"text-{number}", chunks, ids, list(ids), repeat))
    return made


def draw(task: TaskName, **fields: Any) -> TaskDraw:
    """A draw as the chooser makes it for this task, but caching."""
    usual: dict[str, Any] = {
        "full_memory": task in ("multi_chunk", "revisit"),
        "contexts": 1 if task == "two_chunk" else 99,
    }
    if task in ("two_chunk", "multi_chunk"):
        usual["cache"] = True
    return TaskDraw(task, **(usual | fields))


def gradients(model: MPlusForCausalLM) -> dict[str, torch.Tensor]:
    """Gradients that are there and not all zero."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: value for name, value in found.items() if value.abs().max() > 0}


def mean_loss(logits: torch.Tensor, labels: list[int]) -> torch.Tensor:
    """Next-token cross-entropy of one text, a token at a time. logits: [n, V]."""
    losses = [
        -torch.log_softmax(logits[place - 1].double(), 0)[label]
        for place, label in enumerate(labels)
        if place and label != -100
    ]
    return torch.stack(losses).mean()


def plain_read(model, ids, labels, memory=None, **explicit):
    """One text's loss through the core's own forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([ids]), memory=memory, **explicit).logits[0]
    return mean_loss(logits, labels).item()


def one_row(runner, row: int) -> Memory:
    """A memory of its own with the seed of one of a runner's rows."""
    memory = runner.rows.memory
    return Memory(memory.config, 1, [memory.seeds[row]])


def written(runner, row: int, contexts) -> Memory:
    """What a row's memory holds after these contexts, written by the core one at a time."""
    memory = one_row(runner, row)
    for ids in contexts:
        runner.model.inject(torch.tensor([ids]), memory)
    return memory


def expected_mean(values) -> float:
    return sum(values) / len(values)


def _tokens(rng: np.random.Generator, count: int) -> list[int]:
    return rng.integers(40, 130, count).tolist()
