"""What a run would take, before any of it is spent: parameters, tokens, steps, memory per GPU, time at an assumed rate.

The model is never loaded: its configuration is enough. Tokens come from a sample of the training text. Memory and time
are estimates with the assumptions that are printed beside them; the journal of a short run has the true figures.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from mplus_cli.console import duration, size
from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.core.loading import load_tokenizer
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.published_layout import convert_config, is_published
from mplus_cli.errors import CheckpointError, MPlusError
from mplus_cli.training.batches import BatchStream
from mplus_cli.training.engine import read_configuration
from mplus_cli.training.groups import all_groups
from mplus_cli.training.launch import Launch, count_processes
from mplus_cli.training.recipe import Recipe
from mplus_cli.training.recipe_files import deepspeed_file
from mplus_cli.training.stages import STAGES
from mplus_cli.training.starting import memory_configuration
from mplus_cli.training.status import PEAKS, peak_flops
from mplus_cli.training.tasks.choosing import TaskChooser

SAMPLE_BATCHES = 32
SAMPLE_STEPS = 1000
UTILISATION = 0.3  # of a GPU's peak
CPU_FLOPS = 2e10  # of one core, in float32
ACTIVATIONS = 18  # values of the hidden size that a layer keeps per token: norms, projections, attention, MLP inputs
MLP_ACTIVATIONS = 3  # values of the MLP's width


def estimate(recipe: Recipe, gpus: int | None = None, hostfile: Path | None = None) -> dict[str, Any]:
    """All figures, as plain data.

    Raises:
        CheckpointError: no model configuration where the recipe says.
    """
    world = count_processes(Launch(gpus, hostfile), None)
    model = _meta_model(recipe)
    groups = {name: sum(p.numel() for _, p in members) for name, members in all_groups(model).items()}
    trained = {name: groups.get(name, 0) for name in recipe.trained_groups}
    text = _sample(recipe)
    batches = recipe.steps * recipe.optimizer.accumulation * world
    tokens_per_batch = (text["written"] + text["read"]) * recipe.data.batch_size
    flops = _flops_per_batch(recipe, model, sum(trained.values()), text)
    rate, assumption = _rate(recipe, world)
    memory = _memory(recipe, model, sum(trained.values()), world, text)
    return {
        "stage": recipe.stage,
        "model": recipe.model,
        "parameters": sum(groups.values()),
        "groups": groups,
        "trained": trained,
        "steps": recipe.steps,
        "processes": world,
        "rows_per_step": recipe.data.batch_size * recipe.optimizer.accumulation * world,
        "sample": text,
        "tokens": round(batches * tokens_per_batch),
        "memory": memory,
        "memory_total": sum(memory.values()),
        "seconds": batches * flops / rate,
        "assumed": assumption,
    }


def render(figures: dict[str, Any]) -> str:
    """The figures for people."""
    trained, sample = figures["trained"], figures["sample"]
    many = sample["documents"]
    source = f"from a sample of {many}" if many else "assumed, of the longest there can be"
    lines = [
        f"stage {figures['stage']}, from {figures['model']}",
        f"parameters  {figures['parameters']:,}, of which {sum(trained.values()):,} train:",
        *(
            f"  {name.ljust(26)} {count:>14,}  {'trains' if name in trained else 'frozen'}"
            for name, count in figures["groups"].items()
        ),
        f"steps       {figures['steps']:,} of {figures['rows_per_step']} documents on {figures['processes']} "
        f"process{'es' * (figures['processes'] > 1)}",
        f"tokens      {figures['tokens']:,}",
        f"  {sample['written']:,.0f} written and {sample['read']:,.0f} read per document, {source}",
        f"memory      {size(figures['memory_total'])} per process:",
        *(f"  {name.ljust(26)} {size(count):>14}" for name, count in figures["memory"].items()),
        f"time        {duration(figures['seconds'])}, assuming {figures['assumed']}",
    ]
    return "\n".join(lines)


def _meta_model(recipe: Recipe) -> MPlusForCausalLM:
    """The model of the recipe without storage."""
    config = memory_configuration(recipe, _text_config(recipe), "write_retriever" in recipe.trained_groups)
    with torch.device("meta"):
        return MPlusForCausalLM(config)


def _text_config(recipe: Recipe) -> PretrainedConfig:
    if recipe.new_backbone is not None:
        sizes = {"vocab_size": len(load_tokenizer(recipe.model))} | recipe.new_backbone
        return AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    try:
        raw, _ = PretrainedConfig.get_config_dict(recipe.model)
    except OSError as error:
        raise CheckpointError(
            f"No model at {recipe.model!r}: neither a folder with config.json here nor a model on the hub.",
            "Set model=FOLDER or model=HUB-ID.",
        ) from error
    if is_published(raw):
        return convert_config(raw).text_config
    if raw.get("model_type") == MPlusConfig.model_type:
        return MPlusConfig.from_dict(raw).text_config
    return AutoConfig.for_model(raw.pop("model_type"), **raw)


def _sample(recipe: Recipe) -> dict[str, Any]:
    """Tokens per document that are written and read, averaged over the tasks of the first steps."""
    documents, problem = _documents(recipe)
    chooser = TaskChooser(recipe, recipe.seed)
    draws = [chooser.draw(step) for step in range(min(SAMPLE_STEPS, recipe.steps))]
    written = graded = read = 0
    for draw, (contexts, target) in zip(draws, itertools.cycle(documents), strict=False):
        if draw.task in ("two_chunk", "multi_chunk", "questions"):
            own = contexts[-draw.contexts :]
            learning = 1 if draw.task == "two_chunk" else recipe.tasks.gradient_writes
            written += sum(own)
            graded += sum(own[max(0, len(own) - learning) :])
        read += min(recipe.data.window, sum(contexts) + target) if draw.task == "full_context" else target
    return {
        "documents": 0 if problem else len(documents),
        "problem": problem,
        "written": written / len(draws),
        "written_with_gradient": graded / len(draws),
        "read": read / len(draws),
        "longest": max(min(recipe.data.window, sum(contexts) + target) for contexts, target in documents),
    }


def _documents(recipe: Recipe) -> tuple[list[tuple[list[int], int]], str | None]:
    """Lengths of contexts and target of some documents; of assumed ones, and why, where the text cannot be read."""
    try:
        stream = BatchStream(recipe.data, load_tokenizer(recipe.model), 0, 1, recipe.seed)
        examples = [example for _ in range(SAMPLE_BATCHES) for example in stream.next()]
    except MPlusError as error:
        data = recipe.data
        contexts = recipe.tasks.max_contexts[-1][1]
        return [([(data.min_chunk + data.max_chunk) // 2] * contexts, data.window)], error.message
    return [([len(context) for context in example.contexts], len(example.target)) for example in examples], None


def _flops_per_batch(recipe: Recipe, model: MPlusForCausalLM, trained: int, text: dict[str, Any]) -> float:
    """Operations of one batch of one process: matrices, and the attention to and projection of memory rows."""
    config, decoder = model.config.text_config, model.model.layers
    matrices = sum(p.numel() for p in decoder.parameters() if p.dim() > 1)
    layers, width = config.num_hidden_layers, config.hidden_size
    heads = config.num_key_value_heads * (getattr(config, "head_dim", None) or width // config.num_attention_heads)
    prefix = _prefix(recipe)
    head = config.vocab_size * width
    read = 2 * (matrices + head) + 4 * layers * width * (prefix + text["read"] / 2)
    projected = 4.0 * layers * width * heads * prefix  # keys and values of the prefix, once per read
    write = 2 * matrices + 4 * layers * width * recipe.memory.memory_tokens_per_write
    learning = 2 * min(trained, matrices)
    row = text["read"] * (2 * read + learning) + 2 * projected + text["written"] * write
    return recipe.data.batch_size * (row + text["written_with_gradient"] * (write + learning))


def _prefix(recipe: Recipe) -> int:
    kinds = STAGES[recipe.stage].memories
    short = recipe.memory.short_term_size if kinds != "none" else 0
    return short + (recipe.memory.retrieval_budget if kinds == "both" else 0)


def _memory(
    recipe: Recipe, model: MPlusForCausalLM, trained: int, world: int, text: dict[str, Any]
) -> dict[str, float]:
    """Bytes on one process by purpose."""
    config = model.config.text_config
    bytes_each = 2 if recipe.precision == "bfloat16" else 4
    zero = read_configuration(deepspeed_file(recipe)).get("zero_optimization", {})
    share = 1 / world if zero.get("stage", 0) >= 1 else 1.0
    gradient_share = 1 / world if zero.get("stage", 0) == 2 else 1.0
    offloaded = "offload_optimizer" in zero
    layers, width, rows = config.num_hidden_layers, config.hidden_size, recipe.data.batch_size
    longest, prefix = text["longest"], _prefix(recipe)
    kept = ACTIVATIONS * width + MLP_ACTIVATIONS * config.intermediate_size
    if recipe.loss.gradient_checkpointing:
        kept = width + kept / layers
    long_term = recipe.memory.long_term_capacity * (recipe.memory.retriever_size if model.retrievers else 0)
    figures: dict[str, float] = {
        "weights": sum(p.numel() for p in model.parameters()) * bytes_each,
        "gradients": trained * bytes_each * gradient_share,
        "optimizer": 0.0 if offloaded else trained * 12 * share,
        "short-term memory": 0.0
        if STAGES[recipe.stage].memories == "none"
        else rows * layers * width * bytes_each * recipe.memory.short_term_size,
        "long-term keys": rows * layers * long_term * bytes_each,
        "prefix in the backward pass": rows * layers * prefix * width * 3.0 * bytes_each,
        "activations": rows * layers * longest * kept * bytes_each,
        "logits": rows * longest * config.vocab_size * (bytes_each + 8.0),
    }
    return {name: count for name, count in figures.items() if count}


def _rate(recipe: Recipe, world: int) -> tuple[float, str]:
    """Operations per second of all processes, and what that assumes. A bfloat16 recipe is meant for GPUs."""
    if torch.cuda.is_available() or recipe.precision == "bfloat16":
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "A100"
        peak = PEAKS["A100"] if name == "A100" else peak_flops(torch.device("cuda")) or PEAKS["A100"]
        return world * UTILISATION * peak, f"{UTILISATION:.0%} of the {peak / 1e12:,.0f} TFLOP/s of {name}"
    threads = max(1, torch.get_num_threads())
    return world * threads * CPU_FLOPS, f"{CPU_FLOPS / 1e9:.0f} GFLOP/s per core, {threads} per process (CPU)"
