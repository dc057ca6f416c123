"""Texts whose loss is measured: passages of any text or corpus, or freshly generated chronicles.

    passages(settings, file=None, field="text", size=512, count=128)

A passage is `count` pieces of `size` tokens in a row. Of several texts the first passage of each comes first, then the
second of each, and so on, so that few passages are of many texts. Without a file every passage begins a chronicle of
its own, with names that no training text has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count as numbers
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mplus_cli.data.building.files import SUFFIXES
from mplus_cli.data.building.rows import BadRows, Fields, read_rows
from mplus_cli.data.chronicle import Chronicle
from mplus_cli.data.sources import TEXT_SUFFIXES, read_source
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.data_folder import data_folder
from mplus_cli.evaluation.task import TaskSettings
from mplus_cli.evaluation.tasks.chronicle_stream import cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATED = "generated chronicle"
_SEED = 64_000_000
_CHARS_PER_TOKEN = 5  # a first guess; more text is written where it was too low
_BAD_ROWS = 100


@dataclass(frozen=True)
class Passage:
    """Text in pieces that join up, and what it is of.

    Attributes:
        tokens: of each piece, on its own.
        text: the file, or `GENERATED`; document: which text of the file.
    """

    pieces: tuple[str, ...]
    tokens: tuple[int, ...]
    text: str
    document: str

    @property
    def metadata(self) -> dict[str, str]:
        """For results: where the text is from."""
        return {"text": self.text, "document": self.document}


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokens as `data.chunking` writes them: what looks like a control token in a text is text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def passages(
    settings: TaskSettings, file: str | None, field: str, size: int, count: int, shortest: int | None = None
) -> Iterator[Passage]:
    """At most `settings.limit` passages, always the same ones in the same order.

    Args:
        file: as named from here, from the data folder, or from its `corpus` or `books`.
        field: of rows, that holds the text.
        shortest: whole texts with fewer than one piece are taken too, from so many tokens on; else they are left out.

    Raises:
        UsageError: there is no such file, or it has no text that is long enough.
    """
    paths = find_texts(settings.data, file)
    tokenizer = settings.tokenizer
    found = (
        _of_files(paths, field, tokenizer, size, count, shortest)
        if paths
        else (generated(_SEED + 100_000 * settings.seed + number, tokenizer, size, count) for number in numbers())
    )
    chosen = list(islice(found, settings.limit))
    if not chosen:
        names = ", ".join(path.name for path in paths)
        raise UsageError(f"no text of {names} has {size * count:,} tokens", "give a smaller --length, or other --data")
    yield from chosen


def find_texts(data: Path | None, file: str | None) -> list[Path]:
    """The files that texts are taken from; none where text is to be generated."""
    if file is not None:
        folder = data_folder(data if data is None or data.is_dir() else data.parent)
        places = [Path(file), folder / file, folder / "corpus" / file, folder / "books" / file]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise UsageError(f"there is no file {file}, here or in {folder}", "name it with its folder")
        return [found]
    if data is None or data.is_file():
        return [] if data is None else [data]
    endings = tuple(f"{suffix}{packed}" for suffix in TEXT_SUFFIXES for packed in ("", ".gz"))
    for place, kinds in ((data / "books", endings), (data, endings), (data, SUFFIXES)):
        found_here = sorted(path for path in place.glob("*") if path.is_file() and path.name.lower().endswith(kinds))
        if found_here:
            return found_here
    raise UsageError(f"there is no text in {data}", "--data FILE, or a folder with .txt or .jsonl files in it")


def generated(seed: int, tokenizer: PreTrainedTokenizerBase, size: int, count: int) -> Passage:
    """The beginning of a chronicle with names of the test space."""
    chars = size * (count + 1) * _CHARS_PER_TOKEN
    while True:
        text = Chronicle.generate(seed, min_chars=chars, split="test").text
        pieces = tuple(islice(cut(text, tokenizer, size), count))
        if len(pieces) == count:
            return _passage(pieces, GENERATED, f"seed {seed}", tokenizer)
        chars *= 2


def _of_files(
    paths: list[Path], field: str, tokenizer: PreTrainedTokenizerBase, size: int, count: int, shortest: int | None
) -> Iterator[Passage]:
    waiting = []
    for file, document, text in texts_of(paths, field):
        pieces = cut(text, tokenizer, size)
        first = tuple(islice(pieces, count))
        if len(first) == count:
            waiting.append((file, document, pieces))
            yield _passage(first, file, document, tokenizer)
        elif shortest is not None and not first and shortest <= len(text_ids(tokenizer, text)) <= size:
            yield _passage((text,), file, document, tokenizer)
    while waiting:
        longer = []
        for file, document, pieces in waiting:
            following = tuple(islice(pieces, count))
            if len(following) == count:
                longer.append((file, document, pieces))
                yield _passage(following, file, document, tokenizer)
        waiting = longer


def texts_of(paths: list[Path], field: str) -> Iterator[tuple[str, str, str]]:
    """File, name and text of every document."""
    for path in paths:
        if path.name.endswith(SUFFIXES):
            for row in read_rows(str(path), Fields(text=field), BadRows(_BAD_ROWS), name=path.name):
                if row.text:
                    yield path.name, f"row {row.number}", row.text
        else:
            yield path.name, path.name, read_source(str(path)).text


def _passage(pieces: tuple[str, ...], file: str, document: str, tokenizer: PreTrainedTokenizerBase) -> Passage:
    return Passage(pieces, tuple(len(text_ids(tokenizer, piece)) for piece in pieces), file, document)
