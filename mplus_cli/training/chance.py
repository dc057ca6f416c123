"""Random numbers as pure functions of what they are for: nothing to save, the same on every machine."""

from __future__ import annotations

import hashlib

import numpy as np


def number(*names: object) -> int:
    """A 63-bit number that depends on `names` alone, such as (seed, "memory", rank, row)."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def uniform(*names: object) -> float:
    """A number in [0, 1)."""
    return number(*names) / (1 << 63)


def generator(*names: object) -> np.random.Generator:
    """A generator of its own."""
    return np.random.default_rng(number(*names))
