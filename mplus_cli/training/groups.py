"""The named groups of parameters that a stage trains or leaves alone; every parameter is in exactly one."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from mplus_cli.errors import UsageError
from mplus_cli.training.recipe_checks import GROUPS

Group = list[tuple[str, nn.Parameter]]


def group_of(name: str) -> str:
    """The group of a parameter of `MPlusForCausalLM`, by its name."""
    if name in ("bos_embedding", "new_memory_positional_emb"):
        return name
    if name.startswith("retrievers."):
        return "write_retriever" if ".write_query_proj." in name else "retriever"
    if ".lora_" in name:
        return "write_adapter" if ".write." in name else "read_adapter"
    return "backbone"


def all_groups(model: nn.Module) -> dict[str, Group]:
    """Every parameter of the model under its group; groups it has nothing of are absent."""
    groups: dict[str, Group] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(group_of(name), []).append((name, parameter))
    return {name: groups[name] for name in GROUPS if name in groups}


def select(model: nn.Module, names: Iterable[str]) -> dict[str, Group]:
    """Make exactly the named groups trainable.

    Returns:
        The named groups: name -> [(parameter name, parameter)].

    Raises:
        UsageError: the model has no parameter of a named group.
    """
    groups, wanted = all_groups(model), list(names)
    missing = [name for name in wanted if name not in groups]
    if missing:
        raise UsageError(
            f"The model has nothing of {', '.join(missing)}, so it cannot be trained.",
            f"It has {', '.join(groups)}; change `train` of the recipe.",
        )
    for name, group in groups.items():
        for _, parameter in group:
            parameter.requires_grad_(name in wanted)
    return {name: groups[name] for name in wanted}
