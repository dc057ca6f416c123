"""What keeps a run from failing silently.

After the first optimizer step every group that should learn has had a finite gradient that is not zero, and every
frozen tensor is still what it was, bit for bit; a loss or gradient that is not finite stops the run and names the
documents; the first checkpoint is loaded again and compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from mplus_cli.errors import MPlusError
from mplus_cli.training.engine import Groups
from mplus_cli.training.processes import Processes

PIECE = 1 << 22  # elements that are widened to int64 at a time
_MIX = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed number
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class GuardError(MPlusError):
    """Training would not do what its recipe says."""


class GradientWatch:
    """Notes, group by group, whether gradients arrive and whether they are finite. Sees them before DeepSpeed does.

    Args:
        groups: named parameters that are meant to learn.
    """

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.largest = {name: 0.0 for name in groups}
        self.broken: dict[str, set[str]] = {name: set() for name in groups}
        self._hooks = [
            parameter.register_hook(self._note(group, name))
            for group, members in groups.items()
            for name, parameter in members
        ]

    def _note(self, group: str, name: str):
        def hook(gradient: torch.Tensor) -> None:
            size = gradient.detach().abs().amax().item() if gradient.numel() else 0.0
            if math.isfinite(size):
                self.largest[group] = max(self.largest[group], size)
            else:
                self.broken[group].add(name)

        return hook

    def close(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()

    def check(self, processes: Processes) -> None:
        """Look at what all processes have seen.

        Raises:
            GuardError: a group whose gradients are not finite, or are all zero on every process.
        """
        seen = processes.gather((self.largest, self.broken))
        problems = []
        for group in self.groups:
            broken = sorted(set().union(*(names[group] for _, names in seen)))
            if broken:
                problems.append(f"the gradient of {group} is not finite ({_some(broken)})")
            elif not any(largest[group] > 0 for largest, _ in seen):
                problems.append(f"no gradient reaches {group} ({len(self.groups[group])} tensors)")
        if problems:
            raise GuardError(
                "After the first step " + "; ".join(problems) + ".",
                "Take the group out of `train`, or give the recipe a task or loss that trains it.",
            )


def frozen_checksums(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, int]:
    """A checksum of every tensor that must not change: parameters without gradient, and buffers."""
    return {name: checksum(tensor) for name, tensor in named_tensors if not tensor.requires_grad}


def check_frozen(before: Mapping[str, int], now: Mapping[str, int], when: str) -> None:
    """Compare two rounds of `frozen_checksums`.

    Raises:
        GuardError: they differ; names the tensors.
    """
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        raise GuardError(f"{len(changed)} frozen tensors changed {when}: {_some(changed)}.")


def checksum(tensor: torch.Tensor) -> int:
    """A 64-bit sum of a tensor's bits, weighted by place; computed where the tensor lies.

    A change of a single element always changes it, since the weights are odd, and other changes all but surely. Unlike
    a comparison of values it tells -0.0 from 0.0, and a NaN equals itself.
    """
    flat = tensor.detach().contiguous().reshape(-1)
    bits = flat.view(_WHOLE[flat.element_size()])
    total = 0
    for start in range(0, bits.numel(), PIECE):
        piece = bits[start : start + PIECE].to(torch.int64)
        weights = torch.arange(start, start + piece.numel(), device=piece.device) * _MIX | 1
        total += int((piece * weights).sum().item())
    return (total + tensor.numel()) % 2**64


def digest(value: Any, path: str = "") -> dict[str, int | str]:
    """Checksums of all tensors, and the text of everything else, in nested plain data, by path."""
    if isinstance(value, torch.Tensor):
        return {path: checksum(value)}
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    elif isinstance(value, np.ndarray):
        return {path: checksum(torch.from_numpy(value.copy()))}
    else:
        return {path: repr(value) if isinstance(value, (str, bytes, int, float, bool, type(None))) else ""}
    return {key: found for name, inner in items for key, found in digest(inner, f"{path}/{name}").items()}


def check_finite(processes: Processes, finite: bool, step: int, what: str, ids: list[str]) -> None:
    """Stop everywhere when a process has met a NaN or an infinity.

    Args:
        finite: whether `what` is finite here; ids: documents of this process in this step.

    Raises:
        GuardError: names the documents of the processes concerned.
    """
    if processes.sum([0.0 if finite else 1.0])[0] == 0:
        return
    concerned = [name for bad, names in processes.gather((not finite, ids)) if bad for name in names]
    raise GuardError(
        f"The {what} of step {step} is not a finite number. Documents of that batch: {_some(concerned, 32)}.",
        "Nothing of this step was saved. Look at these documents; a lower optimizer.lr or a value for optimizer.clip "
        "may be all it needs.",
    )


def _some(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
