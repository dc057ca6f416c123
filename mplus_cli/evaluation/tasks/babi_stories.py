"""bAbI stories with one question each: read from the published files, or made in the same language.

Published: "bAbI tasks 1-20 v1.2", `en/qaN_*_test.txt`, as a folder or a tar archive (arXiv 1502.05698). A story with
several questions gives one `Story` for each: the facts before it, without the other questions. Its number is what
BABILong's list of 100 stories per task counts (arXiv 2406.10149).
"""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

from mplus_cli.data.chronicle.names import pick
from mplus_cli.errors import UsageError

PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
OBJECTS = ("apple", "football", "milk")
_PEOPLE = ("Daniel", "John", "Mary", "Sandra")
_GIVERS = ("Bill", "Fred", "Jeff", "Mary")
_YES = ("no", "yes")
LABELS: dict[str, tuple[str, ...]] = {  # every answer of a task
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4"), PLACES),
    "qa5": (*_GIVERS, *OBJECTS),
    "qa6": _YES,
    "qa7": ("none", "one", "two", "three"),
    "qa8": ("nothing", *OBJECTS),
    "qa9": _YES,
    "qa10": ("maybe", *_YES),
}
GENERATED = ("qa1", "qa2", "qa3", "qa4", "qa5")
_GO = ("went to", "moved to", "travelled to", "journeyed to", "went back to")
_TAKE = ("got", "took", "grabbed", "picked up")
_DROP = ("dropped", "left", "put down", "discarded")
_GIVE = ("gave", "handed", "passed")


@dataclass(frozen=True)
class Story:
    """Facts in order, a question, its answer (several words of one are divided by commas).

    Attributes:
        support: which facts (from 0) the answer follows from.
    """

    number: int
    facts: tuple[str, ...]
    question: str
    answer: str
    support: tuple[int, ...]


# -- published files --


def published_stories(place: Path, task: str) -> list[Story]:
    """Every story of the test file of a task.

    Args:
        place: a tar archive, or a folder with `qaN_*_test.txt` somewhere in it.

    Raises:
        UsageError: there is no such file, or a line of it is in another form.
    """
    name = re.compile(rf"(?:^|/)(?:en/)?{task}_[^/]*_test\.txt$")
    try:
        text = _from_folder(place, name) if place.is_dir() else _from_archive(place, name)
    except (OSError, tarfile.TarError, EOFError, UnicodeDecodeError) as error:
        raise UsageError(f"{place} cannot be read ({error})") from error
    if text is None:
        raise UsageError(f"{place} has no English test file of {task}")
    return parse_stories(text, f"{place.name}, {task}")


def _from_folder(place: Path, name: re.Pattern[str]) -> str | None:
    found = sorted(path for path in place.rglob("qa*_test.txt") if name.search(path.as_posix()))
    found = [path for path in found if path.parent.name == "en"] or found
    return found[0].read_text(encoding="utf-8") if found else None


def _from_archive(place: Path, name: re.Pattern[str]) -> str | None:
    with tarfile.open(place) as archive:
        found = sorted(entry for entry in archive.getnames() if name.search(entry))
        found = [entry for entry in found if "/en/" in entry] or found
        file = archive.extractfile(found[0]) if found else None
        return None if file is None else file.read().decode("utf-8")


def parse_stories(text: str, name: str) -> list[Story]:
    """The stories of a file. A line is `number sentence`, or `number question<TAB>answer<TAB>numbers of facts`.

    Some copies of the files have `|` in place of the tabs.
    """
    stories: list[Story] = []
    facts: dict[int, str] = {}
    for at, line in enumerate(text.strip().split("\n"), 1):
        try:
            number_text, _, rest = line.strip().partition(" ")
            number = int(number_text)
            sentence, *answer = [part.strip() for part in re.split(r"[\t|]", rest)]
            if number == 1:
                facts = {}
            if not answer:
                facts[number] = sentence
                continue
            held = list(facts)
            support = tuple(held.index(int(each)) for each in answer[1].split())
            stories.append(Story(len(stories), tuple(facts.values()), sentence, answer[0], support))
        except (ValueError, IndexError) as error:
            raise UsageError(f"{name}, line {at}: not in the form of bAbI ({line[:60]!r})") from error
    return stories


def chosen_numbers(path: Path, task: str) -> list[int] | None:
    """BABILong's choice of stories for a task, from its JSON file; None where the file does not list the task."""
    try:
        return [int(number) for number in json.loads(path.read_text(encoding="utf-8"))[task]]
    except KeyError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is not a list of stories for each task ({error})") from error


# -- stories of our own --


def generated_story(task: str, number: int, seed: int) -> Story:
    """A story in bAbI's language, for qa1 to qa5."""
    rng = Random(f"{seed}/{task}/{number}")
    if task == "qa4":
        facts, question, answer, support = _rooms(rng)
    elif task == "qa5":
        facts, question, answer, support = _gifts(rng)
    else:
        facts, question, answer, support = _walks(rng, task)
    return Story(number, tuple(facts), question, answer, tuple(support))


