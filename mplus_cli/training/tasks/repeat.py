"""Repeat: say again what was written. One document in ten has this target, in either of the new-document tasks."""

from __future__ import annotations

from collections.abc import Sequence

from mplus_cli.core.loading import encode
from mplus_cli.training.losses import IGNORE
from mplus_cli.training.tasks.work import Work

PREFIX = "Repeat:"


def repeat_target(work: Work, contexts: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Target and labels: "Repeat: " and the text of the first contexts, up to the window (released code).

    The text is tokenised anew behind the prefix. The prefix and `repeat_unscored` further tokens, which only say which
    text is meant, have no loss.
    """
    window = work.recipe.data.window
    told = [token for context in contexts for token in context][:window]
    target = encode(work.tokenizer, f"{PREFIX} {work.tokenizer.decode(told)}")[:window]
    masked = len(encode(work.tokenizer, PREFIX)) + work.recipe.tasks.repeat_unscored
    return target, [IGNORE] * min(masked, len(target)) + target[masked:]
