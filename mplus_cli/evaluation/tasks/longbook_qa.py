"""LongBook-QA: questions about whole novels, the English book questions of InfiniteBench (arXiv 2402.13718).

    mplus eval longbook-qa
    mplus eval longbook-qa:cut=middle --length 128k --data longbook_qa_eng.jsonl

351 questions about novels of 192k tokens on average. Questions about one novel are one item: it is read once. Prompt
and answer length are InfiniteBench's for models that are not chat models, the metric is its F1; the M+ paper states
none of them. Where an answer stands in the book word for word, `position` is the part of the book that names it last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mplus_cli.data.building.files import SUFFIXES
from mplus_cli.data.building.rows import BadRows, read_objects
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.data_folder import data_folder
from mplus_cli.evaluation.hub_file import HubFile
from mplus_cli.evaluation.items import Item, Question
from mplus_cli.evaluation.long_input import cut_away
from mplus_cli.evaluation.metrics import VERSION, contains_words, exact_match, f1
from mplus_cli.evaluation.task import Task, TaskSettings
from mplus_cli.evaluation.tasks.longbook import LongBookOptions, documents, read_book, spread, told

HUB = HubFile("xinrongzhang2022/InfiniteBench", "90f0394333616266d9fe85824ceaf505093cbaa5", "longbook_qa_eng.jsonl")
HINT = f"{HUB.command} --local-dir DIR, then mplus eval longbook-qa --data DIR"
MAX_NEW_TOKENS = 40
_STEM = "longbook_qa_eng"
_FOLDERS = ("", "infinitebench", "InfiniteBench")
_INSTRUCTION = "Read the book and answer the question. Be very concise in your answer.\n\n"
_PROMPT = "\n\nQuestion: {question}\nAnswer:"


@dataclass
class Novel:
    """A book and what is asked about it: (id, question, answers)."""

    text: str
    asked: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)


class LongBookQA(Task):
    """Questions about whole novels, one item per novel."""

    name, options_class, group_by = "longbook-qa", LongBookOptions, ("position",)
    metrics: ClassVar = {"f1": f1, "exact_match": exact_match, "contains": contains_words, "cut_away": cut_away}
    metric_version = VERSION

    def items(self, settings: TaskSettings) -> Iterator[Item]:
        """Novels in the order of the file; a limit counts novels."""
        for number, novel in enumerate(_novels(_find(settings.data), settings.limit)):
            yield _item(number, novel, settings)

    def context_prompt(self, context: str, question: Question) -> str:
        """The instruction is the beginning of the text."""
        return context + question.prompt


def _item(number: int, novel: Novel, settings: TaskSettings) -> Item:
    text = _INSTRUCTION + novel.text
    asked = spread(novel.asked, settings.options.questions)
    prompts = [_PROMPT.replace("{question}", question) for _, question, _ in asked]
    book = read_book(text, prompts, MAX_NEW_TOKENS, settings)
    name = f"novel-{number}"
    written = documents(book, name)
    lower = text.lower()
    questions = []
    for (id, _, answers), prompt in zip(asked, prompts, strict=True):
        place = max(lower.rfind(answer.strip().lower()) for answer in answers)
        where = told(book, place, len(text), settings.config.chunk_size) if place >= 0 else {}
        questions.append(
            Question(
                id,
                prompt,
                answers,
                len(written),
                MAX_NEW_TOKENS,
                metadata={**where, "named": place >= 0},
                recent=book.recent,
            )
        )
    described = {"book": name, "text_tokens": book.tokens, "dropped_tokens": book.dropped}
    return Item(name, written, tuple(questions), described)


def _novels(path: Path, limit: int) -> list[Novel]:
    """The novels of the first records, each with everything that is asked about it.

    Raises:
        UsageError: the file is damaged, or its rows are no records of InfiniteBench.
    """
    novels: dict[str, Novel] = {}
    for number, row in read_objects(str(path), BadRows(0), path.name):
        text, question, answers = _checked(row, f"{path.name}, line {number + 1}")
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        if key in novels or len(novels) < limit:
            novels.setdefault(key, Novel(text)).asked.append((f"q{number}", question, answers))
    if not novels:
        raise UsageError(f"{path} has no records", HINT)
    return list(novels.values())


def _checked(row: Any, where: str) -> tuple[str, str, tuple[str, ...]]:
    fields: Mapping[str, Any] = row if isinstance(row, dict) else {}
    text, question, answer = fields.get("context"), fields.get("input"), fields.get("answer")
    answers: Sequence[Any] = [answer] if isinstance(answer, str) else answer if isinstance(answer, list) else []
    right = answers and all(isinstance(one, str) and one.strip() for one in answers)
    if not right or not isinstance(text, str) or not isinstance(question, str) or not text.strip():
        raise UsageError(f"{where}: not a record of InfiniteBench (fields wanted: context, input, answer)", HINT)
    return text, question, tuple(answers)


def _find(given: Path | None) -> Path:
    if given is not None and given.is_file():
        return given
    folder = data_folder(given)
    for place in (folder / name / f"{_STEM}{suffix}" for name in _FOLDERS for suffix in SUFFIXES):
        if place.is_file():
            return place
    missing = f"LongBook-QA is missing: no {_STEM}.jsonl in {folder} or its infinitebench"
    if given is not None:
        raise UsageError(missing, HINT)
    return HUB.fetch(missing, HINT)