_Told = tuple[list[str], str, str, list[int]]


def _walks(rng: Random, task: str) -> _Told:
    """People walk about and, for qa2 and qa3, carry things: where somebody or something is, or was before."""
    moves_only = task == "qa1"
    wanted = {"qa1": 2, "qa2": 6, "qa3": 14}[task] + int(rng.random() * {"qa1": 9, "qa2": 14, "qa3": 20}[task])
    facts: list[str] = []
    at: dict[str, tuple[str, int]] = {}  # person -> place, fact
    held: dict[str, tuple[str, int]] = {}  # thing -> person, fact
    been: dict[str, list[tuple[str, list[int]]]] = {thing: [] for thing in OBJECTS}  # places in order, with support

    while True:
        person, number = pick(rng, _PEOPLE), len(facts)
        own = [thing for thing, (who, _) in held.items() if who == person]
        choice = rng.random()
        if moves_only or choice < 0.55 or (not own and len(held) == len(OBJECTS)):
            place = pick(rng, [p for p in PLACES if p != at.get(person, ("",))[0]])
            facts.append(f"{person} {pick(rng, _GO)} the {place}.")
            at[person] = (place, number)
            for thing in own:
                been[thing].append((place, [held[thing][1], number]))
        elif own and choice < 0.7:
            thing = pick(rng, own)
            facts.append(f"{person} {pick(rng, _DROP)} the {thing}.")
            del held[thing]
        else:
            free = [t for t in OBJECTS if t not in held and (not been[t] or been[t][-1][0] == at.get(person, ("",))[0])]
            if not free or person not in at:
                continue
            thing = pick(rng, free)
            facts.append(f"{person} {pick(rng, _TAKE)} the {thing} there.")
            held[thing] = (person, number)
            if not been[thing]:
                been[thing].append((at[person][0], [number, at[person][1]]))
        told = _asked(rng, task, at, been) if len(facts) >= wanted else None
        if told is not None:
            return (facts, *told)


def _asked(rng: Random, task: str, at: dict, been: dict) -> tuple[str, str, list[int]] | None:
    """A question about the story so far, if one can be asked."""
    if task == "qa1":
        person = pick(rng, sorted(at))
        return f"Where is {person}?", at[person][0], [at[person][1]]
    least = 1 if task == "qa2" else 2
    things = [thing for thing in OBJECTS if len(been[thing]) >= least]
    if not things:
        return None
    thing = pick(rng, things)
    place, support = been[thing][-1]
    if task == "qa2":
        return f"Where is the {thing}?", place, sorted(set(support))
    before, more = been[thing][-2]
    return f"Where was the {thing} before the {place}?", before, sorted({*support, *more})


def _rooms(rng: Random) -> _Told:
    """Three rooms in a row, told as two relations of neighbours in either direction; the middle one is asked about."""
    low, high = pick(rng, (("west", "east"), ("south", "north")))
    rooms = rng.sample(PLACES, 3)  # from low to high
    pairs = [(rooms[0], rooms[1]), (rooms[1], rooms[2])]
    facts = [
        f"The {b} is {high} of the {a}." if rng.random() < 0.5 else f"The {a} is {low} of the {b}." for a, b in pairs
    ]
    upwards, direct = rng.random() < 0.5, rng.random() < 0.5
    answer = rooms[2] if upwards else rooms[0]
    # What lies high of the middle is what the middle is low of.
    question = (
        f"What is {high if upwards else low} of the {rooms[1]}?"
        if direct
        else f"What is the {rooms[1]} {low if upwards else high} of?"
    )
    support = [1 if upwards else 0]
    if rng.random() < 0.5:
        facts.reverse()
        support = [1 - support[0]]
    return facts, question, answer, support


def _gifts(rng: Random) -> _Told:
    """People take things and give them to each other; the last gift is asked about."""
    facts: list[str] = []
    held: dict[str, str] = {}
    wanted = 5 + int(rng.random() * 12)
    while True:
        thing, choice = pick(rng, OBJECTS), rng.random()
        if choice < 0.45:
            facts.append(f"{pick(rng, _GIVERS)} {pick(rng, _GO)} the {pick(rng, PLACES)}.")
        elif thing not in held:
            held[thing] = pick(rng, _GIVERS)
            facts.append(f"{held[thing]} {pick(rng, _TAKE)} the {thing} there.")
        else:
            giver = held[thing]
            taker = held[thing] = pick(rng, [who for who in _GIVERS if who != giver])
            facts.append(f"{giver} {pick(rng, _GIVE)} the {thing} to {taker}.")
            if len(facts) >= wanted:
                questions = (
                    (f"What did {giver} give to {taker}?", thing),
                    (f"Who gave the {thing} to {taker}?", giver),
                    (f"Who gave the {thing}?", giver),
                    (f"Who did {giver} give the {thing} to?", taker),
                    (f"Who received the {thing}?", taker),
                )
                return (facts, *pick(rng, questions), [len(facts) - 1])
