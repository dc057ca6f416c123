"""Load a model and its tokenizer for use, placed on a device, with errors a user can act on."""

from __future__ import annotations

import json
import logging
import os
import struct
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from mplus_cli.core.adapters import READ, WRITE
from mplus_cli.core.allocator import keep_freed_memory
from mplus_cli.core.host_embedding import embeddings_on_host
from mplus_cli.core.loading import load_tokenizer
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.placement import place
from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.errors import UsageError
from mplus_cli.inference.device_map import parse_device_map, spans_text, spread
from mplus_cli.inference.devices import Placement, choose_placement, limit_threads
from mplus_cli.inference.locate import BUNDLED_MODEL, model_folder
from mplus_cli.inference.quantize import check_kind, quantize_backbone

MERGED_WEIGHTS = 500_000_000  # up to so many, a copy of them with the adapter merged in is worth its memory


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use.

    Attributes:
        name: as the user or the state names it (`default`, a folder, a hub id).
    """

    name: str
    model: MPlusForCausalLM
    tokenizer: PreTrainedTokenizerBase
    placement: Placement


def load_model(
    name: str | None,
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    device_map: str | None = None,
) -> LoadedModel:
    """Load a model by folder, hub id, or `default` (also None), the bundled one.

    Args:
        quantize: "int8" or "int4": the backbone in less space (see `quantize`).
        device_map: layers over several devices, `auto` or their names (see `device_map`), in the place of `device`.

    Raises:
        CheckpointError: there is no such model, the hub cannot be reached, or the files are not a model's.
        UsageError: unknown device, dtype or quantization, or layers that do not fit.
        MissingExtraError: `quantize` without bitsandbytes.
    """
    quiet_libraries()
    devices = None if device_map is None else parse_device_map(device_map, device)
    if devices is not None and quantize is not None:
        raise UsageError("--quantize puts a model on one device", hint="leave out --quantize, or --device-map")
    if quantize is not None:
        check_kind(quantize)
    folder = model_folder(name)
    name = BUNDLED_MODEL if name is None else os.path.abspath(name) if os.path.isdir(name) else name
    weights = weight_count(folder)
    placement = choose_placement(device if devices is None else str(devices.devices[0]), dtype, weights)
    limit_threads(placement, weights)
    keep_freed_memory()
    model: Any = MPlusForCausalLM.from_pretrained(
        folder, dtype=placement.dtype, device="cpu" if quantize or devices else placement.device
    )
    if quantize is not None:
        quantize_backbone(model, quantize, placement.device)
        model.to(placement.device)
    if placement.device.type == "cuda":
        embeddings_on_host(model)
    if devices is not None:
        place(model, spread(model, devices))
        placement = replace(placement, reason=f"{spans_text(model.spans)}; {placement.reason}")
    elif device_map is not None:
        placement = replace(placement, reason=f"one device, no layers to spread; {placement.reason}")
    model.name_or_path = (
        name  # what a state file will remember: valid in other folders, and `default` on other machines
    )
    if weights <= MERGED_WEIGHTS:
        model.prepare_for_inference(READ, WRITE)
    return LoadedModel(name, model, load_tokenizer(folder), placement)


def load_for_state(
    state: MemoryState,
    name: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    device_map: str | None = None,
) -> LoadedModel:
    """The model a memory file names, or the one given, checked against the file's fingerprint.

    Its dtype is that of the memory, unless another is asked for; it is quantized as the one that made the memory.

    Raises:
        StateError: the memory was made by another model.
    """
    if quantize is not None:
        state.check_quantize(quantize)
    name, dtype = name or state.model_name or None, dtype or state.identity.get("dtype")
    loaded = load_model(name, device, dtype, state.quantize, device_map)
    state.check_model(loaded.model)
    return loaded


def quiet_libraries() -> None:
    """No warnings and bars of transformers, no retries of the hub line by line: errors say what a user can act on."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def weight_count(folder: str) -> int:
    """Parameters of a local safetensors checkpoint, from the file headers alone; 0 for anything else."""
    total = 0
    for file in sorted(Path(folder).glob("*.safetensors")) if Path(folder).is_dir() else []:
        try:
            with open(file, "rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                header = json.loads(stream.read(length)) if length < 1 << 27 else {}
        except (OSError, struct.error, ValueError):
            continue  # loading it will say what is wrong
        total += sum(prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")
    return total
