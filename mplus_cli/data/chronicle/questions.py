"""Questions about facts, and the one prompt in which they are put to the default model."""

from __future__ import annotations

from dataclasses import dataclass

from mplus_cli.data.chronicle.kinds import KINDS


@dataclass(frozen=True, slots=True)
class Question:
    """A question with exactly one right answer.

    Attributes:
        text: the question, ending in "?".
        answer: the right answer, one or two words that stand verbatim in the text.
        facts: indices (in `Chronicle.facts`) of the facts needed; the answer is the value of the last one.
    """

    text: str
    answer: str
    facts: tuple[int, ...]


def question_prompt(question: str) -> str:
    """The prompt of the default model. Nothing else in the project spells it."""
    return f"Question: {question} Answer:"


def answer_text(answer: str) -> str:
    """What the model has to continue the prompt with: one line, which its newline ends."""
    return f" {answer}\n"


def direct_questions(kind: str, words: dict[str, str], forms: int | None = None) -> tuple[str, ...]:
    """The first `forms` question forms of a fact of `kind` about the person whose `words` (see `kinds`) are given."""
    return tuple([form.format_map(words) for form in KINDS[kind].questions[:forms]])
