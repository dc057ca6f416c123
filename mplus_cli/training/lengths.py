"""Which documents go into a batch together, and what it costs that they are not equally long."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from mplus_cli.training.examples import Example, Tokenized


def choose_batch(window: Sequence[Tokenized], size: int) -> list[int]:
    """Places of the next batch in the window, ascending: the document that has waited longest, and its likes.

    Of all runs of neighbours by length that contain it, the one with the least padding. Documents of an epoch that is
    over all go before those of the next, and meet themselves there only when there are no others.
    """
    lengths = [len(document.tokens) for document in window]
    oldest = [place for place, document in enumerate(window) if document.place.epoch == window[0].place.epoch]
    if len(oldest) <= size:
        ids = {window[place].id for place in oldest}
        rest = set(range(len(window))).difference(oldest)
        later = sorted(rest, key=lambda place: (window[place].id in ids, abs(lengths[place] - lengths[0]), place))
        return sorted([*oldest, *later[: size - len(oldest)]])
    order = sorted(oldest, key=lambda place: (lengths[place], place))
    first = order.index(0)

    def waste(start: int) -> int:
        run = [lengths[place] for place in order[start : start + size]]
        return size * run[-1] - sum(run)

    best = min(range(max(0, first - size + 1), min(first, len(order) - size) + 1), key=waste)
    return sorted(order[best : best + size])


def padding(examples: Sequence[Example]) -> tuple[int, int]:
    """Tokens of a batch; and places it takes up when the rows are written side by side, context by context.

    All rows take as many contexts as the one with most, each as long as the longest of its number; so do targets.
    """
    writes = zip_longest(*[map(len, example.contexts) for example in examples], fillvalue=0)
    longest = sum(map(max, writes)) + max(len(example.target) for example in examples)
    return sum(example.tokens for example in examples), len(examples) * longest
