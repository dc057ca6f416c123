"""Writes as a pipeline over layers: groups of consecutive layers work on different chunks at once, exactly.

Layer l of chunk t + 1 needs what layer l - 1 made of the chunk, and the memory tokens that layer l made of chunk t:
nothing of later layers. So while one worker takes chunk t through the upper layers, another takes chunk t + 1 through
the lower ones. Memory itself changes by one whole write at a time, in order, by the same code as without a pipeline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from mplus_cli.core.adapters import WRITE
from mplus_cli.core.memory import Memory
from mplus_cli.core.thread_modes import ThreadModes
from mplus_cli.core.value_codec import ValueCodec
from mplus_cli.core.writing import Newest, WritePass, newest_tokens, write_groups
from mplus_cli.errors import UsageError

if TYPE_CHECKING:
    from mplus_cli.core.modeling_mplus import MPlusForCausalLM


@dataclass(frozen=True)
class WriteText:
    """One chunk of text per row of a memory; the arguments of `MPlusForCausalLM.inject`.

    Attributes:
        input_ids: [B, n], left-padded; attention_mask: [B, n], 0 on padding; notes: provenance per row.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None = None
    notes: Sequence[dict | None] | None = None


def inject_stream(
    model: MPlusForCausalLM, texts: Iterable[WriteText], memory: Memory, stages: int = 1
) -> Generator[WriteText, None, None]:
    """Write one text after the other into all rows of a memory; yields each when it is in.

    Memory, journal and all that is made of them later are what `model.inject` of one text after the other gives: the
    same operations on the same numbers. On a CPU they are the same bit for bit at the same number of threads per
    operation.

    Memory is at a whole number of writes whenever the caller has control: between texts, after an exception (of a
    layer, of `texts`, Ctrl-C), and after closing the iterator, which forgets texts that are under way. Texts are taken
    before those ahead of them are in memory. With one stage there is no thread: a text is written when it is asked for,
    by `model.inject`, which Ctrl-C does interrupt.

    Args:
        stages: groups of layers that work at once, each in a thread; from 2 on at least one for every device that
            layers lie on.

    Raises:
        UsageError: between two texts the memory was changed, or the model used for something else.
    """
    groups = stage_ends(model, stages)
    if stages == 1 or len(groups) == 1:
        for text in texts:
            model.inject(*_arguments(text, memory))
            yield text
        return
    with _Pipeline(model, memory, groups) as pipeline:
        for text in texts:
            while not pipeline.begin(text):
                yield pipeline.finish()
        while pipeline.under_way:
            yield pipeline.finish()


