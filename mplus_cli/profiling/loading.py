"""The models of a cell: loaded or with random weights, adapters merged or not, or the plain decoder inside."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

from mplus_cli.core.adapters import READ, WRITE
from mplus_cli.core.allocator import keep_freed_memory
from mplus_cli.core.host_embedding import embeddings_on_host
from mplus_cli.core.merged import can_merge
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.systems.base_model import backbone, put_bos_rows, stood_alone
from mplus_cli.inference.devices import choose_placement, limit_threads
from mplus_cli.inference.models import MERGED_WEIGHTS, load_model, quiet_libraries
from mplus_cli.inference.quantize import quantize_backbone
from mplus_cli.profiling.configurations import built, known_configuration, random_model
from mplus_cli.profiling.subjects import TextSubject
from mplus_cli.profiling.systems import Asked


@dataclass(frozen=True)
class ModelChoice:
    """Which model, where, and how its adapters run; as in `Request`."""

    model: str | None
    random_weights: str | None
    device: str
    dtype: str
    adapters: str | None
    threads: int | None
    quantize: str | None = None


def load(choice: ModelChoice) -> MPlusForCausalLM:
    """The memory model of a choice, ready for inference."""
    if choice.random_weights is None:
        model = load_model(choice.model, choice.device, choice.dtype, choice.quantize).model
    else:
        config = known_configuration(choice.random_weights)
        placement = choose_placement(choice.device, choice.dtype)
        quiet_libraries()
        keep_freed_memory()
        home = torch.device("cpu") if choice.quantize else placement.device
        model = random_model(config, home, placement.dtype)
        if choice.quantize:
            quantize_backbone(model, choice.quantize, placement.device)
            model.to(placement.device)  # type: ignore[arg-type]
        if placement.device.type == "cuda":
            embeddings_on_host(model)
    count = sum(parameter.numel() for parameter in model.parameters())
    limit_threads(choose_placement(choice.device, choice.dtype), count)
    if choice.threads is not None:
        torch.set_num_threads(choice.threads)
    prepare(model, choice.adapters, count)
    return model.requires_grad_(False)


def prepare(model: MPlusForCausalLM, adapters: str | None, count: int) -> None:
    """Merge the adapters or not; by default as the other commands do.

    Raises:
        UsageError: merging was asked for where it would round the adapters away.
    """
    possible = bool(model.adapters.layers) and can_merge(model.adapters.layers, READ)
    if adapters == "merged" and not possible:
        raise UsageError(
            "--adapters merged: merging is exact in float32 alone; in a narrower dtype small adapters would be rounded "
            "away"
            if model.adapters.layers
            else "--adapters merged: this model has no adapters",
            hint="--dtype float32, or --adapters separate",
        )
    if adapters == "merged" or (adapters is None and count <= MERGED_WEIGHTS):
        model.prepare_for_inference(READ, WRITE)
    else:
        model.prepare_for_inference()


def text_subject(choice: ModelChoice, asked: Asked, length: int) -> TextSubject:
    """The plain decoder of a choice; of a checkpoint that was made with a memory, read as it was taught."""
    if choice.random_weights is not None:
        placement = choose_placement(choice.device, choice.dtype)
        quiet_libraries()
        keep_freed_memory()
        config = copy.deepcopy(known_configuration(choice.random_weights).text_config)
        plain = built(lambda: AutoModelForCausalLM.from_config(config), placement.device, placement.dtype).eval()
        plain.model.rotary_emb = type(plain.model.rotary_emb)(config).to(placement.device)
        limit_threads(placement, sum(parameter.numel() for parameter in plain.parameters()))
        if choice.threads is not None:
            torch.set_num_threads(choice.threads)
        return TextSubject(plain, asked, length)
    model = load(choice)
    if stood_alone(model):
        plain = backbone(model)
    else:
        plain = backbone(model, READ)
        put_bos_rows(plain, model.bos_embedding)
    return TextSubject(plain, asked, length)
