"""How close the core comes to the bare Hugging Face decoder inside it: same weights, same machine, one run.

    python benchmarks/floors.py --out floors                  # all of it: a few minutes on two quiet cores
    python benchmarks/floors.py --part bare

Three parts. `bare`: writing, second questions and decoding, each next to the stock decoder doing the same work behind a
cache as long as the memory; what is compared is taken in turn, so that a busy machine slows both. `adapters`: the gain
of merging them. `growth`: writes and second questions against the tokens in long-term memory, with a picture.

The model is that of `benchmarks/core.py`; random weights, since cost does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from core import ANSWER, CHUNK, QUESTION, ask, build, grow_store, time_writes, timed, tokens
from transformers import DynamicCache

from mplus_cli.core.adapters import READ, WRITE
from mplus_cli.core.allocator import keep_freed_memory
from mplus_cli.evaluation.plots import COLOURS, new_figure, save
from mplus_cli.evaluation.systems.base_model import backbone
from mplus_cli.machine import machine

STORED = (0, 10_000, 50_000, 150_000)
# What is to be reached: a share of the bare decoder's rate, or a multiple of its time.
TARGETS = {"write_rate_share": 0.80, "second_question_times": 1.30, "token_times": 1.15}


class Bare:
    """The stock decoder of a memory model, with the same weights, behind a cache of random keys and values."""

    def __init__(self, model: Any) -> None:
        self.model = backbone(model)
        self.text = model.config.text_config

    def cache(self, length: int) -> DynamicCache:
        """A cache with `length` entries per layer."""
        heads, width = self.text.num_key_value_heads, self.text.head_dim
        cache = DynamicCache()
        for layer in range(self.text.num_hidden_layers):
            cache.update(torch.randn(1, heads, length, width), torch.randn(1, heads, length, width), layer)
        return cache

    def write(self, cache: DynamicCache) -> float:
        """Milliseconds of the decoder, without its head, over a chunk behind the cache, which is as before then."""
        ids = tokens(CHUNK)
        ms = timed(lambda: self.model.model(ids, past_key_values=cache))
        cache.crop(-CHUNK)
        return ms

    def question(self, cache: DynamicCache) -> float:
        """Milliseconds to the first token of an answer."""
        ids = tokens(QUESTION)
        ms = timed(lambda: self.model(ids, past_key_values=cache, logits_to_keep=1).logits.argmax(-1))
        cache.crop(-QUESTION)
        return ms

    def answer(self, cache: DynamicCache) -> float:
        """Milliseconds per token of an answer behind the cache."""
        ms = timed(lambda: decode(self.model, cache, ANSWER)) / ANSWER
        cache.crop(-ANSWER)
        return ms


def decode(model: Any, cache: Any, count: int) -> None:
    """Greedy tokens one by one, by forward passes alone."""
    ids = tokens(1)
    for _ in range(count):
        ids = model(ids, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)


class Memories:
    """The memory model, with a memory that is full of the text it wrote."""

    def __init__(self, model: Any, writes: int) -> None:
        self.model, self.memory = model, model.new_memory()
        time_writes(model, self.memory, writes)

    def write(self) -> float:
        return time_writes(self.model, self.memory, 1)[0]

    def question(self) -> float:
        """A question that is new, to a memory that has been asked before, by one forward pass."""
        ids = tokens(QUESTION)
        return timed(lambda: self.model(ids, memory=self.memory, logits_to_keep=1).logits.argmax(-1))

    def answer(self) -> float:
        """Milliseconds per token behind a question."""
        cache = self.model(tokens(QUESTION), memory=self.memory, logits_to_keep=1).past_key_values
        return timed(lambda: decode(self.model, cache, ANSWER)) / ANSWER


@torch.inference_mode()
def against_bare(model: Any, repeats: int) -> dict[str, Any]:
    """Point 1: rates and times beside those of the bare decoder, pair by pair."""
    config, bare = model.config, Bare(model)
    prefix = 1 + config.short_term_size + config.retrieval_budget
    full = Memories(model, (config.short_term_size + config.retrieval_budget) // config.memory_tokens_per_write + 2)
    context, whole, answered = (bare.cache(n) for n in (1 + config.memory_tokens_per_write, prefix, prefix + QUESTION))
    writes = pairs(full.write, lambda: bare.write(context), 4 * repeats)
    full.question()  # the first after a write; those that follow are second questions
    questions = pairs(full.question, lambda: bare.question(whole), 2 * repeats)
    generated = [ask(model, full.memory, 1) for _ in range(repeats)]
    answers = pairs(full.answer, lambda: bare.answer(answered), repeats)
    return {
        "prefix_of_a_read": prefix,
        **summary("write", writes),
        **summary("second_question", questions),
        "second_question_by_generate_ms": statistics.median(generated),
        **summary("token", answers),
        "write_rate_share": statistics.median(theirs / ours for ours, theirs in writes),
        "second_question_times": statistics.median(ours / theirs for ours, theirs in questions),
        "token_times": statistics.median(ours / theirs for ours, theirs in answers),
    }


def pairs(ours: Callable[[], float], theirs: Callable[[], float], count: int) -> list[tuple[float, float]]:
    """Milliseconds of both, in turn, after a warm-up."""
    for _ in range(2):
        ours(), theirs()
    return [(ours(), theirs()) for _ in range(count)]


def summary(name: str, times: list[tuple[float, float]]) -> dict[str, float]:
    """Medians of both sides, and quartiles of ours over theirs."""
    ratios = statistics.quantiles([ours / theirs for ours, theirs in times], n=4)
    return {
        f"{name}_ms": statistics.median(ours for ours, _ in times),
        f"{name}_bare_ms": statistics.median(theirs for _, theirs in times),
        f"{name}_ratio_quartile_1": ratios[0],
        f"{name}_ratio_quartile_3": ratios[2],
    }


@torch.inference_mode()
def adapters(model: Any, repeats: int) -> dict[str, float]:
    """Point 2: times with adapters merged into copies of the weights and separate, in turn, and the gain."""
    full = Memories(model, 60)
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        for how, merged in (("merged", (READ, WRITE)), ("separate", ())):
            model.adapters.merge(*merged)
            full.write(), full.question(), full.question()
            for name, call in (("write", full.write), ("second_question", full.question), ("token", full.answer)):
                if name == "second_question":
                    full.question()
                found.setdefault(f"{name}_{how}_ms", []).append(call())
    model.adapters.merge(READ, WRITE)
    figures = {name: statistics.median(times) for name, times in found.items()}
    for name in ("write", "second_question", "token"):
        figures[f"{name}_gain"] = figures[f"{name}_separate_ms"] / figures[f"{name}_merged_ms"]
    return figures


@torch.inference_mode()
def growth(model: Any, repeats: int, stored: tuple[int, ...] = STORED) -> list[dict[str, float]]:
    """Point 7: writes per second and second-question milliseconds for every size of the store, taken in turn."""
    held = []
    for size in stored:
        full = Memories(
            model, model.config.short_term_size // model.config.memory_tokens_per_write
        )  # nothing dropped yet
        grow_store(full.memory, size)
        held.append(full)
    writes: list[list[float]] = [[] for _ in stored]
    questions: list[list[float]] = [[] for _ in stored]
    for _ in range(repeats):
        for at, full in enumerate(held):
            full.write()
            writes[at].append(full.write())
            full.question()
            questions[at].append(full.question())
    return [
        {
            "stored": size,
            "long_term_tokens": len(full.memory.long_term[0]),
            "writes_per_s": 1e3 / statistics.median(times),
            "write_ms": statistics.median(times),
            "second_question_ms": statistics.median(asked),
        }
        for size, full, times, asked in zip(stored, held, writes, questions, strict=True)
    ]


def plot(points: list[dict[str, float]], path: Path) -> Path:
    """Both curves over the size of the store, on one picture."""
    figure, (left,) = new_figure(width=7.0)
    right = left.twinx()
    x = [point["stored"] / 1e3 for point in points]
    curves = ((left, "writes_per_s", "writes per second", 0), (right, "second_question_ms", "second question, ms", 1))
    for axis, key, label, number in curves:
        axis.plot(x, [point[key] for point in points], marker="os"[number], color=COLOURS[number], label=label)
        axis.set_ylim(0, 1.25 * max(point[key] for point in points))
        axis.set_ylabel(label, color=COLOURS[number])
    left.set_xlabel("long-term memory, thousands of tokens per layer")
    return save(figure, path)


def show(part: str, figures: Any) -> None:
    print(f"-- {part}")
    for point in figures if isinstance(figures, list) else [figures]:
        for key, value in point.items():
            target = TARGETS.get(key)
            better = None if target is None else value >= target if key.endswith("share") else value <= target
            said = "" if target is None else f"   target {target:.2f}: {'reached' if better else 'not reached'}"
            print(f"{key:36s} {value:12.3f}{said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["bare", "adapters", "growth"], action="append")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--stored", type=int, nargs="+", default=list(STORED))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for floors.json and growth.png")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the commands do
    model = build()
    parts = {
        "bare": lambda: against_bare(model, options.repeats),
        "adapters": lambda: adapters(model, options.repeats),
        "growth": lambda: growth(model, options.repeats, tuple(options.stored)),
    }
    results: dict[str, Any] = {"machine": machine(), "torch": torch.__version__, "repeats": options.repeats}
    for name in options.part or parts:
        results[name] = parts[name]()
        show(name, results[name])
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "floors.json").write_text(json.dumps(results, indent=1) + "\n")
        if "growth" in results:
            plot(results["growth"], options.out / "growth.png")


if __name__ == "__main__":
    main()
