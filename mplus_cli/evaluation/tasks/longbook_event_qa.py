"""LongBook-Event-QA: five events of a novel in a row, and which of six comes next (M+ section 4.1.1).

    mplus eval longbook-event-qa --data EVENT-QA
    mplus eval longbook-event-qa:weigh=events,questions=50 --data EVENT-QA

The data is what `mplus build-data event-qa` builds. A novel is read once, and everything is asked at its end; with
`asked=passage` each question is asked as soon as the passage that tells the event has been read. The letter of the
right option is asked for, and right are both the letter in the answer (`accuracy`) and the likeliest of the letters
(`by_likelihood`). With `weigh=events` no letters are shown: the five past events are a numbered list, and the
likelihoods of the six events themselves as its next line are compared. Prompts are ours, since the paper gives none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mplus_cli.data.building import iter_rows, read_manifest
from mplus_cli.data.building.manifest import MANIFEST
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.data_folder import data_folder
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.long_input import cut_away
from mplus_cli.evaluation.plots import draw_curves, new_figure, points, save
from mplus_cli.evaluation.task import SystemResults, Task, TaskSettings
from mplus_cli.evaluation.tasks import choices
from mplus_cli.evaluation.tasks.longbook import LongBookOptions, documents, part, read_book, spread, told

HINT = "mplus build-data event-qa --out DIR BOOK.txt..., then mplus eval longbook-event-qa --data DIR"
OPTIONS = 6
MAX_NEW_TOKENS = 8
_BUILDER = "event-qa"
_INSTRUCTION = "Read the book and answer the question.\n\n"
_PAST = "\n\nThese events follow one another in the book:\n"
_LETTERS = "\n\nWhich of these events comes next?\n{options}\n\nThe letter of the correct answer is"


@dataclass(frozen=True)
class Options(LongBookOptions):
    """Settings of `longbook-event-qa`.

    Attributes:
        cut, keep, questions: see `LongBookOptions`.
        asked: at the end of the book, or as soon as the passage with the event has been read.
        weigh: what the likelihoods are of: the letters of the options, or the events themselves.
        flagged: also ask what failed a check when it was built.
    """

    asked: Literal["end", "passage"] = "end"
    weigh: Literal["letters", "events"] = "letters"
    flagged: bool = False


class LongBookEventQA(Task):
    """Which of six events of a novel comes next, one item per novel."""

    name, options_class, group_by = "longbook-event-qa", Options, ("position", "book")
    metrics: ClassVar = {
        "accuracy": choices.accuracy,
        "by_likelihood": choices.by_likelihood,
        "answered": choices.answered,
        "chance": choices.chance,
        "cut_away": cut_away,
    }
    metric_version = "letter of the answer, likeliest option, 2"

    def items(self, settings: TaskSettings) -> Iterator[Item]:
        """Novels in the order of the build; a limit counts novels."""
        folder = _find(settings.data)
        if settings.options.asked == "passage" and settings.length is not None:
            raise UsageError("longbook-event-qa: asked=passage reads books whole", hint="leave out --length")
        names = ("questions", "flagged") if settings.options.flagged else ("questions",)
        asked: dict[str, list[dict[str, Any]]] = {}
        for row in (row for name in names for row in iter_rows(folder / f"{name}.jsonl.gz")):
            asked.setdefault(row["book_sha256"], []).append(row)
        books = [book for book in iter_rows(folder / "books.jsonl.gz") if book["sha256"] in asked]
        if not books:
            raise UsageError(f"{folder} has no questions", HINT)
        make = _at_the_end if settings.options.asked == "end" else _at_its_passage
        for book in books[: settings.limit]:
            rows = sorted(asked[book["sha256"]], key=lambda row: row["event"])
            yield make(book, spread(rows, settings.options.questions), settings)

    def context_prompt(self, context: str, question: Question) -> str:
        """The instruction is the beginning of the text."""
        return context + question.prompt

    def plot(self, results: Sequence[SystemResults], folder: Path) -> list[Path]:
        """`longbook-event-qa.png`: both accuracies by the part of the book that tells the event, and chance."""
        figure, axes = new_figure(2)
        for one, metric in zip(axes, ("accuracy", "by_likelihood"), strict=True):
            label = {"accuracy": "generated letter", "by_likelihood": "likeliest option"}[metric]
            curves = {result.label: points(result, "position", metric) for result in results}
            draw_curves(one, curves, "part of the book", f"accuracy: {label}")
            one.axhline(1 / OPTIONS, color="#555555", linestyle="--", linewidth=1)
            one.annotate("chance", (0.02, 1 / OPTIONS), (0, 3), one.get_yaxis_transform(), "offset points", fontsize=8)
        count = max(one.results["scores"]["by_likelihood"]["n"] for one in results)
        figure.suptitle(f"longbook-event-qa: {count:,} questions, 95% intervals over books", fontsize=11)
        return [save(figure, folder / "longbook-event-qa.png")]


def _at_the_end(book: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], settings: TaskSettings) -> Item:
    text = _INSTRUCTION + book["text"]
    prompts = [_prompt(row, settings.options) for row in rows]
    given = read_book(text, prompts, MAX_NEW_TOKENS, settings)
    written = documents(given, book["book"])
    questions = []
    for row, prompt in zip(rows, prompts, strict=True):
        end = len(_INSTRUCTION) + row["passage"]["characters"][1] - 1
        where = told(given, end, len(text), settings.config.chunk_size)
        questions.append(_question(row, prompt, len(written), where, settings.options, given.recent))
    described = {"book": book["book"], "text_tokens": given.tokens, "dropped_tokens": given.dropped}
    return Item(_id(book), written, tuple(questions), described)


def _at_its_passage(book: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], settings: TaskSettings) -> Item:
    """The book up to each passage that is asked about is a document; nothing is kept unwritten."""
    ends = sorted({row["passage"]["characters"][1] for row in rows})
    written = tuple(
        Document((_INSTRUCTION if start == 0 else "") + book["text"][start:end], book["book"])
        for start, end in zip([0, *ends], ends, strict=False)
    )
    questions = []
    for row in rows:
        end = row["passage"]["characters"][1]
        where = {
            "position": part((end - 1) / len(book["text"])),
            "read": True,
            "distance_tokens": 0,
            "distance_writes": 0,
        }
        after = ends.index(end) + 1
        questions.append(_question(row, _prompt(row, settings.options), after, where, settings.options))
    return Item(_id(book), written, tuple(questions), {"book": book["book"]})


def _id(book: Mapping[str, Any]) -> str:
    return f"book-{book['sha256'][:12]}"


def _prompt(row: Mapping[str, Any], options: Options) -> str:
    past = "\n".join(f"{number}. {event}" for number, event in enumerate(row["past_events"], 1))
    if options.weigh == "events":
        return f"{_PAST}{past}\n{len(row['past_events']) + 1}."
    return f"{_PAST}{past}" + _LETTERS.replace("{options}", choices.lettered(row["options"]))


def _question(
    row: Mapping[str, Any], prompt: str, after: int, where: Mapping[str, Any], options: Options, recent: str = ""
) -> Question:
    letters = options.weigh == "letters"
    shown = [*choices.LETTERS[: len(row["options"])]] if letters else row["options"]
    return Question(
        str(row["event"]),
        prompt,
        (choices.LETTERS[row["answer"]],),
        after,
        MAX_NEW_TOKENS if letters else 1,
        tuple(f" {option}" for option in shown),
        {**where, "choices": len(row["options"]), "letters": letters, "flags": list(row["flags"])},
        recent,
    )


def _find(given: Path | None) -> Path:
    folder = given if given is not None else data_folder() / _BUILDER
    if not (folder / MANIFEST).is_file():
        raise UsageError(f"LongBook-Event-QA is missing: no build in {folder}", HINT)
    builder = read_manifest(folder).builder
    if builder != _BUILDER:
        raise UsageError(f"{folder} was made by `mplus build-data {builder}`", HINT)
    return folder
