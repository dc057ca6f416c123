"""The model a stage starts from: a plain Hugging Face backbone, a checkpoint of an earlier stage, or random weights.

Weights are put into a model of the recipe's sizes; parts that a stage adds (adapters, BOS rows, retrievers) are made
anew. What the stage needs and the checkpoint lacks is named, with the stage that makes it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig

from mplus_cli.core.backbones import FAMILIES
from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.core.loading import DTYPES, load_tokenizer
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.published_layout import is_published
from mplus_cli.errors import CheckpointError, UsageError
from mplus_cli.training.copying_start import copying_start
from mplus_cli.training.groups import group_of
from mplus_cli.training.recipe import Recipe
from mplus_cli.training.recipe_files import default_run, shipped_recipes
from mplus_cli.training.stages import STAGES, StageName

# Of a new backbone. Attention that can be sharp from the start is found much sooner. Layers that add exactly nothing
# would let no gradient through to what lies before them.
QUERY_KEY_NORM, OUTPUT, EMBEDDING = 1.5, 0.01, 0.05


@dataclass
class _Source:
    """What a starting point brings."""

    text_config: PretrainedConfig
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    stages: list[StageName] | None = None  # it went through; None for models that do not say
    rope_frequency_dtype: str = "float32"
    generation_config: GenerationConfig | None = None
    copying: bool = False  # a new backbone that begins with the circuits of copying

    @property
    def groups(self) -> set[str]:
        return {group_of(name) for name in self.weights}


def starting_model(recipe: Recipe, attn_implementation: str | None = None) -> MPlusForCausalLM:
    """The model that the recipe's stage begins with, in its precision, on the CPU.

    Raises:
        CheckpointError: no model there, one of an unknown family, or one that lacks what the stage needs.
        UsageError: its tokenizer knows more tokens than it has.
    """
    if recipe.new_backbone is None:
        _raw_config(recipe.model)  # a missing model is more to say than a missing tokenizer
    tokenizer = load_tokenizer(recipe.model)
    source = _read_source(recipe, len(tokenizer))
    _check_stage(recipe, source)
    config = _configuration(recipe, source)
    if len(tokenizer) > config.text_config.vocab_size:
        raise UsageError(
            f"The tokenizer of {recipe.model} has {len(tokenizer)} tokens, "
            f"more than the {config.text_config.vocab_size} of the model.",
            "Put the model's own tokenizer beside it.",
        )
    return _assemble(recipe, source, config, attn_implementation)


# -- reading what there is --


def _read_source(recipe: Recipe, vocabulary: int) -> _Source:
    if recipe.new_backbone is not None:
        sizes = {"vocab_size": vocabulary} | recipe.new_backbone
        copying = sizes.pop("start", "random") == "copying"
        family = _known_family(sizes.pop("model_type"), "new_backbone.model_type")
        return _Source(AutoConfig.for_model(family, **sizes), stages=[], copying=copying)
    raw = _raw_config(recipe.model)
    if raw.get("model_type") == MPlusConfig.model_type or is_published(raw):
        return _read_memory_model(recipe)
    _known_family(raw.get("model_type"), recipe.model)
    plain = AutoModelForCausalLM.from_pretrained(recipe.model, dtype=DTYPES[recipe.precision])
    weights = dict(plain.state_dict())
    if plain.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    return _Source(plain.config, weights, stages=[], generation_config=plain.generation_config)


def _raw_config(name: str) -> dict[str, Any]:
    cause: OSError | None = None
    try:
        raw, _ = PretrainedConfig.get_config_dict(name)
    except OSError as error:
        raw, cause = {}, error
    if not raw:
        raise CheckpointError(
            f"No model at {name!r}: neither a folder with config.json here nor a model on the hub.",
            _maker(name) or "Set model=FOLDER or model=HUB-ID.",
        ) from cause
    return raw


def _maker(name: str) -> str | None:
    """What makes a model that a shipped recipe starts from: the recipe before it."""
    for recipe, path in shipped_recipes().items():
        if Path(name) == default_run(recipe) / "model":
            shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
            return f"It is what this makes: mplus train --config {shown}"
    return None


def _read_memory_model(recipe: Recipe) -> _Source:
    model = MPlusForCausalLM.from_pretrained(recipe.model, dtype=DTYPES[recipe.precision])
    weights = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    stages = getattr(model.config, "trained_stages", None)
    rope = model.config.rope_frequency_dtype
    return _Source(model.config.text_config, weights, stages, rope, model.generation_config)


def _known_family(name: Any, where: str) -> str:
    if name not in FAMILIES:
        raise CheckpointError(f"{where}: {name!r} cannot carry a memory; backbones are {', '.join(sorted(FAMILIES))}.")
    return name


def _check_stage(recipe: Recipe, source: _Source) -> None:
    """Refuse a starting point that lacks what the stage needs."""
    stage = STAGES[recipe.stage]
    missing = [(part, maker) for part, maker in stage.needs if part not in source.groups]
    if missing:
        maker = missing[0][1]
        parts = ", ".join(part for part, _ in missing)
        raise CheckpointError(
            f"Stage {stage.name} needs {parts}, and {recipe.model} has none; stage {maker} makes them.",
            f"mplus train --stage {maker} model={recipe.model}",
        )
    if stage.after and source.stages is not None and not set(stage.after) & set(source.stages):
        been = ", ".join(str(name) for name in source.stages) or "none"
        raise CheckpointError(
            f"Stage {stage.name} goes on from stage {stage.after[0]}; {recipe.model} has been through: {been}.",
            f"mplus train --stage {stage.after[0]} model={recipe.model}",
        )


# -- making the model --


def memory_configuration(
    recipe: Recipe, text_config: PretrainedConfig, write_query: bool, rope_frequency_dtype: str = "float32"
) -> MPlusConfig:
    """The configuration of a recipe's model on a backbone. write_query: whether it has the write-side projector."""
    memory = recipe.memory
    lora = None if memory.lora is None else asdict(memory.lora) | {"target_modules": list(memory.lora.target_modules)}
    return MPlusConfig(
        text_config=text_config,
        memory_tokens_per_write=memory.memory_tokens_per_write,
        short_term_size=memory.short_term_size,
        # Retrievers that are trained ahead of long-term memory need a model that may have one.
        long_term_capacity=memory.long_term_capacity or (memory.retrieval_budget if recipe.has_retrievers else 0),
        retrieval_budget=memory.retrieval_budget,
        chunk_size=memory.chunk_size,
        retriever_size=memory.retriever_size,
        retriever_layers=memory.retriever_layers,
        retriever_score=memory.retriever_score,
        write_query=write_query,
        eviction=memory.eviction,
        fill_rule=memory.fill_rule,
        lora=lora,
        rope_frequency_dtype=memory.rope_frequency_dtype or rope_frequency_dtype,
    )


