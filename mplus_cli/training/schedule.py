"""The learning rate as a pure function of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math

from mplus_cli.training.recipe import OptimizerSettings


def rate_factor(step: int, steps: int, settings: OptimizerSettings) -> float:
    """What base learning rates are multiplied by.

    Args:
        step: optimizer steps done before this one.
        steps: length of the whole run; where the schedule ends unless `schedule_steps` says otherwise.

    Returns:
        From `1 / warmup_steps` up to 1 during warm-up, then along the schedule to `final_ratio`, and constant after.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    length = max((settings.schedule_steps or steps) - settings.warmup_steps, 1)
    progress = min((step - settings.warmup_steps) / length, 1.0)
    if settings.schedule == "linear":
        return 1.0 + (settings.final_ratio - 1.0) * progress
    if settings.schedule == "cosine":
        return settings.final_ratio + (1.0 - settings.final_ratio) * (1.0 + math.cos(math.pi * progress)) / 2
    return 1.0


def base_rate(group: str, settings: OptimizerSettings, rows: int) -> float:
    """The learning rate of a parameter group before the schedule.

    Args:
        group: name of the group; retrievers have a rate of their own, which is never scaled, as published.
        rows: examples per optimizer step on all processes together; with `lr_scaling: linear_batch` the rate is
            multiplied by it (the published code's default).
    """
    if group.endswith("retriever"):
        return settings.retriever_lr
    return settings.lr * (rows if settings.lr_scaling == "linear_batch" else 1)
