"""Forms of person names: titles, and a mention made clean (rule 1 of `characters`)."""

from __future__ import annotations

import re


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


MALE = _set("mr mister sir lord master monsieur count prince king duke baron earl marquis don herr father uncle")
FEMALE = _set("lady ms countess princess queen duchess baroness marchioness dame donna aunt mother")
MARRIED, UNMARRIED = _set("mrs madame mme frau"), _set("miss mademoiselle mlle fraulein")
RANKS = _set("dr doctor captain colonel major general lieutenant sergeant professor prof judge inspector")
TITLES = MALE | FEMALE | MARRIED | UNMARRIED | RANKS | {"reverend", "rev", "saint", "st"}
FAMILY_NAME_FOLLOWS = {"mr", "mister", "mrs"} | RANKS
_DOTTED = {"mr", "mrs", "dr", "prof", "rev", "st", "mme", "mlle"}


def clean_name(text: str) -> str | None:
    """Rule 1 for one mention; None for what is no name."""
    text = re.sub(r"['’]s?$", "", " ".join(text.replace("_", " ").split()).strip(" .,;:!?\"“”‘’'()[]-—"))
    words = [_capital(word) for word in text.split()]
    titles = [word for word in words if plain_title(word) in TITLES]
    names = [word for word in words if plain_title(word) not in TITLES]
    if not names or not all(len(name.strip(".")) > 1 or name.endswith(".") for name in names):
        return None
    if not names[0][0].isupper() or not names[-1][0].isupper() or any(char.isdigit() for char in text):
        return None
    return " ".join(
        [*(f"{title.rstrip('.')}." if plain_title(title) in _DOTTED else title for title in titles), *names]
    )


def plain_title(word: str) -> str:
    """`Mrs.` -> `mrs`: as the sets of titles hold it."""
    return word.rstrip(".").casefold()


def _capital(word: str) -> str:
    return word.capitalize() if word.isupper() and len(word) > 2 else word