def _configuration(recipe: Recipe, source: _Source) -> MPlusConfig:
    write_query = "write_retriever" in {*recipe.trained_groups, *source.groups}
    config = memory_configuration(recipe, source.text_config, write_query, source.rope_frequency_dtype)
    before = [name for name in source.stages or [] if name != recipe.stage]
    config.trained_stages = [*before, recipe.stage]
    return config


def _assemble(
    recipe: Recipe, source: _Source, config: MPlusConfig, attn_implementation: str | None
) -> MPlusForCausalLM:
    """Build without memory for weights, put in what there is, make the rest."""
    dtype = DTYPES[recipe.precision]
    config.dtype = dtype
    with torch.device("meta"):
        model = MPlusForCausalLM(config, attn_implementation)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    found = _fit(recipe, source, expected)
    generator = torch.Generator().manual_seed(recipe.seed)
    for name, shape in expected.items():
        if name not in found:
            found[name] = _fresh(name, shape, generator, found, source.text_config)
    if source.copying:
        copying_start(found, source.text_config, EMBEDDING, generator)
    model.load_state_dict({name: value.to(dtype) for name, value in found.items()}, strict=False, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    # Rotary tables are not stored, and on the meta device they were not computed.
    model.model.rotary_emb = type(model.model.rotary_emb)(config.text_config)
    model.round_rotary_frequencies()
    if source.generation_config is not None:
        model.generation_config = source.generation_config
    model.name_or_path = recipe.model
    return model


def _fit(recipe: Recipe, source: _Source, expected: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The source's weights under the names of the model, or what does not fit, by name."""
    # Where adapters are added, an adapted projection moves one level down.
    plain = {name.replace(".base_layer", ""): name for name in expected}
    renamed = {name if name in expected else plain.get(name, name): value for name, value in source.weights.items()}
    problems = [f"{name} is there, and the recipe has no place for it" for name in sorted(renamed.keys() - expected)]
    problems += [
        f"{name} is {tuple(value.shape)} instead of {expected[name]}"
        for name, value in sorted(renamed.items())
        if name in expected and tuple(value.shape) != expected[name]
    ]
    if recipe.new_backbone is None:
        problems += [f"{name} is missing" for name in expected if name not in renamed and group_of(name) == "backbone"]
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:8])
        more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(
            f"{recipe.model} does not fit the recipe:\n{shown}{more}",
            "Set memory.lora, memory.retriever_size and memory.retriever_layers as in its config.json.",
        )
    return renamed


def _fresh(
    name: str,
    shape: tuple[int, ...],
    generator: torch.Generator,
    found: dict[str, torch.Tensor],
    text_config: PretrainedConfig,
) -> torch.Tensor:
    """First values of a parameter that the starting point does not bring, float32."""
    group = group_of(name)
    if group == "bos_embedding":
        return _bos_rows(shape, generator, found, text_config)
    if group == "new_memory_positional_emb" or ".lora_B." in name or name.endswith("bias"):
        return torch.zeros(shape)
    if group == "backbone":
        return _fresh_backbone(name, shape, generator)
    # Linear layers' own rule, for adapters (A) and projectors.
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _fresh_backbone(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Unit-variance projections whose layers add next to nothing at first: small models learn fastest from there."""
    if len(shape) == 1:
        return torch.full(shape, QUERY_KEY_NORM if name.endswith(("q_norm.weight", "k_norm.weight")) else 1.0)
    values = torch.randn(shape, generator=generator)
    if "embed_tokens" in name or name.startswith("lm_head"):
        return values * EMBEDDING
    return values * (OUTPUT if ".o_proj." in name or ".down_proj." in name else 1.0) / math.sqrt(shape[1])


def _bos_rows(
    shape: tuple[int, ...], generator: torch.Generator, found: dict[str, torch.Tensor], text_config: PretrainedConfig
) -> torch.Tensor:
    """In every layer the embedding of the backbone's begin (else end) token, as published; random without any."""
    known = [
        token[0] if isinstance(token, list) else token
        for token in (text_config.bos_token_id, text_config.eos_token_id)
        if token is not None
    ]
    if not known or "model.embed_tokens.weight" not in found:
        return torch.randn(shape, generator=generator)
    return found["model.embed_tokens.weight"][known[0]].float().expand(shape).clone()
