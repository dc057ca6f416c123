"""(context, question, answer) from SQuAD and Natural Questions, in the formats they are published in."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mplus_cli.console import Progress
from mplus_cli.data.building import Source
from mplus_cli.data.building.corpus import CorpusFile, open_corpus
from mplus_cli.data.building.rows import BadRows, read_objects
from mplus_cli.errors import UsageError

KNOWN = {  # short names: hub id, files of the evaluation split, files of the training split
    "squad": ("rajpurkar/squad", "plain_text/validation*", "plain_text/train*"),
    "nq": ("google-research-datasets/natural_questions", "default/validation*", "default/train*"),
}
FORMATS = """readable are
  SQuAD     json {data: [{paragraphs: [{context, qas: [{question, answers}]}]}]}, or rows {context, question, answers}
  NQ        rows {question, document, annotations} or {question, nq_annotated_gold: {long_answer, short_answers}}
  your own  rows {context, question, answer}, as jsonl (plain, .gz, .xz, .zst) or parquet"""
ANSWER_TOKENS = {"squad": 3, "nq": 4, "own": 3}


@dataclass(frozen=True)
class Example:
    """A question, the first gold answer, and the paragraph that holds it. `kind` is the format it was read from."""

    kind: str
    context: str
    question: str
    answer: str
    title: str = ""

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.context}\n{self.question}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ExampleSource:
    """Where examples are read from, and how to read them."""

    source: Source
    files: tuple[CorpusFile, ...]

    def rows(self, bad: BadRows, what: str = "reading examples") -> Iterator[Example | None]:
        """Every question, in the order of the files; None for one without a usable answer. Shows its progress.

        Raises:
            UsageError: a file is damaged or in none of the known formats, or too many lines are broken.
        """
        done = 0
        with Progress(what, sum(file.bytes for file in self.files), "bytes") as progress:
            for file in self.files:
                if file.path.removesuffix(".gz").endswith(".json"):
                    yield from _squad_file(file.name, file.path)
                else:
                    yield from _rows(file, bad, partial(_update, progress, done))
                done += file.bytes


def _update(progress: Progress, before: int, position: int) -> None:
    progress.update(before + position)


def _rows(file: CorpusFile, bad: BadRows, progress: Callable[[int], None]) -> Iterator[Example | None]:
    for number, record in read_objects(file.path, bad, file.name, progress):
        found = read_row(record)
        if isinstance(found, str):
            if number == 0:
                raise UsageError(f"{file.name}: rows with the fields {found} are in no known format", FORMATS)
            bad.add(file.name, number, f"fields {found}")
        else:
            yield found.example


def open_examples(
    name: str,
    revision: str | None = None,
    files: str | None = None,
    licence: str | None = None,
    train: bool = False,
) -> ExampleSource:
    """The files of a source.

    Args:
        name: `squad` or `nq` (on the hub), a file or folder here, or a hub id.
        licence: as the user states it; None takes what the hub states.
        train: of `squad` and `nq`, take the training split (for distractors) instead of the evaluation split.

    Raises:
        UsageError: nothing there, nothing readable, or the hub cannot be reached.
    """
    path = Path(name)
    if name in KNOWN and not path.exists():
        name, *splits = KNOWN[name]
        files = files or splits[train]
    elif path.is_file() and path.name.removesuffix(".gz").endswith(".json"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        file = CorpusFile(path.name, str(path), path.stat().st_size)
        return ExampleSource(Source(name, f"sha256:{digest}", licence, "local file"), (file,))
    corpus = open_corpus(name, revision=revision, files=files, licence=licence)
    return ExampleSource(corpus.source, corpus.files)


@dataclass(frozen=True)
class _Read:
    """A row in a known format; `example` is None where it has no usable answer."""

    example: Example | None


def read_row(record: Any) -> _Read | str:
    """One row in any of the formats, or the names of its fields where it is in none of them."""
    if not isinstance(record, dict):
        return type(record).__name__
    try:
        if "annotations" in record and "document" in record:
            return _Read(_natural_question(record))
        if "nq_annotated_gold" in record:
            gold = record["nq_annotated_gold"]
            return _Read(_example("nq", gold["long_answer"], record["question"], gold["short_answers"], gold["title"]))
        if "context" in record and "question" in record:
            kind = "squad" if isinstance(record.get("answers"), dict) else "own"
            answers = record["answers"]["text"] if kind == "squad" else record.get("answer", record.get("answers"))
            title = str(record.get("title") or "")
            return _Read(_example(kind, record["context"], record["question"], answers, title))
    except (KeyError, TypeError, IndexError):
        pass
    return ", ".join(record)


def _example(kind: str, context: str, question: str, answers: Any, title: str) -> Example | None:
    answer = answers if isinstance(answers, str) else next(iter(answers or []), None)
    if not isinstance(context, str) or not isinstance(question, str):
        raise TypeError
    if not isinstance(answer, str) or not answer.strip() or not context.strip():
        return None
    return Example(kind, context.strip(), question.strip(), answer.strip(), title)


def _natural_question(record: dict[str, Any]) -> Example | None:
    """A row of the hub's natural_questions: the first annotation with a long and a short answer."""
    tokens, question = record["document"]["tokens"], record["question"]
    question = question["text"] if isinstance(question, dict) else question
    annotations = record["annotations"]
    for long, short in zip(annotations["long_answer"], annotations["short_answers"], strict=True):
        if long["start_token"] >= 0 and short["text"]:
            span = slice(long["start_token"], long["end_token"])
            words = zip(tokens["token"][span], tokens["is_html"][span], strict=True)
            context = " ".join(word for word, is_html in words if not is_html)
            return _example("nq", context, question, short["text"], str(record["document"].get("title") or ""))
    return None


def _squad_file(name: str, path: str) -> Iterator[Example | None]:
    """SQuAD's own json: articles, paragraphs, questions. Version 2.0's unanswerable questions have no answer."""
    try:
        content = Path(path).read_bytes()
        articles = json.loads(gzip.decompress(content) if path.endswith(".gz") else content)["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = [answer["text"] for answer in question.get("answers", [])]
                    title = article.get("title", "")
                    yield _example("squad", paragraph["context"], question["question"], answers, title)
    except (KeyError, TypeError) as error:
        raise UsageError(f"{name}: not SQuAD's json (missing {error})", FORMATS) from error
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{name}: damaged or no json ({error})") from error
