"""Where LongBench's records are found, and reading them.

They are LongBench's own `NAME.jsonl`, also compressed or as parquet, or its `data.zip`; in the folder or file given as
data, else in `longbench` of the folder of public data, else on the hub at one commit.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mplus_cli.data.building.files import SUFFIXES
from mplus_cli.data.building.rows import BadRows, parse_line, read_objects
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.data_folder import data_folder
from mplus_cli.evaluation.hub_file import HubFile
from mplus_cli.evaluation.tasks.longbench_sets import SETS

# The authors' own repository. Copies of it in parquet, such as the one of lm-evaluation-harness, hold prompts in the
# place of context and question, and not word for word LongBench's.
HUB = HubFile(
    "zai-org/LongBench",
    "5e628be450b7e67fb7ae6e201bd6d8f7056f7672",
    "data.zip",
    "cb45b11a4133c6bc1d6a44b0f8e701335ff1e543195db1103472e575857f7f64",
)
HINT = f"{HUB.command} --local-dir DIR, then mplus eval longbench --data DIR"
_FOLDERS = ("", "longbench", "data")


@dataclass(frozen=True)
class Place:
    """Where the records of one set are: a file, or a member of a zip file."""

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        """As results name it."""
        return f"{self.path.name}:{self.member}" if self.member else self.path.name

    def records(self, dataset: str) -> Iterator[dict[str, Any]]:
        """The records of a set.

        Raises:
            UsageError: the file is damaged, or its rows are no records of LongBench.
        """
        bad = BadRows(0)
        if self.member is None:
            rows = read_objects(str(self.path), bad, self.path.name)
        else:
            rows = _member_rows(self.path, self.member, bad)
        for number, row in rows:
            if isinstance(row, dict) and row.get("dataset", dataset) in (dataset, f"{dataset}_e"):
                yield _checked(row, dataset, f"{self.name}, line {number + 1}")


def find_set(dataset: str, given: Path | None) -> Place:
    """Where a set is.

    Args:
        given: `TaskSettings.data`; where it is given, nothing else is looked at.

    Raises:
        UsageError: it is nowhere, and the hub cannot be reached.
    """
    if given is not None and given.is_file():
        place = _in_zip(given, dataset) if given.suffix == ".zip" else Place(given)
        if place is not None:
            return place
    folder = data_folder(given)
    for name in _FOLDERS:
        place = _in_folder(folder / name, dataset)
        if place is not None:
            return place
    missing = f"LongBench's {dataset} is missing: no {dataset}.jsonl in {folder} or its longbench"
    if given is not None:
        raise UsageError(missing, HINT)
    place = _in_zip(HUB.fetch(missing, HINT), dataset)
    if place is None:
        raise UsageError(f"{HUB.repository} has no {dataset}", HINT)
    return place


def _in_folder(folder: Path, dataset: str) -> Place | None:
    for suffix in SUFFIXES:
        if (folder / f"{dataset}{suffix}").is_file():
            return Place(folder / f"{dataset}{suffix}")
    parts = sorted((folder / dataset).glob("test*.parquet"))
    if parts:
        return Place(parts[0])
    return _in_zip(folder / "data.zip", dataset) if (folder / "data.zip").is_file() else None


def _in_zip(path: Path, dataset: str) -> Place | None:
    with _opened(path) as archive:
        names = [name for name in archive.namelist() if name.rpartition("/")[2] == f"{dataset}.jsonl"]
    return Place(path, names[0]) if names else None


def _member_rows(path: Path, member: str, bad: BadRows) -> Iterator[tuple[int, Any]]:
    with _opened(path) as archive, archive.open(member) as file:
        stream: IO[bytes] = file
        for number, line in enumerate(stream):
            if line.strip():
                yield number, parse_line(line, bad, f"{path.name}:{member}", number)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UsageError(f"{path} is damaged or cut off: {error}", HINT) from error


def _checked(row: Mapping[str, Any], dataset: str, where: str) -> dict[str, Any]:
    """The fields of a record that are used; `classes` are `all_classes`."""
    if "answer_prefix" in row and "input" not in row:
        raise UsageError(f"{where}: a rewritten copy of LongBench, with prompts in the place of its fields", HINT)
    answers = row.get("answers")
    right = isinstance(answers, list) and answers and all(isinstance(answer, str) for answer in answers)
    if not right or not isinstance(row.get("context"), str) or not isinstance(row.get("input"), str):
        raise UsageError(f"{where}: not a record of LongBench (fields wanted: context, input, answers)", HINT)
    classes = row.get("all_classes") or []
    if SETS[dataset].metric == "classification" and not classes:
        raise UsageError(f"{where}: no all_classes, which the metric of {dataset} needs", HINT)
    return {
        "id": str(row.get("_id", "")),
        "context": row["context"],
        "input": row["input"],
        "answers": answers,
        "classes": list(classes),
        "words": int(row.get("length") or len(row["context"].split())),
    }
