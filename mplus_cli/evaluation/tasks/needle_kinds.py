"""What is hidden in a haystack and how it is asked for: facts, magic numbers, lines and pairs of keys and values."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

from mplus_cli.data.chronicle import ChronicleConfig, World
from mplus_cli.data.chronicle.kinds import KINDS
from mplus_cli.data.chronicle.names import pick

Kind = Literal["single", "multi_key", "multi_value", "lines", "pairs"]
Value = Literal["fact", "number", "word", "uuid"]


def _words(*lines: str) -> tuple[str, ...]:
    return tuple(word for line in lines for word in line.split())


_ADJECTIVES = _words(
    "amber ancient azure bold brave brief bright brisk broad calm careful cheerful clever cold common cosy crisp",
    "curly daring deep dusty eager early earnest empty faint famous fierce gentle giant glad golden grand green",
    "happy hasty hidden hollow honest humble icy idle jolly keen large lively lonely loud lucky merry mild misty",
    "modest narrow neat noble nimble odd pale patient plain polite proud quick quiet rapid rare red remote rosy",
    "rough round royal rusty sharp shiny silent silver simple slender smooth snowy solid stable steady steep",
    "still stormy sturdy sunny sweet swift tall tame tidy tiny tired upright useful vast violet warm wide wild",
    "windy wise witty young",
)
_NOUNS = _words(
    "acorn anchor apple apron arrow badge barrel basket beacon bell bench blanket bottle bridge broom bucket",
    "button cabin cabinet candle canvas carpet castle chain chair chimney cloak clock cloud comet compass copper",
    "cradle crane crown cushion desert drum engine fabric falcon feather fence ferry flag forest fountain garden",
    "garnet glove goblet hammer harbour hedge helmet hill island jacket jar kettle kite ladder lamp lantern",
    "ledger letter lion magnet maple market marsh meadow mirror mountain needle notebook oar orchard otter oven",
    "owl paddle palace parcel pebble pencil pepper piano pillow planet pocket prairie puzzle quilt raft ribbon",
    "river rocket saddle sailor sandal scarf shell spoon spruce statue table teapot temple thimble ticket tiger",
    "tower train trumpet tunnel valley vessel village violin wagon walnut whistle willow window winter wolf",
)


@dataclass(frozen=True)
class HiddenNeedle:
    """A sentence to hide, and the question whose answer is its value.

    Attributes:
        key: what the question names.
    """

    key: str
    value: str
    sentence: str
    question: str


@dataclass(frozen=True)
class Record:
    """The form of one line of a list of keys and values, and of the question for one of them."""

    line: str
    question: str
    value: Value


RECORDS: dict[Kind, Record] = {
    "lines": Record(  # LongEval's
        "line {key}: REGISTER_CONTENT is <{value}>", "What is the REGISTER_CONTENT in line {key}?", "number"
    ),
    "pairs": Record('"{key}": "{value}",', 'What is the value of the key "{key}"?', "uuid"),  # Lost in the Middle's
}


def random_value(kind: Value, rng: Random) -> str:
    """A magic number of seven digits, a word of two parts, or a UUID."""
    if kind == "word":
        return f"{pick(rng, _ADJECTIVES)}-{pick(rng, _NOUNS)}"
    if kind == "uuid":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return str(1_000_000 + int(rng.random() * 9_000_000))


def random_keys(count: int, rng: Random) -> list[str]:
    """Different words of two parts; of three, where there are too few of those."""
    pairs = len(_ADJECTIVES) * len(_NOUNS)
    chosen = rng.sample(range(pairs if 2 * count <= pairs else pairs * len(_ADJECTIVES)), count)
    words = []
    for number in chosen:
        number, noun = divmod(number, len(_NOUNS))
        more, adjective = divmod(number, len(_ADJECTIVES))
        first = [_ADJECTIVES[more]] if 2 * count > pairs else []
        words.append("-".join([*first, _ADJECTIVES[adjective], _NOUNS[noun]]))
    return words


def magic_needles(count: int, value: Value, rng: Random, same_key: bool = False) -> list[HiddenNeedle]:
    """RULER's needles (arXiv 2404.06654, table 1): each with a key of its own, or all values of one key."""
    name = {"word": "word", "uuid": "uuid"}.get(value, "number")
    keys = random_keys(1, rng) * count if same_key else random_keys(count, rng)
    form = (
        f"What are all the special magic {name}s for {{}}?"
        if same_key
        else f"What is the special magic {name} for {{}}?"
    )
    values: list[str] = []
    while len(values) < count:
        candidate = random_value(value, rng)
        if candidate not in values:
            values.append(candidate)
    return [
        HiddenNeedle(key, value, f"One of the special magic {name}s for {key} is: {value}.", form.format(key))
        for key, value in zip(keys, values, strict=True)
    ]


def fact_needles(count: int, rng: Random, taken: Callable[[str], bool]) -> list[HiddenNeedle]:
    """Facts of one kind about invented people, each with a value of its own: the bundled model's own language.

    Args:
        taken: whether a name stands in the haystack already.
    """
    kind = pick(rng, list(KINDS))
    known = KINDS[kind]
    config = ChronicleConfig(kinds=(kind,), facts_per_person=1, people_per_scene=1)
    world = World(rng, config, "test")
    form = pick(rng, known.questions)
    needles: list[HiddenNeedle] = []
    while len(needles) < count:
        (person,), _ = world.cast(1, 1)
        value = person.values[kind]
        if taken(person.name) or any(value == other.value for other in needles):
            continue
        words = person.words | {"v": value}
        wording = pick(rng, [w for w in known.wordings if w.startswith("{n}")])
        needles.append(HiddenNeedle(person.name, value, wording.format_map(words), form.format_map(words)))
    return needles
