"""The tokenizer a builder was told to count with, and its identity for the manifest."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mplus_cli.data.building import Tokenizer
from mplus_cli.data.building.lengths import fetch_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def open_tokenizer(name: str) -> tuple[PreTrainedTokenizerBase, Tokenizer]:
    """Load a tokenizer from a tokenizer.json, a folder that holds one, or a hub id.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        identity = fetch_tokenizer(name, path)
        return PreTrainedTokenizerFast(tokenizer_file=str(path)), identity
