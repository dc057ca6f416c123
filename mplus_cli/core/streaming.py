"""Copies from the host to the device that run beside the computation: on a stream of their own where there are streams.

A prefill that takes layer l's rows from the host needs nothing of the layer before to know which (short-term values,
retrieval keys), so they are asked for one layer ahead. Which rows a search finds is known late; they are gathered into
page-locked memory and travel while the device does what was queued meanwhile. On a CPU all of this is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


class Arriving:
    """Tensors on their way to a device."""

    def __init__(self, tensors: list[torch.Tensor], event: torch.cuda.Event | None = None) -> None:
        self._tensors, self._event = tensors, event

    def wait(self) -> list[torch.Tensor]:
        """The tensors, for work that is queued from now on; the host does not wait."""
        if self._event is not None:
            stream = torch.cuda.current_stream(self._tensors[0].device)
            stream.wait_event(self._event)
            for tensor in self._tensors:
                tensor.record_stream(stream)  # made on the other stream, and not to be reused before this one is done
        return self._tensors


class HostLink:
    """The way from the host to one device, and back for small results."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def to_device(self, tensors: Sequence[torch.Tensor]) -> Arriving:
        """Start copying host tensors, page-locked ones without holding up the host."""
        if self._stream is None or not tensors:
            return Arriving([tensor.to(self.device) for tensor in tensors])
        with torch.cuda.stream(self._stream):
            copies = [tensor.to(self.device, non_blocking=True) for tensor in tensors]
            event = torch.cuda.Event()
            event.record(self._stream)
        return Arriving(copies, event)


class Ahead:
    """What every layer needs from the host, asked for one layer before its turn; for one pass over the layers.

    Args:
        links: to the device of each layer.
        host: layer -> tensors on the host.
    """

    def __init__(self, links: Sequence[HostLink], host: Callable[[int], Sequence[torch.Tensor]]) -> None:
        self.links, self.host = links, host
        self._next: tuple[int, Arriving] | None = None

    def take(self, layer: int) -> list[torch.Tensor]:
        """The tensors of a layer on the device; those of the layer after it start travelling."""
        held, self._next = self._next, None
        arriving = held[1] if held is not None and held[0] == layer else self._send(layer)
        if layer + 1 < len(self.links):
            self._next = layer + 1, self._send(layer + 1)
        return arriving.wait()

    def _send(self, layer: int) -> Arriving:
        return self.links[layer].to_device(self.host(layer))


class Returning:
    """Small tensors on their way to the host; only what was queued before them is waited for."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._event = None
        self._tensors = list(tensors)
        if self._tensors[0].is_cuda:
            self._tensors = [
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for tensor in tensors
            ]
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[torch.Tensor]:
        """The tensors on the host."""
        if self._event is not None:
            self._event.synchronize()
        return [tensor.cpu() for tensor in self._tensors]
