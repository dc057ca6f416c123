"""Where tasks find public data that is not part of the package: one folder, laid out by name of the collection.

    squad/*.json.gz   nq/*.jsonl.gz   babi/*.tar.xz   books/*.txt.gz   niah/*.jsonl.gz

It is the folder given with `--data`, else `$MPLUS_SHARED_DATA`, else `shared/data` beside the checkout.
"""

from __future__ import annotations

import os
from pathlib import Path

from mplus_cli.errors import UsageError

VARIABLE = "MPLUS_SHARED_DATA"
_BESIDE_CHECKOUT = Path(__file__).resolve().parents[3] / "shared" / "data"


def data_folder(given: Path | None = None) -> Path:
    """The folder of public data; it need not exist."""
    return given or Path(os.environ.get(VARIABLE) or _BESIDE_CHECKOUT)


def find_data(given: Path | None, pattern: str, what: str, hint: str) -> Path:
    """The first file by name that matches `pattern` below the data folder, or `given` itself where that is a file.

    Args:
        given: `TaskSettings.data`.
        pattern: such as `squad/*.json.gz`.
        what: what a message says is missing.
        hint: the command that builds or names it.

    Raises:
        UsageError: there is none.
    """
    if given is not None and given.is_file():
        return given
    folder = data_folder(given)
    found = sorted(folder.glob(pattern))
    if not found:
        place = f"no {pattern} in {folder}" if folder.is_dir() else f"there is no folder {folder}"
        raise UsageError(f"{what} is missing: {place}", hint=hint)
    return found[0]
