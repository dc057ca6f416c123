"""The kinds of facts: their closed lists of values, the wordings that tell them and the questions that ask for them.

Fields of the wordings and questions: {n} name, {v} value (once in a wording), {s} she/he, {p} her/his, {o} her/him, {a}
the animal a person keeps, {k} "sister" or "brother". Values begin with a consonant wherever "a" can stand before them.
In every kind the plainest wordings and questions come first: `ChronicleConfig.wordings` and `.question_forms` cut the
lists.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of fact.

    Attributes:
        name: identifier, as in `Fact.kind`.
        wordings: sentences that tell the fact.
        questions: forms of the question whose answer is the value.
        indirect: a form that also reads well when {n} is a description ("the person who lives in Velford").
        values: closed list of values; None where the value is an invented name.
    """

    name: str
    wordings: tuple[str, ...]
    questions: tuple[str, ...]
    indirect: str
    values: tuple[str, ...] | None = None


def _list(*lines: str) -> tuple[str, ...]:
    return tuple(part.strip() for line in lines for part in line.split(","))


ANIMALS = _list(
    "cat, dog, goat, donkey, pony, hen, duck, goose, raven, magpie, hedgehog, rabbit, hare, ferret, tortoise",
    "parrot, pigeon, lamb, fox, squirrel, weasel, lizard, jackdaw, heron",
)
TRADES = _list(
    "baker, cooper, miller, weaver, potter, tanner, tailor, cobbler, mason, carpenter, blacksmith, glazier",
    "thatcher, fletcher, saddler, brewer, butcher, shepherd, gardener, hunter, sailor, soldier, scribe, printer",
    "bookbinder, painter, clockmaker, candlemaker, ropemaker, beekeeper, teacher, doctor, lawyer, barber, cook",
    "goldsmith, wheelwright, dyer, locksmith, papermaker, glassblower, woodcarver, toymaker, fisher",
)
FOODS = _list(
    "plum cake, onion soup, honey bread, pea soup, roast turnips, apple pie, cherry pie, blue cheese",
    "pickled beets, barley porridge, nut bread, pancakes, dumplings, gingerbread, mushrooms, blackberries",
    "salted herring, lentil stew, bean stew, cabbage rolls, pear tart, walnuts, chestnuts, smoked trout",
    "rye bread, potato cakes, noodles, marzipan, strawberries, raisin buns, carrot soup, custard, quince jelly",
    "baked eggs",
)
INSTRUMENTS = _list(
    "fiddle, flute, lute, harp, drum, bagpipe, horn, trumpet, cello, guitar, mandolin, whistle, zither, banjo",
    "lyre, tambourine, viola, dulcimer, bassoon, clarinet, trombone, cornet",
)

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "home",
            (
                "{n} lives in {v}.",
                "The home of {n} is in {v}.",
                "{n} has a small house in {v}.",
                "You will find {n} at home in {v}.",
                "{n} has lived in {v} for many years.",
                "{v} is the town where {n} lives.",
            ),
            (
                "Where does {n} live?",
                "In which town does {n} live?",
                "What is the home town of {n}?",
                "Where is the home of {n}?",
            ),
            "In which town does {n} live?",
        ),
        Kind(
            "trade",
            (
                "{n} is a {v}.",
                "{n} works as a {v}.",
                "By trade {n} is a {v}.",
                "{n} earns {p} bread as a {v}.",
                "{n} has been a {v} for many years.",
                "The trade of {n} is that of a {v}.",
            ),
            (
                "What is the trade of {n}?",
                "What does {n} do for a living?",
                "What is {n}'s trade?",
                "What work does {n} do?",
            ),
            "What is the trade of {n}?",
            TRADES,
        ),
        Kind(
            "pet",
            (
                "{n} has a {a} called {v}.",
                "The {a} of {n} is called {v}.",
                "{n} calls {p} {a} {v}.",
                "{n} keeps a {a} by the name of {v}.",
                "{n} never goes out without {v}, {p} {a}.",
                "{v} is the name of {n}'s {a}.",
            ),
            (
                "What is the name of {n}'s pet?",
                "What is {n}'s pet called?",
                "What is the pet of {n} called?",
                "What name did {n} give to {p} pet?",
            ),
            "What is the pet of {n} called?",
        ),
        Kind(
            "animal",
            (
                "{n} keeps a {v}.",
                "{n} has a tame {v}.",
                "The pet of {n} is a {v}.",
                "{n} shares {p} house with a {v}.",
                "Wherever {n} goes, a {v} goes too.",
                "{n} once took in a hungry {v}, and it stayed.",
            ),
            (
                "What animal does {n} keep?",
                "What kind of animal is {n}'s pet?",
                "What kind of animal is the pet of {n}?",
                "Which animal does {n} have?",
            ),
            "What kind of animal is the pet of {n}?",
            ANIMALS,
        ),
        Kind(
            "journey",
            (
                "{n} once travelled to {v}.",
                "Last summer {n} travelled to {v}.",
                "{n} has made one long journey, to {v}.",
                "Years ago {n} went by boat to {v}.",
                "{n} still talks about {p} journey to {v}.",
                "The one great journey of {n} was to {v}.",
            ),
            (
                "Where did {n} travel?",
                "To which town did {n} travel?",
                "Where did {n} go on {p} journey?",
                "Where did the journey of {n} lead?",
            ),
            "To which town did {n} travel?",
        ),
        Kind(
            "birthplace",
            (
                "{n} was born in {v}.",
                "The birthplace of {n} is {v}.",
                "{n} was born and brought up in {v}.",
                "{n} was born far away, in {v}.",
                "One winter night {n} was born in {v}.",
                "{v} is where {n} was born.",
            ),
            (
                "Where was {n} born?",
                "In which town was {n} born?",
                "What is the birthplace of {n}?",
                "What town was {n} born in?",
            ),
            "In which town was {n} born?",
        ),
        Kind(
            "sibling",
            (
                "{n} has a {k} called {v}.",
                "The {k} of {n} is called {v}.",
                "{n} often writes to {p} {k} {v}.",
                "{n} grew up with {p} {k} {v}.",
                "{n} shared a room with {p} {k} {v} as a child.",
                "{v} is the {k} of {n}.",
            ),
            (
                "What is the name of {n}'s {k}?",
                "Who is the {k} of {n}?",
                "What is {n}'s {k} called?",
                "What is the {k} of {n} called?",
            ),
            "What is the {k} of {n} called?",
        ),
        Kind(
            "food",
            (
                "{n} likes {v} best of all food.",
                "The favourite food of {n} is {v}.",
                "{n} would walk a mile for {v}.",
                "Nothing tastes better to {n} than {v}.",
                "{n} loves {v} more than any other food.",
                "{n} dreams of {v} when {s} is hungry.",
            ),
            (
                "What is the favourite food of {n}?",
                "What food does {n} like best?",
                "What is {n}'s favourite food?",
                "What does {n} like to eat best?",
            ),
            "What is the favourite food of {n}?",
            FOODS,
        ),
        Kind(
            "instrument",
            (
                "{n} plays the {v}.",
                "In the evening {n} plays the {v}.",
                "The instrument of {n} is the {v}.",
                "{n} learned to play the {v} as a child.",
                "{n} owns a {v} and plays it well.",
                "{n} plays the {v} when there is dancing.",
            ),
            (
                "What instrument does {n} play?",
                "Which instrument does {n} play?",
                "What is the instrument of {n}?",
                "What is {n}'s instrument?",
            ),
            "What instrument does {n} play?",
            INSTRUMENTS,
        ),
    )
}

MOVE_WORDINGS = (
    "{n} has moved house and lives in {v} now.",
    "{n} has packed up everything and gone to live in {v}.",
    "The new home of {n} is in {v}.",
    "{n} has left the old house and lives in {v} now.",
)

# Openings that can stand before any wording that does not begin with the value.
LEADS = (
    "As everyone knows,",
    "It is well known that",
    "They say that",
    "I have heard that",
    "People say that",
    "You should know that",
    "It is said that",
    "The neighbours say that",
    "At the well I was told that",
    "There is no doubt that",
    "If you ask at the inn, you hear that",
    "In this street everyone knows that",
    "As far as I know,",
    "An old woman told me that",
)
