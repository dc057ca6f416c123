"""No document at all: what the base model knows, or guesses, by itself. The floor of every benchmark."""

from __future__ import annotations

from mplus_cli.evaluation.items import Item, Question
from mplus_cli.evaluation.prompting import fit
from mplus_cli.evaluation.systems.text_system import Text, TextSystem
from mplus_cli.evaluation.task import Task


class ClosedBook(TextSystem):
    """The question alone."""

    name = "closed-book"

    def text(self, task: Task, item: Item, question: Question) -> Text:
        """See `TextSystem.text`."""
        ids, text, _ = fit("", lambda _: question.prompt, self.room(question), self.base.tokenizer)
        return Text(text, ids)
