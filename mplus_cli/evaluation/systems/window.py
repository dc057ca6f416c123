"""The base model with its input cut to a window (the paper's Llama-3.1-8B-16k)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from mplus_cli.config import Range
from mplus_cli.evaluation.items import Item, Question
from mplus_cli.evaluation.prompting import fit
from mplus_cli.evaluation.systems.text_system import Text, TextSystem
from mplus_cli.evaluation.task import Task

PAPER_WINDOW = 16_384


@dataclass(frozen=True)
class WindowOptions:
    """Settings of `window`.

    Attributes:
        size: tokens of prompt and answer together, at most the positions of the model.
        cut: what is left out of longer documents: their beginning (`left`) or their `middle`.
    """

    size: Annotated[int, Range(low=16)] = PAPER_WINDOW
    cut: Literal["left", "middle"] = "left"


class Window(TextSystem):
    """Reads as much of the documents as the window takes; never cuts the question."""

    name = "window"
    options_class: ClassVar[Any] = WindowOptions
    shares_text = True

    @property
    def limit(self) -> int:
        """See `TextSystem.limit`."""
        return min(self.options.size, self.base.window)

    def text(self, task: Task, item: Item, question: Question) -> Text:
        """See `TextSystem.text`."""
        ids, text, fitted = fit(
            item.context(question, task.joint),
            lambda context: task.context_prompt(context, question),
            self.room(question),
            self.base.tokenizer,
            self.options.cut,
        )
        return Text(text, ids, fitted.tokens, fitted.dropped, self.options.cut if fitted.dropped else "none")

    def describe(self) -> dict[str, Any]:
        """See `System.describe`."""
        return super().describe() | {"cut": self.options.cut}
