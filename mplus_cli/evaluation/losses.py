"""The loss of text, token by token, as systems read it: behind a memory, or as the end of a longer text.

The first token of what is read has no loss, in any system: behind a memory nothing predicts it. A memory system
searches long-term memory once for all of the text it reads, as published; so which memory tokens are read depends on
the whole of it. With `lead` its first tokens alone search, and no loss of theirs is counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from mplus_cli.core.padding import left_pad
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.items import Answer, Item, Question
from mplus_cli.evaluation.loss_texts import text_ids
from mplus_cli.evaluation.prompting import cut_cache
from mplus_cli.evaluation.systems.base_model import BaseModel
from mplus_cli.evaluation.systems.closed_book import ClosedBook
from mplus_cli.evaluation.systems.memory_system import MemorySystem
from mplus_cli.evaluation.systems.text_system import TextSystem
from mplus_cli.evaluation.task import TaskSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mplus_cli.core.memory import Memory
    from mplus_cli.core.modeling_mplus import MPlusForCausalLM
    from mplus_cli.evaluation.system import System

Pieces = Callable[[Item, Question], Sequence[str]]  # the text that is measured


def check_room(settings: TaskSettings, tokens: int) -> None:
    """Whether so much text can be read behind a full memory of the model's own sizes.

    Raises:
        UsageError: it cannot.
    """
    config = settings.config
    held = 1 + config.short_term_size + (config.retrieval_budget if config.has_long_term_memory else 0)
    _check_positions(held, tokens, config.text_config.max_position_embeddings)


def measure(system: System, items: Sequence[Item], pieces: Pieces, lead: int, bare: bool = False) -> Iterator[Answer]:
    """One answer for every question: the losses of its pieces, when `after` documents have been told.

    Args:
        pieces: the text measured; its tokens are those of its pieces.
        lead: tokens at its beginning whose loss is not counted, and that alone search long-term memory.
        bare: before the first document read no memory at all, not even one that the checkpoint carries.
    """
    if isinstance(system, MemorySystem):
        yield from _with_memory(system, items, pieces, lead, bare)
    elif isinstance(system, TextSystem):
        for item in items:
            yield from _as_text(system, item, pieces, lead)


@torch.inference_mode()
def memory_losses(
    model: MPlusForCausalLM, memory: Memory | None, texts: Sequence[Sequence[int]], lead: int
) -> list[torch.Tensor]:
    """Losses in nats, float32 [n_b - max(1, lead)] on the CPU, of one text for each row of memory.

    Raises:
        UsageError: a text has no token whose loss is counted, or does not fit behind the memory.
    """
    first = max(1, lead)
    if min(map(len, texts)) <= first:
        raise UsageError(f"a text of {min(map(len, texts))} tokens has none after the first {first}")
    if memory is not None:
        held = 1 + max(memory.short_term.fill) + (memory.config.retrieval_budget if memory.long_term else 0)
        _check_positions(held, max(map(len, texts)), model.config.text_config.max_position_embeddings)
    ids, mask = left_pad([text[lead:] for text in texts], device=model.device)
    given: dict[str, Any] = {"attention_mask": mask, "memory": memory}
    before = None
    if lead:
        opening = torch.tensor([list(text[:lead]) for text in texts], device=model.device)
        read = model(input_ids=opening, memory=memory, logits_to_keep=1)
        before = read.logits
        given = {
            "attention_mask": None if mask is None else torch.cat([torch.ones_like(opening), mask], dim=1),
            "past_key_values": read.past_key_values,
        }
    logits = model(input_ids=ids, **given).logits
    found = []
    for row, text in enumerate(texts):
        own = logits[row, -len(text) + lead : -1]
        found.append(_losses(own if before is None else torch.cat([before[row], own]), text[first:]))
    return found


class TextReader:
    """A base model along one text that grows: what stays at its place in the window is read once.

    Args:
        limit: tokens that the model reads together; of a longer text it reads the end.
    """

    def __init__(self, base: BaseModel, limit: int) -> None:
        self.base, self.room = base, limit - len(base.start)
        self.cache: Any = None
        self.held: list[int] = []  # tokens that the cache has, behind the start tokens

    @torch.inference_mode()
    def losses(self, text: Sequence[int], count: int) -> torch.Tensor:
        """Losses in nats, float32 [count] on the CPU, of the last `count` tokens of a text.

        Raises:
            UsageError: these and the token before them do not fit into the window.
        """
        if count >= len(text) or count >= self.room:
            raise UsageError(
                f"{count + 1} tokens of text in a row do not fit the window of {self.room}, or there are not so many",
                "give a larger window (size=...) or measure less text at a time",
            )
        start, text, base = self.base.start, list(text), self.base
        if len(text) > self.room:  # every token stands at another place than before
            ids, self.cache, self.held = start + text[-self.room :], None, []
            logits = base.model(
                input_ids=torch.tensor([ids], device=base.model.device), logits_to_keep=count + 1
            ).logits
            return _losses(logits[0, :-1], text[-count:])
        done = self._shared(text, len(text) - count - 1)
        ids = text[done:] if done else start + text
        if done:
            cut_cache(self.cache, len(start) + done)
        out = base.model(
            input_ids=torch.tensor([ids], device=base.model.device),
            past_key_values=self.cache if done else None,
            use_cache=True,
            logits_to_keep=count + 1,
        )
        self.cache, self.held = out.past_key_values, text
        return _losses(out.logits[0, :-1], text[-count:])

    def _shared(self, text: list[int], most: int) -> int:
        """How many tokens of `text`, at most `most`, the cache has."""
        same = min(len(self.held), most)
        return same if self.held[:same] == text[:same] else 0


def _losses(logits: torch.Tensor, targets: Sequence[int]) -> torch.Tensor:
    """Cross-entropy of every token. logits: [n, V]; targets: n ids."""
    return F.cross_entropy(logits.float(), torch.tensor(list(targets), device=logits.device), reduction="none").cpu()


def _with_memory(
    system: MemorySystem, items: Sequence[Item], pieces: Pieces, lead: int, bare: bool
) -> Iterator[Answer]:
    walk = system.walk(items)
    bare = bare or system.settings.initial == "empty" or system.model.initial_memory is None
    for stands in walk.stands():
        for number in range(max(len(stand.questions) for stand in stands)):
            here = [stand for stand in stands if number < len(stand.questions)]
            for empty in (True, False):
                group = [stand for stand in here if (bare and stand.after == 0) == empty]
                if not group:
                    continue
                began = time.perf_counter()
                texts = [pieces(stand.item, stand.questions[number]) for stand in group]
                ids = [_joined(system.tokenizer, text) for text in texts]
                if empty:
                    losses = memory_losses(system.model, None, ids, lead)
                else:
                    memory = system.view(walk.memory.rows([stand.row for stand in group]))
                    with system.reading():
                        losses = memory_losses(system.model, memory, ids, lead)
                seconds = (time.perf_counter() - began) / len(group)
                for stand, text, own, loss in zip(group, texts, ids, losses, strict=True):
                    times = {"remember": stand.seconds, "ask": seconds}
                    stand.seconds = 0.0
                    extra = _found(system.tokenizer, text, loss) | {"writes": stand.writes}
                    yield _answer(stand.item, stand.questions[number], len(own), stand.tokens, 0, times, extra)


def _as_text(system: TextSystem, item: Item, pieces: Pieces, lead: int) -> Iterator[Answer]:
    tokenizer, limit = system.base.tokenizer, system.limit
    reader, told = TextReader(system.base, limit), [text_ids(tokenizer, each.text) for each in item.documents]
    for question in sorted(item.questions, key=lambda question: question.after):
        began = time.perf_counter()
        text = pieces(item, question)
        own = _joined(tokenizer, text)
        before = [id for each in told[: question.after] for id in each]
        read = [] if isinstance(system, ClosedBook) else before
        if isinstance(system, ClosedBook):
            reader = TextReader(system.base, limit)
        count = len(own) - max(1, lead)
        if count < 1:
            raise UsageError(f"a text of {len(own)} tokens has none after the first {max(1, lead)}")
        loss = reader.losses(read + own, count)
        dropped = len(before) - len(read) + max(0, len(read) + len(own) - reader.room)
        times = {"remember": 0.0, "ask": time.perf_counter() - began}
        yield _answer(item, question, len(own), len(before), dropped, times, _found(tokenizer, text, loss))


def _joined(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str]) -> list[int]:
    return [id for piece in pieces for id in text_ids(tokenizer, piece)]


def _found(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], losses: torch.Tensor) -> dict[str, Any]:
    """What a sample has in `extra`: loss per token, bits per byte, and of how much text."""
    total, tokens, size = float(losses.double().sum()), len(losses), _last_bytes(tokenizer, pieces, len(losses))
    return {"nll": total / tokens, "bits_per_byte": total / math.log(2) / max(1, size), "tokens": tokens, "bytes": size}


def _last_bytes(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], tokens: int) -> int:
    """Bytes of UTF-8 that the last tokens of a text stand for."""
    total = 0
    for piece in reversed(pieces):
        spans: list[tuple[int, int]] = tokenizer(
            piece, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        start = 0 if tokens >= len(spans) else spans[len(spans) - tokens][0]
        total += len(piece[start:].encode())
        tokens -= len(spans)
        if tokens <= 0:
            break
    return total


def _answer(
    item: Item, question: Question, tokens: int, told: int, dropped: int, times: dict[str, float], extra: dict[str, Any]
) -> Answer:
    return Answer(
        item.id,
        question.id,
        prompt=question.prompt,
        prompt_tokens=tokens,
        context_tokens=told,
        truncated_tokens=dropped,
        truncation="left" if dropped else "none",
        stop="measured",
        seconds=times,
        extra=extra,
    )


def _check_positions(held: int, tokens: int, limit: int) -> None:
    if held + tokens > limit:
        raise UsageError(
            f"{tokens:,} tokens behind a memory of {held:,} are more than the {limit:,} positions of the model",
            "measure less text at a time, or lower short_term_size or retrieval_budget",
        )
