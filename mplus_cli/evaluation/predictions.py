"""predictions.jsonl: one line per sample, appended as it is finished, that survives whatever ends the process.

Each line ends with a checksum of the rest of it, so that a damaged line is found even if it still is JSON. A run of
several processes writes `predictions.RANK.jsonl` files, which are merged when it ends or goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mplus_cli.data.building.shards import atomic_write
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.items import Answer, Item, Question

NAME = "predictions.jsonl"
SYNC_SECONDS = 5.0
KEPT = 2_000  # characters kept at each end of a longer prompt
_CHECKSUM = "crc32"


@dataclass(frozen=True)
class Damage:
    """A line that cannot be used."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.reason}"


def record(task: str, system: str, item: Item, question: Question, answer: Answer, whole: bool) -> dict[str, Any]:
    """One sample as a line of predictions.jsonl: what was asked, what was answered, everything needed to score it.

    Args:
        whole: keep the prompt whole however long; else its ends, beside the checksum and length of all of it.
    """
    given = asdict(answer)
    prompt = given.pop("prompt")
    seconds = {name: round(value, 6) for name, value in given.pop("seconds").items()}
    return {
        "id": item.sample_id(question),
        "task": task,
        "system": system,
        **given,
        "seconds": seconds,
        "references": list(question.references),
        "options": list(question.options),
        "metadata": {**item.metadata, **question.metadata},
        "after": question.after,
        "max_new_tokens": question.max_new_tokens,
        "prompt": prompt if whole else shortened(prompt),
        "prompt_characters": len(prompt),
        "prompt_sha256": hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest(),
    }


def shortened(prompt: str) -> str:
    """The prompt, or the two ends of one that is a book."""
    left_out = len(prompt) - 2 * KEPT
    if left_out <= KEPT:
        return prompt
    return f"{prompt[:KEPT]}\n[... {left_out:,} characters ...]\n{prompt[-KEPT:]}"


class Writer:
    """Appends samples to a file. Every line reaches the operating system at once, and the disk every few seconds."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self._synced = time.monotonic()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def append(self, sample: Mapping[str, Any]) -> None:
        """Add one sample."""
        self._file.write(encode_line(sample))
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()


def encode_line(sample: Mapping[str, Any]) -> bytes:
    """A sample as a line with its checksum.

    Raises:
        ValueError: a number in it is not finite, which JSON cannot say.
    """
    body = json.dumps(sample, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass")
    return body[:-1] + b', "%s": "%08x"}\n' % (_CHECKSUM.encode(), zlib.crc32(body))


def decode_line(line: bytes) -> dict[str, Any]:
    """The sample in a line.

    Raises:
        ValueError: why it cannot be used.
    """
    body, mark, end = line.rpartition(b', "%s": "' % _CHECKSUM.encode())
    if not mark or not end.endswith(b'"}'):
        raise ValueError("cut off, or not a line of predictions")
    body += b"}"
    if end[:-2] != b"%08x" % zlib.crc32(body):
        raise ValueError("damaged: its checksum is wrong")
    sample = json.loads(body)
    if not isinstance(sample, dict) or not isinstance(sample.get("id"), str):
        raise ValueError("not a sample")
    return sample


def files(folder: Path) -> list[Path]:
    """The merged file first, then those of processes."""
    return [path for path in [folder / NAME] if path.is_file()] + sorted(folder.glob("predictions.[0-9]*.jsonl"))


def read(paths: Sequence[Path]) -> tuple[dict[str, dict[str, Any]], list[Damage]]:
    """Samples by id, the first of each id, and the lines that cannot be used."""
    samples: dict[str, dict[str, Any]] = {}
    damaged: list[Damage] = []
    for path, number, line in _lines(paths):
        try:
            sample = decode_line(line)
        except ValueError as error:
            damaged.append(Damage(path, number, str(error)))
        else:
            samples.setdefault(sample["id"], sample)
    return samples, damaged


def merge(folder: Path, order: Sequence[str]) -> tuple[dict[str, dict[str, Any]], list[Damage]]:
    """Bring all files of a folder into one, in the given order of ids, without damaged lines.

    Returns:
        As `read`. What damaged lines were about is to be asked again.

    Raises:
        UsageError: there are samples that do not belong here.
    """
    found = files(folder)
    samples, damaged = read(found)
    strange = sorted(samples.keys() - set(order))
    if strange:
        raise UsageError(f"{folder} holds {len(strange)} samples of another run, for example {strange[0]!r}.")
    ordered = {id: samples[id] for id in order if id in samples}
    whole = b"".join(encode_line(sample) for sample in ordered.values())
    target = folder / NAME
    if not target.is_file() or target.read_bytes() != whole:
        with atomic_write(target) as file:
            file.write(whole)
    for path in found:
        if path != target:
            path.unlink()
    return ordered, damaged


def _lines(paths: Sequence[Path]) -> Iterator[tuple[Path, int, bytes]]:
    for path in paths:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield path, number, line.rstrip(b"\n")
