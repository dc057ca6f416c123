"""Checkpoints in and out: our layout and the published ones, strictly, plus the tokenizer and its BOS policy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

from mplus_cli.core import published_layout
from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.errors import CheckpointError

INITIAL_MEMORY = (
    "initial_memory.safetensors"  # short_term.{values,created}, long_term.{values,keys,created,recall_frequency}
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_checkpoint(
    cls,
    name: str,
    config: MPlusConfig | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
):
    """Build `cls` from a local folder or hub id, in our layout or a published one (see `from_pretrained`)."""
    raw = _read_config(name, revision)
    published = published_layout.is_published(raw)
    config = published_layout.convert_config(raw) if published else config or _own_config(raw, name)
    dtype = _resolve_dtype(dtype or config.dtype or "float32")
    weights, carried = _split(_read_tensors(name, revision), published)
    initial = published_layout.convert_memory(carried, config) if published else _read_memory(name, revision, config)
    model = _assemble(cls, config, weights, dtype, attn_implementation, name)
    if initial:
        stays = ("created", "recall_frequency")
        model.initial_memory = {k: v if k.endswith(stays) else v.to(dtype) for k, v in initial.items()}
    model.name_or_path = name
    with suppress(OSError):  # optional; chat checkpoints name further end tokens there
        model.generation_config = GenerationConfig.from_pretrained(name, revision=revision or "main")
    return model.eval()


def save_initial_memory(memory: dict[str, torch.Tensor], folder: str | Path) -> None:
    """Write the memory that a checkpoint carries beside its weights."""
    save_file({k: v.contiguous() for k, v in memory.items()}, Path(folder) / INITIAL_MEMORY, metadata={"format": "pt"})


def load_tokenizer(name: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Raises:
        CheckpointError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(str(name), revision=revision)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"No tokenizer could be loaded from {name}.", "Put tokenizer.json beside the model or pass another --model."
        ) from error


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of text, with nothing added. The one place that decides about BOS: never, every layer has its own."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _assemble(cls, config: MPlusConfig, weights, dtype: torch.dtype, attn_implementation: str | None, name: str):
    """Build on the meta device and put the given tensors in, or say by name what does not fit."""
    config.dtype = dtype
    with torch.device("meta"):
        model = cls(config, attn_implementation)
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    tied = {"lm_head.weight"} if config.tie_word_embeddings and "lm_head.weight" not in weights else set()
    problems = _differences(expected, {k: tuple(v.shape) for k, v in weights.items()}, tied)
    if problems:
        raise CheckpointError(f"The tensors of {name} do not fit its configuration. " + " ".join(problems))
    model.load_state_dict({k: v.to(dtype) for k, v in weights.items()}, strict=False, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    # Rotary tables are not stored, and on the meta device they were not computed.
    model.model.rotary_emb = type(model.model.rotary_emb)(config.text_config)
    model.round_rotary_frequencies()
    return model


def _differences(expected: dict[str, tuple], found: dict[str, tuple], optional: set[str]) -> list[str]:
    shapes = [
        f"{k}: {found[k]} instead of {expected[k]}" for k in sorted(found.keys() & expected) if found[k] != expected[k]
    ]
    groups = {
        "Missing": sorted(expected.keys() - found.keys() - optional),
        "Unexpected": sorted(found.keys() - expected.keys()),
        "Wrong shape": shapes,
    }
    return [f"{title} ({len(names)}): {_some(names)}." for title, names in groups.items() if names]


def _some(names: list[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _fetch(name: str, filename: str, revision: str | None) -> Path:
    cause: Exception | None = None
    try:
        path = cached_file(name, filename, revision=revision)
    except (OSError, ValueError) as error:
        path, cause = None, error
    if path is not None:
        return Path(path)
    if Path(name).is_dir():
        raise CheckpointError(f"{name} is not a model folder: it has no {filename}.") from cause
    raise CheckpointError(
        f"No model at {name!r}: it is not a folder here, and the hub did not give {filename}.",
        "Check the name, or download the model elsewhere and pass its folder.",
    ) from cause


def _read_config(name: str, revision: str | None) -> dict[str, Any]:
    path = _fetch(name, "config.json", revision)
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error


def _own_config(raw: dict[str, Any], name: str) -> MPlusConfig:
    if raw.get("model_type") != MPlusConfig.model_type:
        raise CheckpointError(
            f"{name} is a plain {raw.get('model_type', 'unknown')!r} model without memory.",
            "Pass an M+ or MemoryLLM checkpoint, for example --model YuWangX/mplus-8b.",
        )
    return MPlusConfig.from_dict(raw)


def _resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise CheckpointError(f"Unknown dtype {dtype!r}.", f"Use one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def _read_tensors(name: str, revision: str | None) -> dict[str, torch.Tensor]:
    index: Any = cached_file(
        name, "model.safetensors.index.json", revision=revision, _raise_exceptions_for_missing_entries=False
    )
    files = sorted(set(json.loads(Path(index).read_text())["weight_map"].values())) if index else ["model.safetensors"]
    return {key: tensor for file in files for key, tensor in _open(_fetch(name, file, revision))}


def _open(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a dict)
                yield key, tensors.get_tensor(key)
    except Exception as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}.") from error


def _split(
    tensors: dict[str, torch.Tensor], published: bool
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights under our names, and the carried memory of a published checkpoint."""
    if not published:
        return tensors, {}
    carried = {k: v for k, v in tensors.items() if published_layout.is_memory(k)}
    return {published_layout.convert_name(k): v for k, v in tensors.items() if k not in carried}, carried


def _read_memory(name: str, revision: str | None, config: MPlusConfig) -> dict[str, torch.Tensor] | None:
    if not config.initial_short_term_size:
        return None
    return dict(_open(_fetch(name, INITIAL_MEMORY, revision)))
