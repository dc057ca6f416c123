"""From a checked request to cells: the model's configuration, the estimate of every cell, and what cannot be run."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from mplus_cli.console import size
from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.core.published_layout import convert_config, is_published
from mplus_cli.errors import CheckpointError, UsageError
from mplus_cli.inference.devices import Placement, choose_placement
from mplus_cli.inference.locate import model_folder
from mplus_cli.inference.models import MERGED_WEIGHTS
from mplus_cli.inference.quantize import check_kind, check_widths
from mplus_cli.machine import host_memory
from mplus_cli.profiling.configurations import CONFIGURATIONS, configuration_of, known_configuration
from mplus_cli.profiling.estimate import Cell, estimate, positions
from mplus_cli.profiling.gpus import Gpu
from mplus_cli.profiling.loading import ModelChoice
from mplus_cli.profiling.request import DEFAULT_LENGTHS, Request, length_text
from mplus_cli.profiling.sizes import Fill, Sizes
from mplus_cli.profiling.systems import Asked, default_systems, find_systems

NEW_TOKENS = 16
LIBRARIES = 400 << 20  # bytes that Python and torch hold before a model is there


@dataclass(frozen=True)
class Planned:
    """A cell, what it would cost, and why it cannot be run, if so."""

    cell: Cell
    estimate: dict[str, Any]
    obstacle: str | None

    @property
    def title(self) -> str:
        return f"{self.cell.asked.label} at {length_text(self.cell.length)}"


@dataclass(frozen=True)
class Plan:
    """All cells of a request.

    Attributes:
        name: of the model, for people; facts: for the results.
    """

    request: Request
    name: str
    facts: dict[str, Any]
    placement: Placement
    choice: ModelChoice
    sizes: Sizes
    cells: tuple[Planned, ...]

    @property
    def obstacles(self) -> list[Planned]:
        return [one for one in self.cells if one.obstacle]


def make_plan(request: Request, gpu: Gpu | None = None) -> Plan:
    """Check everything, and estimate every cell. Loads no weights.

    Args:
        gpu: plan for this one, which need not be here; for estimates.

    Raises:
        UsageError: unknown systems, no such device, or settings that the model does not allow.
        CheckpointError: no such model.
    """
    name, config, chosen = _configuration(request)
    weights = Sizes.of(config, torch.float32).memory_model
    placement = gpu.placement(request.dtype) if gpu else choose_placement(request.device, request.dtype, weights)
    sizes = Sizes.of(config, placement.dtype)
    merged = request.quantize is None and _merged(request.adapters, sizes, placement)
    texts = request.systems or default_systems(
        placement.device.type == "cuda", config.has_long_term_memory, request.quantize is None
    )
    systems = find_systems(texts, request.offload)
    if request.quantize is not None:
        _check_quantize(request.quantize, sizes, systems)
    lacking = [asked.label for asked in systems if asked.name == "mplus" and not config.has_long_term_memory]
    if lacking:
        raise UsageError(f"{lacking[0]} needs long-term memory; the model {name} has none", hint="--system memoryllm")
    cells = []
    for length in request.lengths or DEFAULT_LENGTHS:
        for asked in systems:
            prompt = request.prompt_for(length)
            tokens = NEW_TOKENS if request.new_tokens is None else request.new_tokens
            cell = Cell(asked, length, prompt, tokens, request.stored or 0, merged, placement.device, request.quantize)
            cost = estimate(sizes, cell)
            cells.append(Planned(cell, cost, _obstacle(sizes, cell, cost, gpu)))
    choice = ModelChoice(
        model=chosen,
        random_weights=request.random_weights,
        device=str(placement.device),
        dtype=str(placement.dtype).removeprefix("torch."),
        adapters=request.adapters,
        threads=request.threads,
        quantize=request.quantize,
    )
    facts = {
        "name": name,
        "parameters": sizes.memory_model,
        "dtype": choice.dtype,
        "device": choice.device,
        "adapters": "merged" if merged else "separate",
        "quantize": request.quantize,
    }
    return Plan(request, name, facts, placement, choice, sizes, tuple(cells))


def _configuration(request: Request) -> tuple[str, MPlusConfig, str | None]:
    """Name, configuration, and what `load_model` takes; of `--model FOLDER` too if it has no weights, to say so."""
    if request.random_weights is not None:
        return f"{request.random_weights} with random weights", known_configuration(request.random_weights), None
    folder = model_folder(request.model)
    name = request.model or "default"
    path = Path(folder)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{folder} is not a model folder: it has no config.json")
        if not any(path.glob("*.safetensors")):
            raise CheckpointError(
                f"{folder} has a configuration and no weights", hint=f"mplus profile --random-weights {folder}"
            )
        return name, configuration_of(path / "config.json"), request.model
    try:
        raw, _ = PretrainedConfig.get_config_dict(folder)
    except OSError as error:
        known = f" or --random-weights {folder}" if folder in CONFIGURATIONS else ""
        raise CheckpointError(
            f"No model at {folder!r}: neither a folder here nor a model on the hub.",
            f"--model FOLDER, --model HUB/ID{known}",
        ) from error
    return name, convert_config(raw) if is_published(raw) else MPlusConfig.from_dict(raw), request.model


def _check_quantize(kind: str, sizes: Sizes, systems: Sequence[Asked]) -> None:
    """Raises UsageError: an unknown kind, matrices that it does not take, or systems without memory."""
    check_kind(kind)
    plain = [asked.label for asked in systems if not asked.has_memory]
    if plain:
        raise UsageError(
            f"--quantize is for systems with memory; {', '.join(plain)} run the plain backbone", hint="--system mplus"
        )
    check_widths(kind, {name: width for name, (width, _) in sizes.matrices.items()})


def _merged(adapters: str | None, sizes: Sizes, placement: Placement) -> bool:
    """Whether adapters will run merged (see `core.merged.can_merge`).

    Raises:
        UsageError: that was asked for and cannot be.
    """
    possible = bool(sizes.adapted) and placement.dtype == torch.float32
    if adapters == "merged" and not possible:
        raise UsageError(
            "--adapters merged: in a narrower dtype than float32 the sum would be rounded, and small adapters away"
            if sizes.adapted
            else "--adapters merged: this model has no adapters",
            hint="--dtype float32, or --adapters separate" if sizes.adapted else None,
        )
    return possible and (adapters == "merged" or (adapters is None and sizes.memory_model <= MERGED_WEIGHTS))


def _obstacle(sizes: Sizes, cell: Cell, cost: dict[str, Any], gpu: Gpu | None) -> str | None:
    """Why the model or the machine does not allow a cell, or None."""
    text, limit = cell.asked, positions(sizes)
    if text.has_memory:
        fill = Fill.after(sizes, cell.length - cell.prompt, sizes.chunk, text.name == "mplus", cell.stored)
        needed = fill.prefix + cell.prompt + cell.new_tokens
    else:
        needed = text.read_at_most(cell.length, limit)
    if needed > limit:
        return f"{length_text(needed)} tokens at once are more than the model's {limit:,} positions"
    held = cost["peak_bytes"]
    if gpu is not None:
        return None if held <= gpu.memory else f"about {size(held)} are more than the {size(gpu.memory)} of {gpu.name}"
    if cell.gpu:
        with contextlib.suppress(RuntimeError, AssertionError):
            room = torch.cuda.get_device_properties(cell.device).total_memory
            if held > room:
                return f"about {size(held)} are more than the GPU's {size(room)}"
        held = sum(cost["host_bytes"].values())
    room = available_memory()
    if room and held + LIBRARIES > room:
        return f"about {size(held + LIBRARIES)} are more than the {size(room)} of main memory that are free"
    return None


def available_memory() -> int:
    """Bytes of main memory that a process can have now, and may; 0 where the system does not say."""
    rooms = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        rooms.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")))
    with contextlib.suppress(ImportError, OSError):
        import resource

        allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
        if allowed != resource.RLIM_INFINITY:
            rooms.append(allowed)
    return min(rooms) if rooms else host_memory()
