"""Figures 3, 5, 8 and 9 of the M+ paper: knowledge retention to 160k tokens."""

from __future__ import annotations

from dataclasses import replace

from mplus_cli.profiling.published import MEMORY_MB, SNAPKV_RETENTION_MB
from mplus_cli.reproduction import published
from mplus_cli.reproduction.entry import (
    BASE,
    LLAMA_8B,
    M_PLUS_8B,
    MPLUS,
    STAGE_1_8B,
    STAGE_2_8B,
    STAGE_2_MISSING,
    TRAIN_STAGE_2,
    Entry,
    Score,
    Value,
    evaluate,
)

_NAMES = {"squad": "SQuAD", "nq": "NaturalQA"}


def _comparison(place: str, dataset: str) -> Entry:
    entry, task, more, out = _figure(place, dataset, f"knowledge retention on {_NAMES[dataset]} to 160k tokens")
    return replace(
        entry,
        commands=(
            evaluate(task, f"{out}/mplus", "mplus", "closed-book", more=more),
            evaluate(task, f"{out}/llama-8b", "snapkv", more=f"{more} {BASE}"),
            evaluate(task, f"{out}/memoryllm", "memoryllm", model=STAGE_1_8B, more=more),
        ),
        why="The curve of MemoryLLM-7B is that of its successor on Llama-3.1 here: the layout of the 7B weights could "
        f"not be looked at. {entry.why}",
        weights=(M_PLUS_8B, STAGE_1_8B, LLAMA_8B),
        memory_mb=SNAPKV_RETENTION_MB,
    )


def _ablation(place: str, dataset: str) -> Entry:
    entry, task, more, out = _figure(place, dataset, f"retention on {_NAMES[dataset]}: stages, other retrieval")
    return replace(
        entry,
        commands=(
            evaluate(task, f"{out}/mplus", "mplus", "mplus-attn", "closed-book", more=more),
            evaluate(task, f"{out}/stage-2", "memoryllm", model=STAGE_2_8B, more=more),
        ),
        data=(*entry.data, *TRAIN_STAGE_2),
        why=f"{STAGE_2_MISSING} second command. {entry.why}",
        weights=(M_PLUS_8B, STAGE_2_8B),
        memory_mb=MEMORY_MB["mplus"],
    )


def _figure(place: str, dataset: str, title: str) -> tuple[Entry, str, str, str]:
    """What the four figures share; then the task, the options of its commands and the folder of their results."""
    build = f"builds/retention-{dataset}"
    border = Score("retention", "closed-book", "contains", options={"dataset": dataset})
    entry = Entry(
        MPLUS,
        place,
        title,
        "partly",
        data=(
            f"mplus build-data retention --source {dataset} --tokenizer {M_PLUS_8B} --keep-answered-by gpt-4o-mini "
            f"--limit 100 --out {build}",
        ),
        why="No points are printed but the borderline. gpt-4o-mini picks the examples, as in the paper (an API key).",
        tokens=100 * 160 * 1_024,
        questions=100 * 17,
        values=(Value("borderline (no context)", published.BORDERLINE[dataset], border),),
    )
    more = f"--length 160k --limit 100 --data {build}"
    return entry, f"retention:dataset={dataset},points=16", more, entry.id


def entries() -> tuple[Entry, ...]:
    """In the order of the paper."""
    return (
        _comparison("Figure 3", "squad"),
        _ablation("Figure 5", "squad"),
        _comparison("Figure 8", "nq"),
        _ablation("Figure 9", "nq"),
    )
