"""Answer one question from memory, streaming the text as it is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList, set_seed
from transformers.generation.streamers import BaseStreamer

from mplus_cli.core.loading import encode
from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.errors import UsageError
from mplus_cli.inference.prompts import has_chat_template, prompt_text

MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class AnswerSettings:
    """How to answer: greedy at temperature 0, else sampling from the given seed."""

    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Raises UsageError for values that mean nothing."""
        if self.max_new_tokens < 1:
            raise UsageError(f"--max-new-tokens {self.max_new_tokens} is less than 1")
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"--temperature {self.temperature} is not a number from 0 up", hint="0 means greedy")


@dataclass(frozen=True)
class Answer:
    """An answer and what it cost.

    Attributes:
        text: without surrounding white space.
        prompt: the text the model read.
        stop: why it ended: `end` (end token), `line` (first line of a base model) or `length`.
        first_token_seconds: from the call to the first token, retrieval included.
        retrieved: long-term memory tokens retrieved per layer.
    """

    text: str
    prompt: str
    stop: str
    prompt_tokens: int
    answer_tokens: int
    first_token_seconds: float
    seconds: float
    retrieved: list[int]


def answer(
    question: str,
    model: MPlusForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    memory: Memory,
    settings: AnswerSettings | None = None,
    history: Sequence[tuple[str, str]] = (),
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """Ask the model with this memory (one row).

    Args:
        on_text: gets every piece of the answer as soon as it is certain.
    """
    settings = settings or AnswerSettings()
    settings.check()
    prompt = prompt_text(question, tokenizer, history)
    ids = encode(tokenizer, prompt)
    if not question.strip() or not ids:
        raise UsageError("the question is empty")
    ends = end_tokens(model, tokenizer)
    stream = AnswerStream(tokenizer, ends, first_line=not has_chat_template(tokenizer), on_text=on_text)
    sampling = (
        {"do_sample": True, "temperature": settings.temperature} if settings.temperature > 0 else {"do_sample": False}
    )
    set_seed(settings.seed)
    start = time.monotonic()
    with torch.inference_mode():  # less bookkeeping per operation than no_grad: some 5% of a question on a CPU
        model.generate(
            torch.tensor([ids], device=model.device),
            memory=memory,
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
            max_new_tokens=settings.max_new_tokens,
            streamer=stream,
            stopping_criteria=StoppingCriteriaList([stream.criterion()]),
            eos_token_id=ends or None,
            pad_token_id=0,  # the one row has no padding; naming an id keeps `generate` from warning
            **sampling,
        )
    return Answer(
        text=stream.text.strip(),
        prompt=prompt,
        stop=stream.stop,
        prompt_tokens=len(ids),
        answer_tokens=len(stream.ids),
        first_token_seconds=(stream.first_token_at or time.monotonic()) - start,
        seconds=time.monotonic() - start,
        retrieved=[len(rows[0].created) for rows in memory.last_retrieval],
    )


class AnswerStream(BaseStreamer):
    """Decodes tokens as they come, gives out what later tokens cannot change, and knows when a first line is complete.

    Args:
        ends: ids that end an answer.
        first_line: end at the first line break after some text (base models run on: a line is their answer).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ends: Sequence[int],
        first_line: bool,
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self.tokenizer, self.ends, self.first_line, self.on_text = tokenizer, ends, first_line, on_text
        self.ids: list[int] = []
        self.text = ""
        self.stop = "length"
        self.first_token_at: float | None = None
        self._prompt_seen = False
        self._given = 0

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate`: first with the prompt, then with each new token."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.first_token_at = self.first_token_at or time.monotonic()
        if self.stop == "line":
            return
        self.ids.extend(value.flatten().tolist())
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.text = str(text).lstrip()
        line, newline, _ = self.text.partition("\n")
        if self.first_line and newline:
            self.text, self.stop = line.rstrip(), "line"
        self._give(final=self.stop == "line")

    def end(self) -> None:
        """Called by `generate` at the end."""
        if self.stop == "length" and self.ids and self.ids[-1] in self.ends:
            self.stop = "end"
        self._give(final=True)

    def criterion(self) -> StoppingCriteria:
        """Stops generation when the first line is complete."""
        stream = self

        class _LineComplete(StoppingCriteria):
            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
                done = stream.stop == "line"
                return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)

        return _LineComplete()

    def _give(self, final: bool) -> None:
        """Trailing white space waits for more text, and so does a character whose bytes are not all there."""
        end = len(self.text.rstrip())
        if not final and self.text[:end].endswith("\ufffd"):
            end -= 1
        if self.on_text is not None and end > self._given:
            self.on_text(self.text[self._given : end])
            self._given = end


def end_tokens(model: MPlusForCausalLM, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end an answer: what the model's generation settings name, and the tokenizer's own."""
    named = model.generation_config.eos_token_id
    ids = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
    return sorted({token for token in ids if isinstance(token, int)})
