"""Who a document is: a hash of its text, and its place in a keyed order. The same for whoever reads it, and where."""

from __future__ import annotations

import hashlib

ID_BYTES = 16


def document_id(text: str) -> str:
    """The identity of a document: a hash of its text (32 hex digits)."""
    return hashlib.blake2b(text.encode(), digest_size=ID_BYTES).hexdigest()


def sampling_key(identity: str, seed: int) -> str:
    """The place of a document in the order of a seed (32 hex digits)."""
    return hashlib.blake2b(identity.encode(), digest_size=ID_BYTES, key=str(seed).encode()).hexdigest()
