"""The stages of training as a table (M+ section 3.3, appendix D): what each one trains, needs and reads.

`base` is ours: it makes a small backbone from nothing. Stages 1 to 3 are the paper's. Values that the published stage
configurations set differently are the defaults of a recipe of that stage.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

StageName = Literal["base", 1, 2, 3]
ADAPTERS = ("write_adapter", "read_adapter", "bos_embedding", "new_memory_positional_emb")


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: what `--stage` takes.
        purpose: one line for `--list`.
        trains: names of the parameter groups (see `groups`) that learn; all others stay as they are.
        memories: "none", "short" (short-term memory only) or "both".
        needs: parts that the starting checkpoint must bring, each with the stage that makes it.
        after: stages of which a checkpoint of ours must have been through at least one; empty for any.
        defaults: values of recipe keys that differ from the defaults in `recipe`.
    """

    name: StageName
    purpose: str
    trains: tuple[str, ...]
    memories: Literal["none", "short", "both"]
    needs: tuple[tuple[str, StageName], ...] = ()
    after: tuple[StageName, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)


_MADE_BY_STAGE_1: tuple[tuple[str, StageName], ...] = tuple((part, 1) for part in ADAPTERS)

STAGES: dict[StageName, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="base",
            purpose="a backbone from nothing: copying, text, questions about text it has before it",
            trains=("backbone", "bos_embedding"),
            memories="none",
            defaults={
                "memory": {"lora": None, "long_term_capacity": 0},
                "tasks": {"full_context": 1.0, "revisit": 0.0, "full_memory": 0.0},
                "data": {"repeat_ratio": 0.0},
            },
        ),
        Stage(
            name=1,
            purpose="short-term memory: write, read, forget slowly; short documents",
            trains=ADAPTERS,
            memories="short",
            defaults={
                "memory": {"short_term_size": 12_800, "long_term_capacity": 0},
                "tasks": {"full_context": 0.1, "full_memory": 0.8},
                "optimizer": {"lr": 4.6e-5, "schedule": "linear", "schedule_steps": 100_000, "final_ratio": 0.1},
            },
        ),
        Stage(
            name=2,
            purpose="the same on documents of up to 64k tokens",
            trains=ADAPTERS,
            memories="short",
            needs=_MADE_BY_STAGE_1,
            after=(1, 2, 3),
            defaults={
                "memory": {"short_term_size": 12_800, "long_term_capacity": 0},
                "tasks": {"full_context": 0.05, "full_memory": 0.9},
            },
        ),
        Stage(
            name=3,
            purpose="long-term memory and its retriever",
            trains=(*ADAPTERS, "retriever"),
            memories="both",
            needs=_MADE_BY_STAGE_1,
            after=(2, 3),
            defaults={
                "memory": {"short_term_size": 10_240, "long_term_capacity": 150_000},
                "tasks": {
                    "full_context": 0.05,
                    "full_memory": 0.8,
                    "replace_cached": 0.2,
                    "max_contexts": [[20_000, 100], [None, 200]],
                },
                "loss": {"retriever": "published", "random_query_length": True},
            },
        ),
    )
}
