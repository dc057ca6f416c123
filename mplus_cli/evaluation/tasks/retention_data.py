"""Examples and distractors of `retention`: from `mplus build-data retention`, or from published files as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mplus_cli.config import Range
from mplus_cli.core.loading import encode
from mplus_cli.data.building import iter_rows, read_manifest
from mplus_cli.data.building.manifest import MANIFEST
from mplus_cli.data.chunking import chunks
from mplus_cli.data.retention import (
    Filters,
    RetentionOptions,
    choose_examples,
    make_distractors,
    open_examples,
    retention_rows,
)
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.data_folder import data_folder, find_data

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mplus_cli.evaluation.task import TaskSettings

FILES = {"squad": "squad/*.json*", "nq": "nq/*.jsonl*"}
SPARE = 1.3  # distractors made for every one that is needed: those that tell an answer are left out
BUILD_HINT = (
    "mplus build-data retention --source {} --tokenizer MODEL --out DIR, then --data DIR; "
    "or --data FILE with the published file"
)


@dataclass(frozen=True)
class Options:
    """Settings of `retention`.

    Attributes:
        dataset: which published file to look for in the data folder.
        distances: tokens between fact and question; None for `points` equal steps up to the length, and 0.
        points: see `distances`.
        distractors: file or folder whose paragraphs come between; None for SQuAD, as in the paper, else the examples'.
        distractor_tokens: length of each; None for the model's chunk size, so that each is one write.
        max_answer_tokens: longest answer; None for the paper's (3 for SQuAD, 4 for Natural Questions).
        likelihood: how likely the reference is as the answer too, in nats per token. It moves where no answer is right.

    The last three are decided already in what `mplus build-data retention` has built.
    """

    dataset: Literal["squad", "nq"] = "squad"
    distances: tuple[Annotated[int, Range(low=0)], ...] | None = None
    points: Annotated[int, Range(low=1, high=200)] = 8
    distractors: str | None = None
    distractor_tokens: Annotated[int, Range(low=16)] | None = None
    max_answer_tokens: Annotated[int, Range(low=1)] | None = None
    likelihood: bool = False


@dataclass(frozen=True)
class Distractor:
    """A text between fact and question: its length in the model's tokens, and in writes."""

    text: str
    tokens: int
    writes: int


@dataclass(frozen=True)
class RetentionSet:
    """What is asked, and what comes between.

    Attributes:
        examples: rows {id, source, context, question, answer, leaky_distractors ...} of a build.
        distractors: in the order in which they are remembered.
    """

    examples: list[dict[str, Any]]
    distractors: list[Distractor]

    def between(self, example: dict[str, Any]) -> list[Distractor]:
        """The distractors that do not tell the answer of an example."""
        leaky = set(example["leaky_distractors"])
        return [distractor for number, distractor in enumerate(self.distractors) if number not in leaky]


def load_set(settings: TaskSettings, tokens: int) -> RetentionSet:
    """The first `settings.limit` examples, with distractors of at least `tokens` tokens where there are so many.

    Raises:
        UsageError: there is no data, or it is in no known format.
    """
    options: Options = settings.options
    if settings.data is not None and (settings.data / MANIFEST).is_file():
        rows, texts = _built(settings.data, options)
    else:
        rows, texts = _published(settings, options, tokens)
    counter, size = settings.tokenizer, settings.config.chunk_size
    distractors, total = [], 0.0
    for text in texts:
        if total > SPARE * tokens + 16 * size:
            break
        distractors.append(_measure(text, counter, size))
        total += distractors[-1].tokens
    return RetentionSet(rows[: settings.limit], distractors)


def _built(folder: Path, options: Options) -> tuple[list[dict[str, Any]], list[str]]:
    manifest = read_manifest(folder)
    if manifest.builder != "retention":
        raise UsageError(f"{folder} was made by `mplus build-data {manifest.builder}`", BUILD_HINT.format("squad"))
    fixed = [key for key in ("distractors", "distractor_tokens", "max_answer_tokens") if getattr(options, key)]
    if fixed:
        raise UsageError(f"{folder} is built: {', '.join(fixed)} cannot be chosen any more", "build it anew with them")
    rows = list(iter_rows(folder / "examples.jsonl.gz"))
    return rows, [row["text"] for row in iter_rows(folder / "distractors.jsonl.gz")]


def _published(settings: TaskSettings, options: Options, tokens: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and texts that a build with the same choices, and no filter by models, would hold."""
    place, others = _places(settings.data, options)
    length = options.distractor_tokens or settings.config.chunk_size
    count = math.ceil(SPARE * tokens / length) + 16
    choice = RetentionOptions(options.max_answer_tokens, count, length, settings.seed, settings.limit)
    chosen = choose_examples(open_examples(place), settings.tokenizer, choice, Filters(), {})
    texts = make_distractors(open_examples(others), settings.tokenizer, choice)
    return list(retention_rows(chosen, texts, settings.tokenizer)), [one.text for one in texts]


def _places(data: Path | None, options: Options) -> tuple[str, str]:
    """Where examples and distractors are: files in the layout of the data folder, or what the user names."""
    hint = BUILD_HINT.format(options.dataset)
    if data is not None and not (data / options.dataset).is_dir():
        if not data.exists():
            raise UsageError(f"there is no {data}", hint)
        return str(data), options.distractors or str(data)
    place = find_data(data, FILES[options.dataset], f"the data set {options.dataset}", hint)
    squad = sorted(data_folder(data).glob(FILES["squad"]))
    return str(place), options.distractors or str(squad[0] if squad else place)


def _measure(text: str, tokenizer: PreTrainedTokenizerBase, chunk_size: int) -> Distractor:
    writes = sum(1 for _ in chunks(text, tokenizer, chunk_size))
    return Distractor(text, len(encode(tokenizer, text)), writes)
