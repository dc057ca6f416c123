"""Examples from the pool: passages with questions in one context, streams of chunks with questions about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recipes.default_model.chronicle_pool import Document
from recipes.default_model.random_tasks import IGNORE


def questions_in_context(
    rng: np.random.Generator, pool: list[Document], rows: int, length: tuple[int, int], count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Passages of `length` (from, to) tokens, each followed by up to `count` questions about it.

    Returns ids, labels for language modelling (every token of the passage) and labels of the answers; all `[rows, T]`.
    """
    texts, spans = [], []
    for _ in range(rows):
        doc = pool[int(rng.integers(len(pool)))]
        n = int(rng.integers(length[0], length[1] + 1))
        begin = int(rng.integers(0, len(doc.tokens) - n))
        parts, marks = [doc.tokens[begin : begin + n]], []
        whole = np.flatnonzero((doc.start >= begin) & (doc.end < begin + n))
        at = n
        for i in rng.permutation(whole)[:count]:
            prompt, answer = doc.prompts[i][int(rng.integers(len(doc.prompts[i])))], doc.answers[i]
            parts += [np.array(prompt), np.array(answer)]
            marks.append((at + len(prompt), at + len(prompt) + len(answer)))
            at += len(prompt) + len(answer)
        texts.append(np.concatenate(parts))
        spans.append((n, marks))
    width = max(len(t) for t in texts)
    ids = np.zeros((rows, width), np.int64)
    dense, sparse = np.full((rows, width), IGNORE, np.int64), np.full((rows, width), IGNORE, np.int64)
    for row, (text, (n, marks)) in enumerate(zip(texts, spans, strict=True)):
        ids[row, : len(text)] = text
        dense[row, 1:n] = text[1:n]
        for a, b in marks:
            sparse[row, a:b] = text[a:b]
    return torch.from_numpy(ids), torch.from_numpy(dense), torch.from_numpy(sparse)


@dataclass
class Questions:
    """`Q` questions to each of `B` memories, right-padded rows `[B * Q, T]` of prompt and answer.

    Attributes:
        ids, labels: token ids, and the answer tokens with `IGNORE` elsewhere.
        prompt: bool, the tokens of the prompt (what the retriever searches with).
        chunk: int64 `[B * Q]`, the chunk of the stream that tells the answer, -1 for a row without a question.
    """

    ids: Tensor
    labels: Tensor
    prompt: Tensor
    chunk: Tensor


def pack(questions: list[tuple[list[int], list[int], int] | None]) -> Questions:
    """(prompt, answer, chunk) per row -> padded tensors. `None` makes an empty row."""
    width = max(len(q[0]) + len(q[1]) for q in questions if q is not None)
    ids = np.zeros((len(questions), width), np.int64)
    labels = np.full((len(questions), width), IGNORE, np.int64)
    prompt = np.zeros((len(questions), width), bool)
    chunk = np.full(len(questions), -1, np.int64)
    for row, question in enumerate(questions):
        if question is None:
            continue
        p, a, chunk[row] = question
        ids[row, : len(p) + len(a)] = p + a
        labels[row, len(p) : len(p) + len(a)] = a
        prompt[row, : len(p)] = True
    return Questions(*(torch.from_numpy(x) for x in (ids, labels, prompt, chunk)))


def stream(
    rng: np.random.Generator, pool: list[Document], chunks: int, size: int
) -> tuple[np.ndarray, Document, np.ndarray, np.ndarray]:
    """`chunks` consecutive chunks of one chronicle `[chunks, size]`, the facts told in them, and where each ends.

    One fact in five is cut by the border of two chunks; then the write of the second has to look back at the first.
    """
    while True:
        doc = pool[int(rng.integers(len(pool)))]
        if len(doc.tokens) <= chunks * size:
            continue
        begin = int(rng.integers(0, len(doc.tokens) - chunks * size))
        last = (doc.end - 1 - begin) // size
        facts = np.flatnonzero((doc.start >= begin) & (last < chunks))
        if len(facts):
            return doc.tokens[begin : begin + chunks * size].reshape(chunks, size), doc, facts, last[facts]


def ask(
    rng: np.random.Generator, drawn: tuple, chunks: list[int], count: int
) -> list[tuple[list[int], list[int], int] | None]:
    """`count` questions about facts in `chunks` of a drawn stream, as rows for `pack`; `None` where facts run out."""
    _, doc, facts, where = drawn
    near = rng.permutation(np.flatnonzero(np.isin(where, chunks)))[:count]
    rows: list[tuple[list[int], list[int], int] | None] = []
    for j in near:
        forms = doc.prompts[facts[j]]
        rows.append((forms[int(rng.integers(len(forms)))], doc.answers[facts[j]], int(where[j])))
    return rows + [None] * (count - len(rows))
