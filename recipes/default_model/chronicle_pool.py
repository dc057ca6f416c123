"""A pool of tokenised chronicles with their questions: what every training step and the exam draw from.

`recipes.default_model.train` builds it when it is missing.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mplus_cli.data.chronicle import Chronicle, ChronicleConfig, answer_text, question_prompt
from mplus_cli.data.chronicle.names import Split

CONFIGS = {
    "bare": ChronicleConfig(
        filler=0.0, syllables=(2,), family_names=False, wordings=2, question_forms=1, first_name_rate=0.0
    ),
    "names": ChronicleConfig(filler=0.3, wordings=4, question_forms=2),
    "full": ChronicleConfig(),
}


@dataclass
class Document:
    """One chronicle in tokens.

    Attributes:
        tokens: int64 [n].
        start, end: int64 [facts], token span from the beginning of a fact's sentence to the end of its value.
        prompts, answers: per fact, the token ids of each question form; of the answer, ending in a newline.
        questions: the texts of the same questions.
        values: the right answers as text.
    """

    tokens: np.ndarray
    start: np.ndarray
    end: np.ndarray
    prompts: list[list[list[int]]]
    answers: list[list[int]]
    questions: list[list[str]]
    values: list[str]


def document(tokenizer, seed: int, config: ChronicleConfig, chapters: int, split: Split, forms: int = 2) -> Document:
    """Writes and tokenises one chronicle. forms: how many question forms of each fact are kept."""
    chronicle = Chronicle.generate(seed, config, chapters=chapters, split=split)
    text = chronicle.text
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    begins = np.array([a for a, _ in encoded["offset_mapping"]])
    rng = np.random.default_rng(seed)
    start, end, texts = [], [], []
    for fact in chronicle.facts:
        sentence = max(text.rfind(mark, 0, fact.start) + len(mark) for mark in (". ", '" ', "? ", "\n"))
        start.append(int(np.searchsorted(begins, sentence, side="right") - 1))
        end.append(int(np.searchsorted(begins, fact.end, side="left")))
        chosen = rng.permutation(len(fact.questions))[:forms]
        texts.append([fact.questions[i] for i in chosen])
    flat = tokenizer([question_prompt(q) for group in texts for q in group], add_special_tokens=False)["input_ids"]
    queue = iter(flat)
    prompts = [[next(queue) for _ in group] for group in texts]
    values = [fact.value for fact in chronicle.facts]
    answers = tokenizer([answer_text(v) for v in values], add_special_tokens=False)["input_ids"]
    tokens = np.array(encoded["input_ids"], np.int64)
    return Document(tokens, np.array(start), np.array(end), prompts, answers, texts, values)


def load(path: str | Path) -> list[Document]:
    """The documents of a pool that this module wrote itself."""
    with open(path, "rb") as file:
        return pickle.load(file)


def build(work: str | Path, tokenizer, sizes: dict[str, int]) -> None:
    """Writes `WORK/<kind>.pkl` for every kind of `CONFIGS`, with as many chronicles of 20 chapters as `sizes` says."""
    for i, (kind, count) in enumerate(sizes.items()):
        seeds = range(1_000_000 * (i + 1), 1_000_000 * (i + 1) + count)
        documents = [document(tokenizer, seed, CONFIGS[kind], 20, "train") for seed in seeds]
        with open(Path(work) / f"{kind}.pkl", "wb") as file:
            pickle.dump(documents, file)
        print(f"{kind}: {count} chronicles, {sum(len(d.tokens) for d in documents):,} tokens", flush=True)
