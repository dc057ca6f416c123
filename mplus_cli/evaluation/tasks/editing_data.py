"""Facts to edit, from the files they are published in: CounterFact, ZsRE, and edits made of factual relations.

    counterfact  counterfact.json, multi_counterfact.json (ROME, arXiv 2202.05262; MEMIT), or rows of the same fields;
                 CounterFact as comp-mech has it (arXiv 2402.11655): base_prompt, target_true, target_new, and no more
    zsre         zsre_mend_eval.json: subject, src, rephrase, alt, answers, loc, loc_ans
    lre          factual relations (arXiv 2308.09124): {relation: {prompt_templates, samples}}

They are JSON or rows of it, also compressed, or parquet. Relations become edits the way CounterFact was made: the new
answer is one of another subject, paraphrases are the relation's other templates, and neighbours are other subjects with
the same true answer; subjects that have none are left out.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from mplus_cli.data.building.rows import BadRows, read_objects
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.data_folder import data_folder
from mplus_cli.evaluation.hub_file import HubFile

Dataset = Literal["counterfact", "zsre", "lre"]
AUTHORS = "https://rome.baulab.info/data/dsets/"
FILES = {"counterfact": "counterfact.json", "zsre": "zsre_mend_eval.json"}
# The authors' data in parquet, in two parts of another order; `case_id` is the authors'.
HUB = tuple(
    HubFile("azhx/counterfact", "c01c413f856ee38f5c080c9fc5e87aff478e2ff9", f"data/{name}.parquet")
    for name in ("train-00000-of-00001-05d11247db7abce8", "test-00000-of-00001-bacb83500fca49a9")
)
_FOLDERS = ("", "editing")
_PATTERNS = {
    "counterfact": ("counterfact.json*", "multi_counterfact.json*", "counterfact*.json*", "counterfact*.parquet"),
    "zsre": ("zsre_mend_eval.json*", "zsre*.json*", "zsre*.parquet"),
    "lre": ("lre*.json*",),
}
_NEIGHBOURS = 10  # CounterFact's number


@dataclass(frozen=True)
class Edit:
    """A fact that is to be changed, and what is asked about it.

    Attributes:
        prompt: text that the answer continues; new: the answer to be told.
        old: the answer before; None where the data set has none that could be compared.
        paraphrases: other prompts for the same answer.
        neighbours: prompts about something else, each with its answer, which must stay.
        relation: what kind of fact it is, where the data tell; source: name of the file.
    """

    id: str
    prompt: str
    new: str
    old: str | None
    paraphrases: tuple[str, ...]
    neighbours: tuple[tuple[str, str], ...]
    relation: str
    source: str


def read_edits(dataset: Dataset, given: Path | None, answer: Literal["answers", "alt"], seed: int) -> Iterator[Edit]:
    """The edits of a data set, in the order of its file.

    Args:
        given: `TaskSettings.data`, a file or a folder; None for the folder of public data, then the hub.
        answer: field of ZsRE that the new answer is taken from; seed: of the new answers of relations.

    Raises:
        UsageError: there is no such file, it is damaged, or it is in another form.
    """
    path = _find(dataset, given)
    if path is None:
        rows, source = _from_hub(dataset, given), HUB[0].repository
    else:
        rows, source = _rows(path), path.name
    if dataset == "lre":
        yield from _relations(rows, source, seed)
        return
    number = -1
    for number, row in enumerate(rows):
        try:
            yield _zsre(row, number, source, answer) if dataset == "zsre" else _counterfact(row, number, source)
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            fields = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
            raise UsageError(
                f"{source}, record {number + 1}: not a record of {dataset} ({_reason(error)}); it has {fields}",
                _hint(dataset),
            ) from error
    if number < 0:
        raise UsageError(f"{source} has no records", _hint(dataset))


def _counterfact(row: Mapping[str, Any], number: int, source: str) -> Edit:
    if "base_prompt" in row and "requested_rewrite" not in row:
        prompt, new, old = (_text(row[key]) for key in ("base_prompt", "target_new", "target_true"))
        return Edit(f"counterfact-{number}", prompt, new, old, (), (), "", source)
    asked = row["requested_rewrite"]
    new, old = _text(asked["target_new"]["str"]), _text(asked["target_true"]["str"])
    paraphrases = tuple(_text(one) for one in row["paraphrase_prompts"])
    neighbours = tuple((_text(one), old) for one in row["neighborhood_prompts"])
    prompt = _text(asked["prompt"]).replace("{}", _text(asked["subject"]))
    relation = str(asked.get("relation_id", ""))
    return Edit(f"counterfact-{number}", prompt, new, old, paraphrases, neighbours, relation, source)


def _zsre(row: Mapping[str, Any], number: int, source: str, answer: str) -> Edit:
    """As ROME reads it: the neighbour is a question of Natural Questions, which lacks its question mark."""
    new = _text(row["answers"][0] if answer == "answers" else row["alt"])
    neighbour = (f"{_text(row['loc'])}?", _text(row["loc_ans"]))
    return Edit(f"zsre-{number}", _text(row["src"]), new, None, (_text(row["rephrase"]),), (neighbour,), "", source)


def _relations(rows: Iterator[Any], source: str, seed: int) -> Iterator[Edit]:
    """One edit of each relation in turn, so that a limit takes as many of each."""
    relations, count = next(rows, None) or {}, 0
    try:
        left = deque(_of_relation(name, relation, source, seed) for name, relation in relations.items())
        while left:
            edits = left.popleft()
            edit = next(edits, None)
            if edit is not None:
                yield edit
                count += 1
                left.append(edits)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        wanted = "{relation: {prompt_templates, samples: [{subject, object}]}}"
        raise UsageError(f"{source}: not factual relations ({_reason(error)}); wanted: {wanted}") from error
    if not count:
        raise UsageError(f"{source} has no relation with several templates and with subjects of the same object")


def _of_relation(name: str, relation: Mapping[str, Any], source: str, seed: int) -> Iterator[Edit]:
    known = [(_text(one["subject"]), _text(one["object"])) for one in relation["samples"]]
    templates = [*relation["prompt_templates"], *relation.get("prompt_templates_zs", ())]
    first, *others = [text for text in dict.fromkeys(map(_text, templates)) if "{}" in text]
    rng, objects = Random(f"{seed}/editing/{name}"), sorted({answer for _, answer in known})
    if not others or len(objects) < 2:
        return
    for number, (subject, old) in enumerate(known):
        alike = [one for one, answer in known if answer == old and one != subject]
        new = rng.choice([one for one in objects if one != old])
        if alike:
            neighbours = rng.sample(alike, min(_NEIGHBOURS, len(alike)))
            yield Edit(
                f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{number}",
                first.replace("{}", subject),
                new,
                old,
                tuple(template.replace("{}", subject) for template in others),
                tuple((first.replace("{}", one), old) for one in neighbours),
                name,
                source,
            )


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} in the place of a text")
    return value.strip()


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _find(dataset: Dataset, given: Path | None) -> Path | None:
    """The file; None to ask the hub."""
    if given is not None and given.is_file():
        return given
    folder = data_folder(given)
    for pattern in _PATTERNS[dataset]:
        for name in _FOLDERS:
            found = sorted((folder / name).glob(pattern))
            if found:
                return found[0]
    return None


def _from_hub(dataset: Dataset, given: Path | None) -> Iterator[Any]:
    folder = data_folder(given)
    missing = f"{dataset} is missing: no {_PATTERNS[dataset][0]} in {folder} or its editing"
    if given is not None or dataset != "counterfact":
        raise UsageError(missing, _hint(dataset))
    paths = [file.fetch(missing, _hint(dataset)) for file in HUB]
    rows = [row for path in paths for _, row in read_objects(str(path), BadRows(0), path.name)]
    return iter(sorted(rows, key=lambda row: row["case_id"]))


def _hint(dataset: Dataset) -> str:
    if dataset == "lre":
        return "--data FILE, one JSON object with the relations of github.com/evandez/relations, data/factual"
    file = FILES[dataset]
    return f"curl -LO {AUTHORS}{file}, then mplus eval editing:dataset={dataset} --data {file}"


def _rows(path: Path) -> Iterator[Any]:
    """The records of a file: the elements of a JSON list, a JSON object as the only one, or rows."""
    name = path.name.lower()
    if not name.removesuffix(".gz").endswith(".json"):
        for _, row in read_objects(str(path), BadRows(0), path.name):
            yield row
        return
    opened: Callable[[Path], Any] = gzip.open if name.endswith(".gz") else open
    try:
        with opened(path) as file:
            content = file.read()
        value = json.loads(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path.name} is damaged or cannot be read: {error}", "Download it again.") from error
    except ValueError as error:
        raise UsageError(f"{path.name} is not JSON: {error}", "Download it again.") from error
    records: Sequence[Any] = value if isinstance(value, list) else [value]
    yield from records
