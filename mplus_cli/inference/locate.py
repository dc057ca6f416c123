"""Which memory file and which model a command means, when it is not told."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_state_path

from mplus_cli.errors import UsageError

BUNDLED_MODEL = "default"
_PACKAGE = Path(__file__).resolve().parents[1]


def user_file(name: str) -> Path:
    """A file in this user's state directory (last memory file, line history)."""
    return user_state_path("mplus") / name


def find_state(option: Path | None) -> Path:
    """The memory file to use: the option, else `$MPLUS_STATE`, else the one last injected into.

    Raises:
        UsageError: none of the three, or the file is not there.
    """
    if option is not None:
        path, whence = option, "--state"
    elif os.environ.get("MPLUS_STATE"):
        path, whence = Path(os.environ["MPLUS_STATE"]), "$MPLUS_STATE"
    else:
        last = last_state()
        if last is None:
            raise UsageError("no memory file was named, and none has been made yet", hint=_INJECT.format("memory.pt"))
        path, whence = last, "the memory file last injected into"
    if not path.exists():
        raise UsageError(f"{path}: no such file ({whence})", hint=_INJECT.format(path))
    return path


_INJECT = "mplus inject BOOK.txt --state {}"


def state_to_write(option: Path | None) -> Path:
    """The memory file that `inject` writes: the option, else `$MPLUS_STATE`.

    Raises:
        UsageError: neither is given; a file that was used last is never written without being named.
    """
    if option is not None:
        return option
    if os.environ.get("MPLUS_STATE"):
        return Path(os.environ["MPLUS_STATE"])
    raise UsageError("no memory file was named", hint="mplus inject SOURCE... --state memory.pt")


def last_state() -> Path | None:
    """The memory file last injected into by this user."""
    try:
        text = user_file("last-state").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return Path(text) if text else None


def remember_state(path: Path) -> None:
    """Let later commands find this memory file. A state directory that cannot be written is no reason to fail."""
    record = user_file("last-state")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(f"{path.resolve()}\n", encoding="utf-8")
    except OSError:
        return


def bundled_model() -> Path | None:
    """The folder of the bundled model: inside an installed package, or at the top of a checkout."""
    for folder in (_PACKAGE / "assets" / BUNDLED_MODEL, _PACKAGE.parent / "assets" / BUNDLED_MODEL):
        if (folder / "config.json").is_file():
            return folder
    return None


def model_folder(name: str | None) -> str:
    """What to load for a model's name: `default` or None is the bundled model, anything else a folder or hub id.

    Raises:
        UsageError: the bundled model is wanted and this installation lacks it.
    """
    if name is not None and name != BUNDLED_MODEL:
        return name
    folder = bundled_model()
    if folder is None:
        raise UsageError("this installation has no bundled model", hint="name one: --model FOLDER or --model HUB/ID")
    return str(folder)
