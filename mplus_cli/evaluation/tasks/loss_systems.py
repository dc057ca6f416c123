"""Which systems have a loss of a text: those that read all of it, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mplus_cli.errors import UsageError

if TYPE_CHECKING:
    from mplus_cli.evaluation.system import System


def check_system(task: str, system: System) -> None:
    """Refuse systems that pick from a text, or read the parts of it that are left after a cut in the middle.

    Raises:
        UsageError: it is such a system.
    """
    hint = "--system mplus --system memoryllm --system window --system closed-book"
    if system.name in ("bm25", "snapkv"):
        raise UsageError(f"{task} measures the loss of a text, and {system.name} reads what it picks of it", hint)
    if getattr(getattr(system, "options", None), "cut", "left") != "left":
        raise UsageError(f"{task} measures text that goes on from what was read: cut=middle leaves a gap", hint)
