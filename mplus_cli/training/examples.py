"""From a document to what a training step takes: contexts to write, a target to predict, questions (M+ appendix D).

A document of n tokens, with m = `min_chunk`, M = `max_chunk` and W = `window`, becomes (released code's data modules)

    n < m                rejected: too short
    m <= n <= M          rejected: one chunk, nothing is left to be its target
    M < n < W            random chunks; the last one is the target, the others are contexts
    W <= n < W + m       the first m tokens are the context, the rest is the target
    n >= W + m           the last t tokens are the target, t drawn from m..W; the rest is cut into contexts

What is drawn depends on a key alone, not on when or where it is drawn. Documents that share a key draw the same chunk
lengths one after the other, so that in a batch only the ends differ where the documents' lengths do.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from mplus_cli.data.chronicle import answer_text, question_prompt
from mplus_cli.training.documents import Document, Place
from mplus_cli.training.reading import Asked
from mplus_cli.training.tokens import encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mplus_cli.training.recipe import DataSettings

IGNORE = -100
_SENTENCE_ENDS = (". ", '" ', "? ", "! ", "\n")
_LONGEST_SENTENCE = 1000  # characters


@dataclass(frozen=True)
class Question:
    """A question about something told in the contexts of an example.

    Attributes:
        prompt, answer: token ids; the answer ends in a newline, as the default model's answers do.
        context: index of the context that tells it; of a sentence that is cut in two, the one where it ends.
        cut: whether its sentence begins in the context before.
    """

    prompt: list[int]
    answer: list[int]
    context: int
    cut: bool = False


@dataclass(frozen=True)
class Example:
    """One row of a training step.

    Attributes:
        id: identity of the document, a hash of its text.
        contexts: chunks to be written in this order, each of at most `max_chunk` tokens, without special tokens.
        target, labels: token ids to predict, equally many; IGNORE where there is no loss.
        repeat: the target is to be made of the first contexts, which the model has to repeat (the repeat task does it).
        questions: about facts whose sentences lie within one context, or across the border of two.
    """

    id: str
    contexts: list[list[int]]
    target: list[int]
    labels: list[int]
    repeat: bool
    questions: tuple[Question, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(map(len, self.contexts)) + len(self.target)


@dataclass(frozen=True)
class Fact:
    """Tokens [start, end) that answer a question, from the beginning of their sentence; and the question's wordings."""

    start: int
    end: int
    wordings: tuple[Asked, ...]


@dataclass(frozen=True)
class Tokenized:
    """A document in tokens, int32 [n]."""

    id: str
    place: Place
    tokens: np.ndarray
    facts: tuple[Fact, ...] = ()


