"""Small real runs: a tiny model, a tiny corpus, a recipe, and `mplus train` as a process of its own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers.utils.logging import disable_progress_bar

from mplus_cli.training.launch import Launch, preflight, run_training
from mplus_cli.training.loop import Loop
from mplus_cli.training.resuming import Request, opened_run
from mplus_cli.training.worker import Summary
from tests.fixtures import save_tiny_model

disable_progress_bar()  # of saving tiny models

WORDS = ("miller", "of", "Vorn", "sold", "sacks", "flour", "to", "abbot", "in", "a", "year", "rain", "road", "every")


def save_corpus(path: Path, documents: int = 40, seed: int = 0) -> Path:
    """Documents of 100 to 400 characters, which are tokens of the tiny model."""
    rng = random.Random(seed)
    rows = [
        {"text": " ".join(rng.choice(WORDS) + str(rng.randint(0, 99)) for _ in range(rng.randint(15, 60)))}
        for _ in range(documents)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_recipe(folder: Path, stage: int | str = 1, name: str = "recipe", **changes: Any) -> Path:
    """A recipe of a few quick steps in `folder`, with its model and corpus. changes: `optimizer__lr=1.0` and so on."""
    model = folder / ("with-store" if stage == 3 else "without-store")
    if not model.exists():
        save_tiny_model(model, long_term_capacity=80 if stage == 3 else 0)
    corpus = folder / "corpus.jsonl"
    if not corpus.exists():
        save_corpus(corpus)
    recipe: dict[str, Any] = {
        "stage": stage,
        "model": str(model),
        "steps": 6,
        "precision": "float32",
        "memory": {
            "memory_tokens_per_write": 8,
            "short_term_size": 32,
            "chunk_size": 64,
            "retriever_size": 8,
            "retrieval_budget": 16,
            "long_term_capacity": 80 if stage == 3 else 0,
            "lora": {"r": 2, "alpha": 4},
        },
        "data": {
            "sources": [str(corpus)],
            "min_chunk": 16,
            "max_chunk": 48,
            "window": 64,
            "batch_size": 2,
            "look_ahead": 8,
        },
        "optimizer": {
            "lr": 1e-3,
            "retriever_lr": 1e-3,
            "lr_scaling": "none",
            "clip": 1.0,
            "schedule": "cosine",
            "schedule_steps": 8,
            "final_ratio": 0.1,
        },
        "tasks": {"max_contexts": [[None, 3]], "full_memory": 0.5},
        "checkpoint": {"every": 3, "keep_last": 2, "keep_best": 1},
        "logging": {"every": 1},
    }
    for dotted, value in changes.items():
        *outer, last = dotted.split("__")
        inner = recipe
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[last] = value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """`mplus train ...` as a process of its own, in a session of its own."""
    command = [sys.executable, "-m", "mplus_cli", "train", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        start_new_session=True,
    )


def train_here(request: Request, look: Callable[[Loop], None] | None = None, gpus: int | None = None) -> Summary:
    """Train as a command would, in this process if it is one process. look: given the loop when it has ended."""
    preflight(Launch(gpus))
    with opened_run(request) as (run, checkpoint), pytest.MonkeyPatch.context() as patch:
        if look is not None:
            original = Loop.run

            def watched(self: Loop, start: int) -> int:
                steps = original(self, start)
                look(self)
                return steps

            patch.setattr(Loop, "run", watched)
        return run_training(run, checkpoint, Launch(gpus), lambda line: None)


def losses(run: Path) -> dict[int, float]:
    """Loss of every step in the journal, exact."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines}), "each step once, in order"
    return {line["step"]: line["loss"] for line in lines}
