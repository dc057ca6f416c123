"""Published needle samples, one JSON object a line: Lost in the Middle's UUIDs, LongEval's lines, RULER's haystacks.

The form is told by the fields of the first line: `ordered_kv_records` (arXiv 2307.03172), `correct_line` (LongEval of
LongChat) or `outputs` (RULER, arXiv 2404.06654). The wordings are the published ones as far as a memory is asked after
the text and not with it; LongEval's request and Lost in the Middle's key are put as `Question: ... Answer:`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from mplus_cli.core.loading import encode
from mplus_cli.data.chronicle import question_prompt
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.data_folder import data_folder
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.task import TaskSettings

_SPARE_TOKENS = 8
_DEPTHS = 4  # rounded to quarters, so that there are cells to draw
_RECORD_STARTS, _RECORD_ENDS = "Now the record start:", "Now the record is over."


class Sample(NamedTuple):
    """A published sample: its text, the prompt after it, what is to be found, and where that begins in the text."""

    text: str
    prompt: str
    values: tuple[str, ...]
    place: int


def read_samples(file: str, settings: TaskSettings) -> Iterator[Item]:
    """One item for each line of a file, named from here, from the data folder or from its `niah`.

    Raises:
        UsageError: the file is not there, or not in one of the known forms.
    """
    path = _find(file, settings.data)
    lines = list(islice(_read(path), settings.limit))
    form = next((name for name in _FORMS if lines and name in lines[0]), None)
    if form is None:
        raise UsageError(f"{path.name}: not in a form that needle reads", hint=f"fields wanted: {', '.join(_FORMS)}")
    kind, convert = _FORMS[form]
    try:
        samples = [convert(line) for line in lines]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path.name}: a line lacks what its form needs ({error})") from error
    length = len(encode(settings.tokenizer, samples[0].text))  # the samples of a file are equally long by design
    for number, sample in enumerate(samples):
        yield _item(number, sample, kind, path.name, length, settings)


def _item(number: int, sample: Sample, kind: str, file: str, length: int, settings: TaskSettings) -> Item:
    tokens = len(encode(settings.tokenizer, sample.text))
    distance = len(encode(settings.tokenizer, sample.text[sample.place :]))
    metadata = {
        "kind": kind,
        "length": length,
        "depth": round(_DEPTHS * (1 - distance / tokens)) / _DEPTHS,
        "distance_tokens": distance,
        "distance_writes": distance // settings.config.chunk_size,
        "file": file,
    }
    longest = len(encode(settings.tokenizer, " " + ", ".join(sample.values))) + _SPARE_TOKENS
    question = Question("q", sample.prompt, sample.values, 1, longest, metadata=metadata)
    return Item(f"{file.split('.')[0]}-{number}", (Document(sample.text, file),), (question,))


def _pairs(line: dict[str, Any]) -> Sample:
    records = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in line["ordered_kv_records"]]
    text = "JSON data:\n{" + ",\n ".join(records) + "}"
    place = text.index(f"{json.dumps(line['key'])}: ")
    question = f'What is the value of the key "{line["key"]}"?'
    return Sample(text, question_prompt(question), (line["value"],), place)


def _lines(line: dict[str, Any]) -> Sample:
    _, _, rest = line["prompt"].partition(_RECORD_STARTS)
    text, _, request = rest.partition(_RECORD_ENDS)
    text = text.strip()
    return Sample(
        text,
        question_prompt(request.strip()),
        (str(line["expected_number"]),),
        text.index(line["correct_line"].strip()),
    )


def _haystack(line: dict[str, Any]) -> Sample:
    text, _, prompt = line["input"].strip().rpartition("\n")
    values = tuple(line["outputs"])
    return Sample(text, prompt, values, min(text.index(value) for value in values))


_FORMS: dict[str, tuple[str, Callable[[dict[str, Any]], Sample]]] = {
    "ordered_kv_records": ("pairs", _pairs),
    "correct_line": ("lines", _lines),
    "outputs": ("haystack", _haystack),
}


def _find(file: str, data: Path | None) -> Path:
    folder = data_folder(data)
    places = [Path(file), folder / file, folder / "niah" / file]
    for place in places:
        if place.is_file():
            return place
    raise UsageError(
        f"needle: there is no file {file!r} here or in {folder}", hint="mplus eval needle:file=PATH, or --data FOLDER"
    )


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a jsonl file, split on newline characters only."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read ({error})") from error
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path.name}, line {number}: not JSON ({error})") from error
        if not isinstance(value, dict):
            raise UsageError(f"{path.name}, line {number}: not an object")
        yield value