def tokenize(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> list[Tokenized]:
    """The tokens of documents, in one call of the tokenizer (two when some come with questions)."""
    found: dict[int, Tokenized] = {}
    for asked in (False, True):
        chosen = [place for place, document in enumerate(documents) if bool(document.questions) == asked]
        encoded = encode_texts(tokenizer, [documents[place].text for place in chosen], spans=asked)
        for place, (tokens, begins) in zip(chosen, encoded, strict=True):
            document = documents[place]
            facts = () if begins is None else _facts(document, begins)
            found[place] = Tokenized(document.id, document.place, tokens, facts)
    return [found[place] for place in range(len(documents))]


def _facts(document: Document, begins: np.ndarray) -> tuple[Fact, ...]:
    """Questions with the same passages are wordings of one. Passages count from where their sentence begins."""
    wordings: dict[tuple[tuple[int, int], ...], list[Asked]] = {}
    for asked in document.questions:
        wordings.setdefault(asked.passages, []).append(asked)
    facts = []
    for passages, group in wordings.items():
        first = min(start for start, _ in passages)
        start = max(0, int(np.searchsorted(begins, _sentence(document.text, first), side="right")) - 1)
        end = int(np.searchsorted(begins, max(end for _, end in passages), side="left"))
        facts.append(Fact(start, end, tuple(group)))
    return tuple(facts)


def _sentence(text: str, at: int) -> int:
    """Where the sentence of the character `at` begins."""
    window = max(0, at - _LONGEST_SENTENCE)
    before = text[window:at]
    return window + max(before.rfind(mark) + len(mark) if mark in before else 0 for mark in _SENTENCE_ENDS)


def rejection(length: int, settings: DataSettings) -> str | None:
    """Why a document of so many tokens gives no example; None: it gives one."""
    if length < settings.min_chunk:
        return f"shorter than data.min_chunk = {settings.min_chunk} tokens"
    if length <= settings.max_chunk and (length < settings.window or length == settings.min_chunk):
        return f"a single chunk, at most data.max_chunk = {settings.max_chunk} tokens"
    return None


def split_lengths(length: int, settings: DataSettings, rng: Random) -> tuple[list[int], int]:
    """Lengths of the contexts and of the target of a document that is not rejected; they add up to `length`."""
    low, window = settings.min_chunk, settings.window
    target = _draw(rng, low, window)  # drawn in any case, so that documents with the same key draw the same chunks
    if length < window:
        chunks = chunk_lengths(length, settings, rng)
        return chunks[:-1], chunks[-1]
    if length < window + low:
        return [low], length - low
    return chunk_lengths(length - target, settings, rng), target


def chunk_lengths(length: int, settings: DataSettings, rng: Random) -> list[int]:
    """Random lengths from `min_chunk` to `max_chunk` that add up to `length`.

    They are drawn while more than `max_chunk` is left; what is left is the last, and borrows from those before it when
    it is shorter than `min_chunk`. Where no lengths in these bounds add up (600 in 384..512), they are equal.
    """
    low, high = settings.min_chunk, settings.max_chunk
    chunks, left = [], length
    while left > high:
        chunks.append(_draw(rng, low, high))
        left -= chunks[-1]
    chunks.append(left)
    for place in reversed(range(len(chunks) - 1)):
        lent = min(max(low - chunks[-1], 0), chunks[place] - low)
        chunks[place] -= lent
        chunks[-1] += lent
    if chunks[-1] < low and len(chunks) > 1:
        each, more = divmod(length, len(chunks))
        return [each + (place < more) for place in range(len(chunks))]
    return chunks


def _draw(rng: Random, low: int, high: int) -> int:
    """Uniform in low..high, by `Random.random` alone: no version of Python draws it differently."""
    return low + int(rng.random() * (high - low + 1))


def make_examples(
    documents: Sequence[Tokenized],
    keys: Sequence[str],
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    repeat_ratio: float,
) -> list[Example]:
    """Examples of documents that are not rejected; all that is drawn for one depends on its key and its text."""
    parts = []
    for document, key in zip(documents, keys, strict=True):
        rng = Random(key)
        repeat = rng.random() < repeat_ratio
        contexts, target = split_lengths(len(document.tokens), settings, rng)
        ends = list(accumulate([*contexts, target]))
        parts.append((document, repeat, ends, _ask(document, ends[:-1], Random(f"{key}/{document.id}"))))
    asked = [question for *_, questions in parts for *_, question in questions]
    prompts = iter(_ids(tokenizer, [question_prompt(question.question) for question in asked]))
    answers = iter(_ids(tokenizer, [answer_text(question.answer) for question in asked]))
    examples = []
    for document, repeat, ends, questions in parts:
        chunks = [document.tokens[start:end].tolist() for start, end in zip([0, *ends], ends, strict=False)]
        found = tuple(Question(next(prompts), next(answers), context, cut) for context, cut, _ in questions)
        examples.append(Example(document.id, chunks[:-1], chunks[-1], list(chunks[-1]), repeat, found))
    return examples


def _ask(document: Tokenized, ends: list[int], rng: Random) -> list[tuple[int, bool, Asked]]:
    """One wording of each question that a single context answers, or two that follow each other: the index of the
    (last) context, and whether there are two."""
    questions = []
    for fact in document.facts:
        first, last = bisect_right(ends, fact.start), bisect_left(ends, fact.end)
        if last < len(ends) and last - first <= 1:
            questions.append((last, last > first, fact.wordings[_draw(rng, 0, len(fact.wordings) - 1)]))
    return questions


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Any:
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
