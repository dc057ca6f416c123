"""Tensors that pretend to lie on other devices, so that layers on several GPUs can be tested without one.

Inside `Places()`, `device="xpu:1"` and `.to("xpu:1")` only label a tensor; data stays where it is. An operation
on tensors of two devices raises, as it would on GPUs; torch's own exceptions hold here too: copies, indices on the host
and numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")
COPIES = {torch.Tensor.copy_, torch.Tensor.__setitem__, torch._has_compatible_shallow_copy_type}
INDEXED = {torch.Tensor.__getitem__}
ON_HOST = {torch.Tensor.numpy}


def place_of(tensor: torch.Tensor) -> torch.device:
    """The device a tensor pretends to lie on."""
    return vars(tensor).get("_place", CPU)


class MixedDevices(AssertionError):
    """An operation on tensors of two devices."""


class Places(TorchFunctionMode):
    """See the module's text."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return place_of(args[0])
        if func == torch.Tensor.data.__set__:
            args[0]._place = place_of(args[1])
            return func(*args)
        if func is torch.Tensor.to:
            return self._moved(*args, **kwargs)
        if func is torch.Tensor.cpu:
            return labelled(args[0].view_as(args[0]), CPU)
        asked = kwargs.pop("device", None)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        here = self._common(func, tensors) if asked is None else torch.device(asked)
        if func in ON_HOST and here != CPU:
            raise MixedDevices(f"{func.__name__} of a tensor on {here}")
        out = func(*args, **kwargs)
        return tree_map(lambda leaf: labelled(leaf, here) if isinstance(leaf, torch.Tensor) else leaf, out)

    def _common(self, func: Any, tensors: list[torch.Tensor]) -> torch.device:
        if func in COPIES and tensors:
            return place_of(tensors[0])
        places = {place_of(tensor) for tensor in tensors if tensor.ndim}
        if func in INDEXED and tensors and place_of(tensors[0]) != CPU:
            places.discard(CPU)
        if len(places) > 1:
            raise MixedDevices(f"{func.__name__}: {', '.join(sorted(map(str, places)))}")
        return places.pop() if places else next((place_of(t) for t in tensors), CPU)

    def _moved(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`Tensor.to` in all its forms."""
        target, dtype = kwargs.get("device"), kwargs.get("dtype")
        for arg in args:
            if isinstance(arg, torch.Tensor):
                target, dtype = place_of(arg), arg.dtype
            elif isinstance(arg, (str, torch.device)):
                target = arg
            elif isinstance(arg, torch.dtype):
                dtype = arg
        here = place_of(tensor)
        there = here if target is None else torch.device(target)
        out = tensor if dtype is None else torch.Tensor.to(tensor, dtype)
        return out if there == here and out is tensor else labelled(out.view_as(out), there)


def labelled(tensor: torch.Tensor, place: torch.device) -> torch.Tensor:
    """The tensor itself, on that device from now on."""
    if place != CPU or "_place" in vars(tensor):
        tensor._place = place  # type: ignore[attr-defined]
    return tensor
