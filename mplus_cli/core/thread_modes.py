"""What torch keeps per thread, carried from the thread that asks for work to those that do it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch


class ThreadModes:
    """The modes of the thread that makes this: inference mode, autocast, and the current stream of every GPU.

    Args:
        devices: that the work is done on.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        devices = set(devices)
        kinds = [kind for kind in {device.type for device in devices} if torch.amp.is_autocast_available(kind)]
        self._inference = torch.is_inference_mode_enabled()
        self._autocast = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]
        self._streams = [torch.cuda.current_stream(device) for device in devices if device.type == "cuda"]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The same modes in this thread, and no gradient."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(self._inference))
            stack.enter_context(torch.no_grad())
            for kind, enabled, dtype in self._autocast:
                stack.enter_context(torch.autocast(kind, dtype, enabled))
            for stream in self._streams:
                stack.enter_context(torch.cuda.stream(stream))
            yield
