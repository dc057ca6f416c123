"""What the systems without memory share: a text prompt made of the documents, answered by the base model."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mplus_cli.core.loading import encode
from mplus_cli.evaluation.items import Answer, Item, Question, Truncation
from mplus_cli.evaluation.prompting import Generated, Kept, Prompt, generate
from mplus_cli.evaluation.system import System, SystemSettings
from mplus_cli.evaluation.systems.base_model import base_model
from mplus_cli.evaluation.task import Task

if TYPE_CHECKING:
    from mplus_cli.inference.models import LoadedModel


LONG_TEXT = 4_000  # characters


@dataclass
class Text:
    """A prompt as text and as tokens, and what was left out of it.

    Attributes:
        ids: without the base model's start tokens.
        context_tokens: of all documents; dropped: those of them that were not read.
    """

    text: str
    ids: list[int]
    context_tokens: int = 0
    dropped: int = 0
    truncation: Truncation = "none"


class TextSystem(System):
    """The base model with the documents, or what a subclass makes of them, in its prompt.

    Attributes:
        shares_text: whether the prompts of an item begin alike, with the documents, so that these need reading once.
    """

    shares_text: ClassVar[bool] = False

    def __init__(self, loaded: LoadedModel, settings: SystemSettings) -> None:
        super().__init__(loaded, settings)
        self.options = settings.options if isinstance(settings.options, self.options_class) else self.options_class()
        self.base = base_model(loaded, settings)

    @abstractmethod
    def text(self, task: Task, item: Item, question: Question) -> Text:
        """The prompt of one question."""

    @property
    def limit(self) -> int:
        """Most tokens that a prompt and its answer may have together."""
        return self.base.window

    def room(self, question: Question) -> int:
        """Tokens of the prompt, beside the start tokens and the longest answer."""
        return self.limit - len(self.base.start) - question.max_new_tokens

    def answer(self, task: Task, items: Sequence[Item]) -> Iterator[Answer]:
        """See `System.answer`. Questions are asked in batches, or after one long text that is read once, in turn."""
        size = max(self.settings.batch, len(items))
        in_turn = [item for item in items if self.shares_text and _is_long(item)]
        for item in in_turn:
            kept = Kept()
            for question in sorted(item.questions, key=lambda question: question.after):
                yield from self._ask(task, [(item, question)], {}, kept)
        rest = [item for item in items if item not in in_turn]
        asked = [(item, question) for item in rest for question in item.questions]
        known: dict[tuple, Generated] = {}
        for first in range(0, len(asked), size):
            yield from self._ask(task, asked[first : first + size], known)

    def _ask(
        self,
        task: Task,
        asked: Sequence[tuple[Item, Question]],
        known: dict[tuple, Generated],
        kept: Kept | None = None,
    ) -> list[Answer]:
        began = time.perf_counter()
        texts = [self.text(task, item, question) for item, question in asked]
        prompts = [self.prompt(text, question) for text, (_, question) in zip(texts, asked, strict=True)]
        # The same prompt again (a question without its documents, at another distance) has the same answer.
        new = {_key(prompt): prompt for prompt in prompts if _key(prompt) not in known}
        if new:
            known |= zip(new, self.generate([*new.values()], task.stop, kept), strict=True)
        seconds = (time.perf_counter() - began) / len(asked)
        return [
            self._answer(item, question, text, prompt, known[_key(prompt)], seconds)
            for (item, question), text, prompt in zip(asked, texts, prompts, strict=True)
        ]

    def prompt(self, text: Text, question: Question) -> Prompt:
        """A text as the base model reads it."""
        options = [encode(self.base.tokenizer, option) for option in question.options]
        return Prompt(text.ids, question.max_new_tokens, options)

    def generate(self, prompts: Sequence[Prompt], stop: str, kept: Kept | None = None) -> list[Generated]:
        """Answer prompts as one batch, or one that begins like the prompt `kept`."""
        base = self.base
        return generate(base.model, base.tokenizer, prompts, base.ends, stop, base.start, kept=kept)

    def describe(self) -> dict[str, Any]:
        """See `System.describe`."""
        return {"base": self.base.kind, "window": self.limit}

    def _answer(
        self, item: Item, question: Question, text: Text, prompt: Prompt, made: Generated, seconds: float
    ) -> Answer:
        return Answer(
            item.id,
            question.id,
            text=made.text,
            raw=made.raw,
            prompt=text.text,
            prompt_tokens=len(self.base.start) + len(prompt.ids),
            context_tokens=text.context_tokens,
            truncated_tokens=text.dropped,
            truncation=text.truncation,
            answer_tokens=made.tokens,
            stop=made.stop,
            seconds={"remember": 0.0, "ask": seconds},
            extra=made.weighed(),
        )


def _is_long(item: Item) -> bool:
    """Several questions after so much text that reading it again takes longer than asking one at a time."""
    last = max(question.after for question in item.questions)
    length = sum(len(document.text) for document in item.documents[:last])
    return len(item.questions) > 1 and length > LONG_TEXT


def _key(prompt: Prompt) -> tuple:
    return tuple(prompt.ids), tuple(map(tuple, prompt.options)), prompt.max_new_tokens
