"""What a recipe must not say: contradictions between keys, which types and ranges cannot catch."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from mplus_cli.training.stages import STAGES

if TYPE_CHECKING:
    from mplus_cli.training.recipe import Recipe

GROUPS = (
    "backbone",
    "write_adapter",
    "read_adapter",
    "bos_embedding",
    "new_memory_positional_emb",
    "retriever",
    "write_retriever",
)
STARTS = ("random", "copying")  # of a new backbone
_SCORES = {"published": "mean_sigmoid", "contrastive": "log_sum_exp"}


def problems_of(recipe: Recipe) -> list[str]:
    """One line per contradiction."""
    return [
        *_groups(recipe),
        *_memory(recipe),
        *_data(recipe),
        *_tasks(recipe),
        *_retriever(recipe),
        *_schedule(recipe),
    ]


def _groups(recipe: Recipe) -> list[str]:
    problems = []
    for name in recipe.train or ():
        if name not in GROUPS:
            close = difflib.get_close_matches(name, GROUPS, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else f"; groups are {', '.join(GROUPS)}"
            problems.append(f"train: there is no parameter group {name!r}{hint}")
    if not recipe.trained_groups:
        problems.append("train: nothing would learn")
    if recipe.memory.lora is None:
        adapters = [name for name in recipe.trained_groups if name.endswith("_adapter")]
        problems += [f"train: {name} cannot learn, memory.lora is null" for name in adapters]
    return problems


def _memory(recipe: Recipe) -> list[str]:
    memory, stage = recipe.memory, STAGES[recipe.stage]
    problems = []
    if memory.short_term_size < memory.memory_tokens_per_write:
        problems.append(
            f"memory.short_term_size ({memory.short_term_size}) must hold at least one write of "
            f"memory.memory_tokens_per_write ({memory.memory_tokens_per_write})"
        )
    if stage.memories == "both" and memory.long_term_capacity == 0:
        problems.append(f"memory.long_term_capacity: stage {stage.name} trains long-term memory, so it cannot be 0")
    if stage.memories != "both" and memory.long_term_capacity > 0:
        problems.append(f"memory.long_term_capacity: stage {stage.name} has no long-term memory; set 0")
    if 0 < memory.long_term_capacity < memory.retrieval_budget:
        problems.append(
            f"memory.retrieval_budget ({memory.retrieval_budget}) must not exceed "
            f"memory.long_term_capacity ({memory.long_term_capacity})"
        )
    if memory.initial == "noise" and stage.memories == "none":
        problems.append("memory.initial: stage base has no memory to fill with noise")
    return problems


def _data(recipe: Recipe) -> list[str]:
    data = recipe.data
    problems = []
    if data.min_chunk > data.max_chunk:
        problems.append(f"data.min_chunk ({data.min_chunk}) must not exceed data.max_chunk ({data.max_chunk})")
    if data.max_chunk > data.window:
        problems.append(f"data.max_chunk ({data.max_chunk}) must not exceed data.window ({data.window})")
    if recipe.model == "" and recipe.new_backbone is None:
        problems.append("model: missing")
    if recipe.new_backbone is not None and "model_type" not in recipe.new_backbone:
        problems.append("new_backbone.model_type: missing")
    start = (recipe.new_backbone or {}).get("start", "random")
    if start not in STARTS:
        problems.append(f"new_backbone.start: {start!r} is not one of {', '.join(STARTS)}")
    return problems


def _tasks(recipe: Recipe) -> list[str]:
    tasks = recipe.tasks
    problems = []
    ours = tasks.questions.share + tasks.in_context.share + tasks.copying.share
    if ours > 1 + 1e-9:
        problems.append(f"tasks: the shares of questions, in_context and copying add up to {ours:g}, more than 1")
    caps = tasks.max_contexts
    if not caps or caps[-1][0] is not None or any(until is None for until, _ in caps[:-1]):
        problems.append("tasks.max_contexts: the last pair, and only the last, must begin with null")
    else:
        untils = [until for until, _ in caps[:-1] if until is not None]
        if untils != sorted(set(untils)):
            problems.append("tasks.max_contexts: the steps must grow")
    if tasks.copying.shortest > tasks.copying.longest or tasks.copying.longest >= tasks.copying.length:
        problems.append("tasks.copying: shortest <= longest < length must hold")
    if tasks.questions.lend_stores and STAGES[recipe.stage].memories != "both":
        problems.append(f"tasks.questions.lend_stores: stage {recipe.stage} has no long-term memory to lend")
    if STAGES[recipe.stage].memories == "none":
        if ours < 1 and tasks.full_context < 1:
            problems.append("tasks.full_context: stage base has no memory, so it must be 1 (what the others leave)")
        if tasks.questions.share:
            problems.append("tasks.questions.share: stage base has no memory to ask; use tasks.in_context")
    return problems


def _retriever(recipe: Recipe) -> list[str]:
    loss, memory, trained = recipe.loss, recipe.memory, recipe.trained_groups
    problems = []
    if loss.retriever is not None:
        if "retriever" not in trained:
            problems.append("loss.retriever: the retriever is not among the groups that train")
        if memory.retriever_score != _SCORES[loss.retriever]:
            problems.append(
                f"loss.retriever: {loss.retriever} trains memory.retriever_score {_SCORES[loss.retriever]}, "
                f"not {memory.retriever_score}"
            )
    elif "retriever" in trained:
        problems.append("train: the retriever cannot learn, loss.retriever is null")
    if loss.write_side and (loss.retriever is None or "write_retriever" not in trained):
        problems.append("loss.write_side: needs loss.retriever, and write_retriever among the groups that train")
    if "write_retriever" in trained and not loss.write_side:
        problems.append("train: write_retriever cannot learn, loss.write_side is false")
    if loss.reaches_model and loss.retriever != "contrastive":
        problems.append("loss.reaches_model: only with loss.retriever contrastive")
    return problems


def _schedule(recipe: Recipe) -> list[str]:
    optimizer = recipe.optimizer
    if optimizer.warmup_steps > recipe.steps:
        return [f"optimizer.warmup_steps ({optimizer.warmup_steps}) must not exceed steps ({recipe.steps})"]
    return []
