"""Needle in a haystack: something told once, far back or not, is asked for.

    mplus eval needle --length 16k
    mplus eval needle:kinds=[single],value=uuid,book=war_and_peace.txt.gz --data FOLDER
    mplus eval needle:file=kv-retrieval-75_keys.jsonl.gz --data FOLDER

Kinds: `single` hides one needle; `multi_key` hides several and asks for one; `multi_value` hides several values of one
key and asks for all; `lines` and `pairs` are nothing but needles, LongEval's lines and Lost in the Middle's UUIDs. The
haystack is the bundled sample book, or any other; `file` takes published samples instead (see `needle_files`).

By default a needle of `single` and `multi_key` is a fact about an invented person, in the bundled model's own language,
and RULER's magic number otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from random import Random
from typing import Annotated, Any, ClassVar

from mplus_cli.config import Range
from mplus_cli.core.loading import encode
from mplus_cli.data.chronicle import question_prompt
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.haystack import (
    Haystack,
    Sentence,
    find_book,
    first_tokens,
    insert,
    join,
    passes,
    tokens_after,
)
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.metrics import VERSION
from mplus_cli.evaluation.metrics import exact_match as squad_exact_match
from mplus_cli.evaluation.plots import draw_heat_map, new_figure, save
from mplus_cli.evaluation.registry import Spec
from mplus_cli.evaluation.task import SystemResults, Task, TaskSettings
from mplus_cli.evaluation.tasks.needle_files import read_samples
from mplus_cli.evaluation.tasks.needle_kinds import (
    RECORDS,
    HiddenNeedle,
    Kind,
    Value,
    fact_needles,
    magic_needles,
    random_keys,
    random_value,
)

_SPARE_TOKENS = 8  # of an answer beyond the tokens of its values
_SPREAD = 0.1  # of a text that the values of one key stand in


@dataclass(frozen=True)
class Options:
    """Settings of `needle`.

    Attributes:
        kinds: what is hidden.
        lengths: tokens of the texts; by default 8, 16, 32 and 64 chunks, or an eighth, a quarter, half and all of
            `--length`.
        depths: where the needle is, from 0 (first) to 1 (last).
        needles: how many there are, for `multi_key` and `multi_value`.
        value: what is told by `single` and `multi_key` (by default a fact) and `multi_value` (which tells no facts).
        repeats: samples of each kind, length and depth.
        book: the haystack; by default the bundled book, or the longest of `--data`.
        file: published samples, in place of all of this.
    """

    kinds: tuple[Kind, ...] = ("single", "multi_key", "multi_value", "lines")
    lengths: tuple[Annotated[int, Range(low=32)], ...] = ()
    depths: tuple[Annotated[float, Range(low=0, high=1)], ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    needles: Annotated[int, Range(low=2, high=16)] = 4
    value: Value | None = None
    repeats: Annotated[int, Range(low=1)] = 5
    book: str | None = None
    file: str | None = None


def found(sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
    """The share of the hidden values that stand in the answer, case aside (RULER's measure)."""
    text = sample["text"].lower()
    return sum(reference.lower() in text for reference in references) / len(references) if references else None


def exact_match(sample: Mapping[str, Any], references: Sequence[str]) -> float | None:
    """SQuAD's exact match, where one value is asked for."""
    return squad_exact_match(sample, references) if len(references) == 1 else None


class Needle(Task):
    """Needles in a haystack, by length and depth."""

    name, options_class = "needle", Options
    metrics: ClassVar = {"found": found, "exact_match": exact_match}
    metric_version = f"found 1; {VERSION}"
    group_by = ("kind", "length", "depth")
    default_limit = 400

    def items(self, settings: TaskSettings) -> Iterator[Item]:
        """One needle question per item. Every kind, length and depth comes once before any comes twice."""
        options: Options = settings.options
        if options.file is not None:
            yield from islice(read_samples(options.file, settings), settings.limit)
            return
        lengths = options.lengths or default_lengths(settings)
        cells = list(dict.fromkeys(product(options.kinds, lengths, options.depths)))
        if not cells:
            raise UsageError("needle: kinds and depths must name at least one of each")
        book = find_book(settings.data, options.book, max(lengths))
        haystack = Haystack(book, settings.tokenizer)
        for number in range(min(options.repeats * len(cells), settings.limit)):
            repeat, place = divmod(number, len(cells))
            if place == 0:
                Random(f"{settings.seed}/needle/{repeat}").shuffle(cells)
            yield _item(haystack, *cells[place], repeat, settings)

    def plot(self, results: Sequence[SystemResults], folder: Path) -> list[Path]:
        """`needle-SYSTEM.png`: depth by length, one map for each kind."""
        return [_plot(one, folder / f"needle-{Spec(one.label).folder}.png") for one in results]


def default_lengths(settings: TaskSettings) -> tuple[int, ...]:
    """Four lengths in tokens, each twice the one before, up to the length asked for or 64 chunks."""
    longest = settings.length or 64 * settings.config.chunk_size
    return tuple(longest // part for part in (8, 4, 2, 1))


def _item(haystack: Haystack, kind: Kind, length: int, depth: float, repeat: int, settings: TaskSettings) -> Item:
    identity = f"{kind}-{length}-{depth:g}-{repeat}"
    rng = Random(f"{settings.seed}/needle/{identity}")
    hide = list_of_records if kind in RECORDS else hide_in_book
    sentences, asked = hide(haystack, kind, length, depth, settings.options, rng)
    values = tuple(needle.value for needle, _ in asked)
    distance = max(tokens_after(sentences, sentence) for _, sentence in asked)
    metadata = {
        "kind": kind,
        "length": length,
        "depth": depth,
        "distance_tokens": distance,
        "distance_writes": distance // settings.config.chunk_size,
        "book": None if kind in RECORDS else haystack.book.name,
        "book_passes": passes(sentences),
    }
    question = Question(
        id="q",
        prompt=question_prompt(asked[0][0].question),
        references=values,
        after=1,
        max_new_tokens=len(encode(settings.tokenizer, " " + ", ".join(values))) + _SPARE_TOKENS,
        metadata=metadata,
    )
    return Item(identity, (Document(join(sentences), haystack.book.name),), (question,))


Hidden = tuple[list[Sentence], list[tuple[HiddenNeedle, Sentence]]]  # the text, and what of it is asked for


def hide_in_book(haystack: Haystack, kind: Kind, length: int, depth: float, options: Options, rng: Random) -> Hidden:
    """Whole sentences of the book with needles among them, at most `length` tokens. What is asked for is at `depth`.

    Other keys are anywhere. The values of one key stand about `depth`, spread over a tenth of the text.
    """
    count = 1 if kind == "single" else options.needles
    window = haystack.window(rng, length)
    if options.value in (None, "fact") and kind != "multi_value":
        needles = fact_needles(count, rng, join(window).__contains__)
    else:
        value = "number" if options.value in (None, "fact") else options.value
        needles = magic_needles(count, value, rng, same_key=kind == "multi_value")
    told = [f" {needle.sentence}" for needle in needles]
    hidden = [Sentence(text, tokens) for text, tokens in zip(told, haystack.counts(told), strict=True)]
    room = length - sum(sentence.tokens for sentence in hidden)
    if room < length // 4:
        raise UsageError(
            f"needle: a text of {length} tokens has no room for {count} needles", hint="give a larger --length"
        )
    if kind == "multi_value":
        depths = [min(1.0, max(0.0, depth + _SPREAD * ((i + 0.5) / count - 0.5))) for i in range(count)]
    else:
        depths = [depth, *(rng.random() for _ in needles[1:])]
    sentences = insert(first_tokens(window, room), list(zip(depths, hidden, strict=True)))
    pairs = list(zip(needles, hidden, strict=True))
    return sentences, pairs if kind == "multi_value" else pairs[:1]


def list_of_records(haystack: Haystack, kind: Kind, length: int, depth: float, options: Options, rng: Random) -> Hidden:
    """As many records as `length` tokens hold; the one at `depth` is asked for."""
    form = RECORDS[kind]
    sample = [form.line.format(key=key, value=random_value(form.value, rng)) for key in _keys(form.value, 32, rng)]
    most = 2 + int(1.2 * length * len(sample) / haystack.count("\n".join(sample)))
    keys = _keys(form.value, most, rng)
    needles = []
    for key in keys:
        value = random_value(form.value, rng)
        line = form.line.format(key=key, value=value)
        needles.append(HiddenNeedle(key, value, line, form.question.format(key=key)))
    counts = haystack.counts([f"\n{needle.sentence}" for needle in needles])
    sentences: list[Sentence] = []
    for needle, tokens in zip(needles, counts, strict=True):
        if length < tokens:
            break
        sentences.append(Sentence(f"\n{needle.sentence}", tokens))
        length -= tokens
    place = round(depth * (len(sentences) - 1))
    return sentences, [(needles[place], sentences[place])]


def _keys(value: Value, count: int, rng: Random) -> list[str]:
    return [random_value("uuid", rng) for _ in range(count)] if value == "uuid" else random_keys(count, rng)


def _plot(results: SystemResults, path: Path) -> Path:
    metric = next(iter(Needle.metrics))
    groups = [group for group in results.results["groups"] if set(group["by"]) == set(Needle.group_by)]
    kinds = list(dict.fromkeys(group["by"]["kind"] for group in groups))
    lengths, depths = (sorted({group["by"][key] for group in groups}) for key in ("length", "depth"))
    figure, axes = new_figure(max(1, len(kinds)), width=4.4, height=3.4)
    for one, kind in zip(axes, kinds, strict=False):
        cells = {
            (group["by"]["length"], group["by"]["depth"]): group["scores"][metric]["mean"]
            for group in groups
            if group["by"]["kind"] == kind and group["scores"][metric]["mean"] is not None
        }
        draw_heat_map(one, lengths, depths, cells, "tokens of text", "depth of the needle")
        one.set_title(kind.replace("_", " "), fontsize=10)
    count = results.results["scores"][metric]["n"]
    figure.suptitle(f"needle, {results.label}: share of the hidden values found, {count} questions", fontsize=11)
    return save(figure, path)
