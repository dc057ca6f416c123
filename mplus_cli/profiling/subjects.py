"""What is measured in a cell: a model with a memory, or a plain decoder, with random text."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.profiling.systems import Asked, require_kvpress


class Subject:
    """Something that can be asked. `writes` is what it wants to be told first, in chunks.

    Attributes:
        model: with `generate`.
        prompt: token ids of the question, [1, n].
    """

    model: Any
    prompt: torch.Tensor

    @property
    def device(self) -> torch.device:
        return self.prompt.device

    def changed(self) -> None:
        """As after a write: the next question may reuse nothing."""

    def options(self) -> dict[str, Any]:
        """Further arguments of `generate`."""
        return {}

    def reading(self) -> AbstractContextManager[Any]:
        """Entered around a question."""
        return nullcontext()

    def ask(self, new_tokens: int, on_token: Callable[[], None] = lambda: None) -> list[float]:
        """Greedy generation of 1 + `new_tokens` tokens.

        Args:
            on_token: called after each.

        Returns:
            Seconds from the call to each token.
        """
        stamps = Stamps(self.device, on_token)
        synchronize(self.device)
        stamps.start = time.perf_counter()
        with torch.inference_mode(), self.reading():
            self.model.generate(
                self.prompt,
                attention_mask=torch.ones_like(self.prompt),
                max_new_tokens=1 + new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([stamps]),
                **self.options(),
            )
        return stamps.seconds


class Stamps(StoppingCriteria):
    """Stops nothing; notes when each token was there."""

    def __init__(self, device: torch.device, on_token: Callable[[], None]) -> None:
        self.device, self.on_token, self.start = device, on_token, 0.0
        self.seconds: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        synchronize(self.device)
        self.seconds.append(time.perf_counter() - self.start)
        self.on_token()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class MemorySubject(Subject):
    """M+ or MemoryLLM: most of the text goes into memory, the rest is the prompt.

    Args:
        injected: tokens of text that go into memory; stored: long-term tokens there before them.
    """

    def __init__(self, model: MPlusForCausalLM, asked: Asked, injected: int, prompt: int, stored: int) -> None:
        names = ("short_term_size", "long_term_capacity", "retrieval_budget")
        changes = {n: v for n in names if (v := getattr(asked.options, n, None)) is not None}
        if asked.name == "memoryllm":
            changes["long_term_capacity"] = 0
        self.model, self.config = model, model.config.varied(**changes)
        if asked.options.compile:
            model.compile_decoding()
        self.chunk = asked.options.chunk_size or self.config.chunk_size
        self.writes = -(-injected // self.chunk)
        self.last_chunk = injected - (self.writes - 1) * self.chunk
        self.values = getattr(asked.options, "ltm_dtype", "model")
        self.memory: Memory = model.new_memory(config=self.config, offload=asked.options.offload, values=self.values)
        self.prompt = _tokens(model, prompt)
        self.text = _tokens(model, self.chunk)
        self.generator = torch.Generator().manual_seed(0)
        if self.memory.long_term:
            self._store(stored)

    def _store(self, count: int) -> None:
        store, layers = self.memory.long_term[0], self.memory.num_layers
        width, r = self.memory.short_term.values.shape[-1], self.config.retriever_size
        while count > 0:
            step = min(512, count)
            values = torch.randn(layers, step, width, generator=self.generator).to(self.model.dtype)
            keys = torch.randn(layers, step, r, generator=self.generator).to(self.model.device, self.model.dtype)
            store.append(values, keys, torch.arange(-count - (1 << 40), step - count - (1 << 40)).expand(layers, -1))
            count -= step

    def fill(self, writes: int) -> None:
        """What so many writes leave behind, with random numbers in the place of the write pass."""
        r, dtype, device = self.config.retriever_size, self.model.dtype, self.model.device
        shape = (self.memory.num_layers, self.config.memory_tokens_per_write, self.memory.short_term.values.shape[-1])

        def keys(layer: int, rows: torch.Tensor) -> torch.Tensor:
            return torch.randn(*rows.shape[:-1], r, generator=self.generator).to(device, dtype)

        for _ in range(writes):
            tokens = torch.randn(shape, generator=self.generator).to(device, dtype)
            self.memory.append(0, tokens, keys if self.memory.long_term else None)

    def write(self) -> float:
        """One write of a whole chunk; its seconds."""
        synchronize(self.device)
        start = time.perf_counter()
        self.model.inject(self.text, self.memory)
        synchronize(self.device)
        return time.perf_counter() - start

    def changed(self) -> None:
        """See `Subject.changed`."""
        self.memory.changed()

    def options(self) -> dict[str, Any]:
        """See `Subject.options`."""
        return {"memory": self.memory}


class TextSubject(Subject):
    """A plain decoder that reads all of the prompt at once."""

    def __init__(self, model: Any, asked: Asked, length: int) -> None:
        self.model, self.asked = model, asked
        self.prompt = _tokens(model, asked.read_at_most(length, int(model.config.max_position_embeddings)))

    def reading(self) -> AbstractContextManager[Any]:
        """See `Subject.reading`: SnapKV drops keys and values when the prompt has been read."""
        if self.asked.name != "snapkv":
            return nullcontext()
        options, length = self.asked.options, self.prompt.shape[1]
        observed = min(options.observed, options.cache)
        if length <= max(options.cache, observed + 1):
            return nullcontext()
        ratio = 1 - (options.cache + 0.5) / length  # the half keeps the library's rounding from losing a token
        return require_kvpress()(compression_ratio=ratio, window_size=observed)(self.model)


def _tokens(model: Any, count: int) -> torch.Tensor:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(0, vocabulary, (1, count), generator=torch.Generator().manual_seed(count))
    return ids.to(model.device)


def synchronize(device: torch.device) -> None:
    """Wait until the device is done, so that a clock says something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
