"""BABILong: the facts of a bAbI story scattered in a book, and the story's question (arXiv 2406.10149).

    mplus eval babilong --data FOLDER --length 128k
    mplus eval babilong:tasks=[qa1],lengths=[0,1024,1048576]

Made as published: the facts keep their order and stand at random places between the sentences of the book, sentences
shorter than 10 tokens are left out, and a text has as many tokens as its label says, facts included; 0 is the facts
alone. The stories are BABILong's 100 of each task (the list stands beside the bAbI files), and other seeds move the
facts and take another part of the book. The book is that of `--data`, or the bundled sample; the published texts are
of PG19, so scores compare with published ones in kind only. Without bAbI files stories in the same language are made,
and every sample says so (`source`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from random import Random
from typing import Annotated, Any, ClassVar, Literal

from mplus_cli.config import Range
from mplus_cli.data.chronicle import question_prompt
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.data_folder import data_folder
from mplus_cli.evaluation.haystack import Haystack, Sentence, find_book, join, passes, tokens_after
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.plots import draw_heat_map, new_figure, save
from mplus_cli.evaluation.task import SystemResults, Task, TaskSettings
from mplus_cli.evaluation.tasks.babi_prompts import INSTRUCTIONS
from mplus_cli.evaluation.tasks.babi_stories import (
    GENERATED,
    LABELS,
    Story,
    chosen_numbers,
    generated_story,
    published_stories,
)

TaskName = Literal["qa1", "qa2", "qa3", "qa4", "qa5", "qa6", "qa7", "qa8", "qa9", "qa10"]
LENGTHS = (0, *(1024 * 2**n for n in range(11)))  # 0k, 1k ... 1M
_STORIES = 100
_SHORTEST_SENTENCE = 10  # tokens
_HINT = "mplus eval babilong --data FOLDER with babi/*.tar.xz or babi/en/qa1_*_test.txt; or babilong:source=generated"


@dataclass(frozen=True)
class Options:
    """Settings of `babilong`.

    Attributes:
        tasks: bAbI tasks; BABILong's main five by default.
        lengths: tokens of the texts; by default the published ones up to `--length`, which is 4k where none is given.
        source: stories of the published files, or of our own; by default the published ones where they are found.
        instructions: put the task and two examples before the question, as published (in our own words).
        book: what the facts are scattered in.
    """

    tasks: tuple[TaskName, ...] = ("qa1", "qa2", "qa3", "qa4", "qa5")
    lengths: tuple[Annotated[int, Range(low=0)], ...] = ()
    source: Literal["babi", "generated"] | None = None
    instructions: bool = True
    book: str | None = None


def label_accuracy(sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
    """BABILong's accuracy: the answers named are the right ones and no others.

    Of the answer the first sentence counts, and in it the possible answers of the task, but for those that the question
    names. Words count whole (as published, "no" would stand in "not").
    """
    metadata = sample["metadata"]
    text = re.split(r"\.|<context>|<example>|\bquestion\b", sample["text"].lower())[0]
    labels = {label.lower() for label in LABELS[metadata["task"]]}
    asked = metadata["question"].lower()
    named = {label for label in labels if _stands_in(label, text) and not _stands_in(label, asked)}
    return max((float(named == set(reference.lower().split(","))) for reference in references), default=None)


def _stands_in(word: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text) is not None


class Babilong(Task):
    """bAbI facts scattered in a book."""

    name, options_class = "babilong", Options
    metrics: ClassVar = {"accuracy": label_accuracy}
    metric_version = "BABILong label accuracy, whole words, 1"
    group_by = ("task", "length")

    def items(self, settings: TaskSettings) -> Iterator[Item]:
        """One question per item: the first story of every task at every length, then the second."""
        options: Options = settings.options
        if not options.tasks:
            raise UsageError("babilong: tasks must name at least one")
        lengths = options.lengths or default_lengths(settings)
        stories = {task: _stories(task, settings) for task in options.tasks}
        haystack = Haystack(
            find_book(settings.data, options.book, max(lengths)), settings.tokenizer, _SHORTEST_SENTENCE
        )
        cells = (
            (task, stories[task][number], length)
            for number, task, length in product(range(_STORIES), options.tasks, lengths)
            if number < len(stories[task])
        )
        for task, story, length in islice(cells, settings.limit):
            yield _item(task, story, length, haystack, settings)

    def context_prompt(self, context: str, question: Question) -> str:
        """As published: the instructions, then the text, then the question."""
        if not context:
            return question.prompt
        asked = question_prompt(question.metadata["question"])
        instructions = question.prompt[: -len(asked)]
        return f"{instructions}<context>\n{context}\n</context>\n{asked}"

    def plot(self, results: Sequence[SystemResults], folder: Path) -> list[Path]:
        """`babilong.png`: task by length, one map for each system."""
        figure, axes = new_figure(len(results), width=4.8, height=3.4)
        for one, system in zip(axes, results, strict=True):
            groups = [group for group in system.results["groups"] if set(group["by"]) == {"task", "length"}]
            cells = {
                (group["by"]["length"], group["by"]["task"]): group["scores"]["accuracy"]["mean"]
                for group in groups
                if group["scores"]["accuracy"]["mean"] is not None
            }
            lengths = sorted({length for length, _ in cells})
            tasks = sorted({task for _, task in cells}, key=lambda task: int(task[2:]))
            named = {(_label(length), task): value for (length, task), value in cells.items()}
            draw_heat_map(one, [_label(length) for length in lengths], tasks, named, "tokens of text", "bAbI task")
            one.set_title(system.label, fontsize=10)
        sources = sorted({sample["metadata"]["source"] for one in results for sample in one.samples})
        figure.suptitle(f"babilong: accuracy; stories: {', '.join(sources)}", fontsize=11)
        return [save(figure, folder / "babilong.png")]


def default_lengths(settings: TaskSettings) -> tuple[int, ...]:
    """The published lengths up to the one asked for, and that one itself."""
    longest = 4096 if settings.length is None else settings.length
    return tuple(dict.fromkeys([*(length for length in LENGTHS if length < longest), longest]))


def _label(length: int) -> str:
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


def _stories(task: str, settings: TaskSettings) -> list[tuple[Story, str]]:
    """The stories of a task with where they come from."""
    source = settings.options.source
    place = None if source == "generated" else _find_babi(settings.data)
    if place is not None:
        stories = published_stories(place, task)
        folder = place if place.is_dir() else place.parent
        lists = sorted(folder.glob("babilong*.json"))
        chosen = chosen_numbers(lists[0], task) if lists else None
        name = "bAbI v1.2 test, BABILong's 100" if chosen else "bAbI v1.2 test"
        if chosen is None:
            chosen = list(range(0, len(stories), max(1, len(stories) // _STORIES)))[:_STORIES]
        if max(chosen, default=0) >= len(stories):
            raise UsageError(f"{lists[0]} names story {max(chosen)} of {task}, but {place} has {len(stories)}")
        return [(stories[number], name) for number in chosen]
    if source == "babi" or task not in GENERATED:
        raise UsageError(f"babilong: the bAbI files are missing, which {task} needs", hint=_HINT)
    return [(generated_story(task, number, settings.seed), "generated") for number in range(_STORIES)]


def _find_babi(given: Path | None) -> Path | None:
    """The archive or folder of bAbI files, if there is one."""
    if given is not None and given.is_file():
        return given if ".tar" in given.name or given.suffix in (".tgz", ".txz") else None
    folder = data_folder(given)
    for place in (folder / "babi", folder):
        archives = sorted(place.glob("*babi*.tar*")) if place.is_dir() else []
        if archives:
            return archives[0]
        if any(place.glob("qa1_*_test.txt")) or any(place.glob("**/en/qa1_*_test.txt")):
            return place
    return None


def _item(task: str, told: tuple[Story, str], length: int, haystack: Haystack, settings: TaskSettings) -> Item:
    story, source = told
    identity = f"{task}-{length}-{story.number}"
    rng = Random(f"{settings.seed}/babilong/{identity}")
    facts = [
        Sentence(f" {fact}", tokens)
        for fact, tokens in zip(story.facts, haystack.counts([f" {fact}" for fact in story.facts]), strict=True)
    ]
    room = length - sum(fact.tokens for fact in facts)
    sentences = scatter(facts, haystack.window(rng, room) if room > 0 else [], rng)
    distance = tokens_after(sentences, facts[max(story.support)])
    asked = question_prompt(story.question)
    instructions = INSTRUCTIONS[task] if settings.options.instructions else ""
    metadata = {
        "task": task,
        "length": length,
        "question": story.question,
        "facts": len(facts),
        "distance_tokens": distance,
        "distance_writes": distance // settings.config.chunk_size,
        "source": source,
        "book": haystack.book.name if room > 0 else None,
        "book_passes": passes(sentences),
    }
    question = Question("q", f"{instructions}{asked}", (story.answer,), 1, max_new_tokens=20, metadata=metadata)
    return Item(identity, (Document(join(sentences), identity),), (question,))


def scatter(facts: Sequence[Sentence], sentences: Sequence[Sentence], rng: Random) -> list[Sentence]:
    """The facts in their order at random places between the sentences, each place as likely as any other."""
    places = sorted(int(rng.random() * (len(sentences) + 1)) for _ in facts)
    result: list[Sentence] = []
    done = 0
    for place, fact in zip(places, facts, strict=True):
        result += [*sentences[done:place], fact]
        done = place
    return [*result, *sentences[done:]]
