"""Where time goes inside the model: regions around its parts, put there from outside for as long as one looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any

from torch import nn

from mplus_cli.core.long_term_memory import LayerStore
from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.prefix import MemoryPrefix

EMBED, ATTENTION, MLP, ADAPTERS, HEAD = "embed", "attention", "MLP", "adapters", "head"
MEMORY_KEYS = "memory to keys and values"
SCORING, GATHER, COPY, UPDATE = "retrieval scoring", "gather", "copy", "memory update"
PHASES = (EMBED, ATTENTION, MLP, ADAPTERS, HEAD, MEMORY_KEYS, SCORING, GATHER, COPY, UPDATE)
RETRIEVAL = (SCORING, GATHER, COPY)

Region = Callable[[str], AbstractContextManager[Any]]


@contextmanager
def regions(model: Any, region: Region, only: tuple[str, ...] = PHASES) -> Iterator[None]:
    """Enter `region(phase)` around every part of the model while the block runs. Regions nest.

    Args:
        model: a memory model or a plain decoder.
    """
    with ExitStack() as stack:
        for phase, module in _modules(model):
            if phase in only:
                stack.enter_context(_hooked(module, phase, region))
        if isinstance(model, MPlusForCausalLM):
            for phase, owner, name in _functions(model):
                if phase in only:
                    stack.enter_context(_wrapped(owner, name, phase, region))
        yield


def _modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    yield EMBED, model.get_input_embeddings()
    yield HEAD, model.lm_head
    yield HEAD, model.model.norm
    for layer in model.model.layers:
        yield ATTENTION, layer.self_attn
        yield MLP, layer.mlp
    for name, module in model.model.named_modules():
        if ".lora_" in name and isinstance(module, nn.Linear):
            yield ADAPTERS, module


def _functions(model: MPlusForCausalLM) -> list[tuple[str, Any, str]]:
    return [
        (MEMORY_KEYS, MemoryPrefix, "load"),
        (MEMORY_KEYS, model, "keys_values"),
        (SCORING, MemoryPrefix, "retrieve"),
        (COPY, LayerStore, "fetch"),
        (GATHER, LayerStore, "_stored"),
        (UPDATE, Memory, "append_rows"),
    ]


@contextmanager
def _hooked(module: nn.Module, phase: str, region: Region) -> Iterator[None]:
    opened: list[AbstractContextManager[Any]] = []

    def begin(*_: Any) -> None:
        opened.append(region(phase))
        opened[-1].__enter__()

    def end(*_: Any) -> None:
        opened.pop().__exit__(None, None, None)

    hooks = [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _wrapped(owner: Any, name: str, phase: str, region: Region) -> Iterator[None]:
    own = name in vars(owner)
    function = getattr(owner, name)

    @wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with region(phase):
            return function(*args, **kwargs)

    setattr(owner, name, inside)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, function)
        else:
            delattr(owner, name)
