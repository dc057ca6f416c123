"""Load a model and its tokenizer for use, placed on a device, with errors a user can act on."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from mplus_cli.core.allocator import keep_freed_memory
from mplus_cli.core.loading import load_tokenizer
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.inference.devices import Placement, choose_placement, limit_threads
from mplus_cli.inference.locate import BUNDLED_MODEL, model_folder


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


def load_model(name: str | None, device: str | None = None, dtype: str | None = None) -> LoadedModel:
    """Load a model by folder, hub id, or `default` (also None), the bundled one.

    Raises:
        CheckpointError: there is no such model, the hub cannot be reached, or the files are not a model's.
        UsageError: unknown device or dtype.
    """
    folder = model_folder(name)
    name = BUNDLED_MODEL if name is None else os.path.abspath(name) if os.path.isdir(name) else name
    weights = weight_count(folder)
    placement = choose_placement(device, dtype, weights)
    limit_threads(placement, weights)
    keep_freed_memory()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    model = MPlusForCausalLM.from_pretrained(folder, dtype=placement.dtype, device=placement.device)
    model.name_or_path = (
        name  # what a state file will remember: valid in other folders, and `default` on other machines
    )
    return LoadedModel(name, model, load_tokenizer(folder), placement)


def load_for_state(
    state: MemoryState, name: str | None = None, device: str | None = None, dtype: str | None = None
) -> LoadedModel:
    """The model a memory file names, or the one given, checked against the file's fingerprint.

    Its dtype is that of the memory, unless another is asked for.

    Raises:
        StateError: the memory was made by another model.
    """
    loaded = load_model(name or state.model_name or None, device, dtype or state.identity.get("dtype"))
    state.check_model(loaded.model)
    return loaded


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