def stage_ends(model: MPlusForCausalLM, stages: int) -> list[int]:
    """Where each stage ends: every device's layers, cut further until there are `stages` of them, as even as can be."""
    spans = model.spans
    cuts = [1] * len(spans)
    while sum(cuts) < stages:
        at = max(range(len(spans)), key=lambda n: len(spans[n]) / cuts[n])
        if cuts[at] == len(spans[at]):
            break
        cuts[at] += 1
    return [
        span.first + (len(span) * (n + 1) + count // 2) // count
        for span, count in zip(spans, cuts, strict=True)
        for n in range(count)
    ]


@dataclass
class _Write:
    """A text under way. `write` is there once the first stage has begun; `stages` are its turns, if it has any."""

    text: WriteText
    held: int  # newest memory tokens that it reads
    count: int  # memory tokens that it makes
    write: WritePass | None = None
    stages: list[Future] = field(default_factory=list)


class _Made:
    """The memory tokens of the write before, as memory will hold them; a layer's are there when its stage is done."""

    def __init__(self, before: _Write, codec: ValueCodec) -> None:
        self.before, self.codec = before, codec

    def __getitem__(self, layer: int, /) -> torch.Tensor:
        assert self.before.write is not None  # begun by the same stage, before
        return self.codec.round(self.before.write.made[layer])


class _Pipeline:
    """The writes under way, oldest first, and a thread per stage, which takes them in that order."""

    def __init__(self, model: MPlusForCausalLM, memory: Memory, ends: Sequence[int]) -> None:
        self.model, self.memory, self.ends = model, memory, ends
        self.rows, self.size = range(memory.batch_size), memory.config.memory_tokens_per_write
        self.under_way: deque[_Write] = deque()
        self._most = len(ends) + 2  # one in each stage, one on its way into memory, one that waits for the first stage
        options: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (torch.get_num_threads(),)}
        self._stages = [ThreadPoolExecutor(1, "mplus-layers", **options) for _ in ends]
        # A thread of its own for memory: Ctrl-C interrupts the caller's, and no write is left half done.
        self._keeper = ThreadPoolExecutor(1, "mplus-memory", **options)
        self._modes = ThreadModes(span.device for span in model.spans)
        self._truth = self._now()

    def __enter__(self) -> _Pipeline:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in (*self._stages, self._keeper):
            worker.shutdown(wait=False, cancel_futures=True)
        for worker in (*self._stages, self._keeper):
            worker.shutdown(wait=True)

    def begin(self, text: WriteText) -> bool:
        """Send a text on its way; False if one that is under way has to be finished before."""
        before = self.under_way[-1] if self.under_way else None
        if before is not None and (len(self.under_way) == self._most or before.count < self.size):
            return False
        if before is None:  # the first, or the model may have been read with since
            with torch.no_grad():
                self.model.adapters.use(WRITE)
        self._check()
        held = self.memory.newest_counts(self.rows) if before is None else [self.size] * len(self.rows)
        alike = len(text.input_ids) == len(self.rows)  # else `inject` says so
        groups = list(write_groups(text.input_ids, held, self.size, text.attention_mask)) if alike else []
        if len(groups) != 1:
            if before is None:  # rows that cannot share a pass are written one group after the other, at their turn
                self.under_way.append(_Write(text, 0, 0))
            return before is None
        _, ids, mask = groups[0]
        new = _Write(text, held[0], min(self.size, held[0] + ids.shape[1]))
        newest: Newest | None = None
        if held[0]:
            newest = (
                newest_tokens(self.model, self.memory, self.rows)
                if before is None
                else _Made(before, self.memory.codec)
            )
        for number, (stage, end) in enumerate(zip(self._stages, self.ends, strict=True)):
            new.stages.append(stage.submit(self._quietly, self._run, new, number, end, ids, newest, mask))
        self.under_way.append(new)
        return True

    def finish(self) -> WriteText:
        """Wait for the oldest text and append what it made to memory."""
        oldest = self.under_way[0]
        made = oldest.stages[-1].result() if oldest.stages else None
        self._check()
        if made is None:
            done = self._keeper.submit(self._quietly, self.model.inject, *_arguments(oldest.text, self.memory))
        else:
            keys, notes = self.model.memory_keys if self.memory.long_term else None, oldest.text.notes
            done = self._keeper.submit(self._quietly, self.memory.append_rows, self.rows, made, keys, notes)
        done.result()
        self.under_way.popleft()
        self._truth = self._now()
        return oldest.text

    def _run(
        self, new: _Write, number: int, end: int, ids: torch.Tensor, newest: Newest | None, mask: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """A stage's turn with a text: on from where the stage before it has come to."""
        if number == 0:
            new.write = WritePass(self.model, ids, newest, new.held, mask)
        else:
            new.stages[number - 1].result()
        assert new.write is not None
        return new.write.run(end)

    def _quietly(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call in a worker as `inject` does in the caller's thread."""
        with self._modes.entered():
            return call(*arguments)

    def _now(self) -> tuple:
        return self.memory.version, self.model.key_value_version()

    def _check(self) -> None:
        if self.under_way and self._now() != self._truth:
            raise UsageError(
                "The memory was changed, or its model used otherwise, while texts were on their way into it.",
                "Finish or close the stream of texts first.",
            )
        self._truth = self._now()


def _arguments(text: WriteText, memory: Memory) -> tuple:
    return text.input_ids, memory, text.attention_mask, text.notes
