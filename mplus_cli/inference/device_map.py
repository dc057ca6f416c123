"""Layers over several devices: `--device-map auto`, or a list of devices, each perhaps with its number of layers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.placement import Span, layer_bytes, share_out, spans_of
from mplus_cli.errors import UsageError
from mplus_cli.inference.devices import find_device

AUTO = "auto"
KEPT_FREE = 0.1  # of a GPU's free memory, for activations and the allocator
HINT = "auto, or for example cuda:0,cuda:1 or cuda:0=20,cuda:1=12 (numbers of layers)"
CPU_STAGES = 2  # that one interpreter keeps busy: between two operations only one thread of it runs


@dataclass(frozen=True)
class DeviceMap:
    """Where layers go, in order.

    Attributes:
        counts: layers of each device; None for as even as their memory allows.
    """

    devices: tuple[torch.device, ...]
    counts: tuple[int, ...] | None = None


def parse_device_map(text: str, device: str | None = None) -> DeviceMap | None:
    """The map that a user names; None where `auto` finds no second GPU, so that there is nothing to spread.

    Args:
        device: of `--device`, which says something else.

    Raises:
        UsageError: unknown or missing devices, or both options.
    """
    if device is not None:
        raise UsageError(f"--device {device} and --device-map {text} contradict each other", hint="give one of them")
    if text == AUTO:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return DeviceMap(tuple(torch.device("cuda", n) for n in range(count))) if count > 1 else None
    pairs = [part.partition("=") for part in text.replace(" ", "").split(",")]
    if not all(name for name, _, _ in pairs) or not all(n.isdecimal() and int(n) for _, sign, n in pairs if sign):
        raise UsageError(f"--device-map {text!r} is no list of devices", hint=HINT)
    given = [int(n) for _, sign, n in pairs if sign]
    if given and len(given) < len(pairs):
        raise UsageError(f"--device-map {text}: give the number of layers of every device, or of none", hint=HINT)
    return DeviceMap(tuple(find_device(name, "--device-map")[0] for name, _, _ in pairs), tuple(given) or None)


def spread(model: MPlusForCausalLM, wanted: DeviceMap) -> list[Span]:
    """Which layers of a model, which is on the host yet, go to which device.

    Raises:
        UsageError: numbers that are not those of the model's layers, or too little memory.
    """
    layers = len(model.model.layers)
    if wanted.counts is not None:
        if sum(wanted.counts) != layers:
            raise UsageError(f"--device-map places {sum(wanted.counts)} layers; the model has {layers}.", hint=HINT)
        return spans_of(wanted.counts, wanted.devices)
    one, rest = layer_bytes(model)
    counts = share_out(layers, one, rest, [_free(device) for device in wanted.devices])
    if sum(counts) < layers:
        raise UsageError(
            f"{layers} layers with their memory, {one / 1e9:.1f} GB each, do not fit on "
            f"{', '.join(map(str, wanted.devices))}: {sum(counts)} do.",
            hint="more GPUs, --dtype bfloat16, or a memory of other sizes",
        )
    return spans_of(counts, wanted.devices)


def spans_text(spans: Sequence[Span]) -> str:
    """`16 layers on cuda:0, 16 on cuda:1`."""
    first, *others = spans
    return ", ".join([f"{len(first)} layers on {first.device}", *(f"{len(one)} on {one.device}" for one in others)])


def write_stages(model: MPlusForCausalLM, pipeline: bool | None) -> int:
    """Stages of writing (see `core.pipeline`): as asked, else one for each device.

    On a CPU a pipeline is a matter of asking: at 56 million parameters two stages of one thread gain a little over two
    threads in one, and at a million handing over from thread to thread costs more than it brings
    (`benchmarks/pipeline.py`).
    """
    if pipeline is False:
        return 1
    if len(model.spans) > 1:
        return len(model.spans)
    return CPU_STAGES if pipeline else 1


def _free(device: torch.device) -> int:
    """Bytes that a device has for a model."""
    if device.type != "cuda":
        return sys.maxsize  # main memory is shared, and pages
    return int(torch.cuda.mem_get_info(device)[0] * (1 - KEPT_FREE))
