"""The exam of the bundled model: fresh chronicles with names never seen in training, asked at many distances.

    python -m recipes.default_model.evaluate assets/default --out assets/figures/default_model

Writes OUT.json (every cell with n and its 95% Wilson interval, the settings, some wrong answers) and OUT.png. Answers
are generated greedily by the core model; right means that the first line is the answer, letter by letter. Distance is
the number of writes after the one that told the fact. Systems: with long-term memory, without it (`--no-ltm`), and with
long-term tokens drawn at random, which shows what the retriever is worth.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from mplus_cli.core.loading import load_tokenizer
from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from recipes.default_model.chronicle_pool import CONFIGS, Document, document

DISTANCES = (0, 1, 2, 4, 8, 16, 32, 64, 128)
LABELS = {"long_term": "with long-term memory", "no_ltm": "short-term memory only", "random": "random retrieval"}


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a proportion."""
    if n == 0:
        return 0.0, 1.0
    p, d = right / n, 1 + z * z / n
    middle, half = (p + z * z / (2 * n)) / d, z / d * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


@contextmanager
def random_retrieval(model: MPlusForCausalLM) -> Iterator[None]:
    """Every long-term token gets a random score."""
    for retriever in model.retrievers:
        retriever.scores = lambda queries, keys, valid=None: torch.rand(*keys.shape[:-1])
    try:
        yield
    finally:
        for retriever in model.retrievers:
            del retriever.scores


def answers(model: MPlusForCausalLM, tokenizer, memory: Memory, prompts: list[list[int]]) -> list[str]:
    """First line of the greedy answer of every row."""
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(ids, memory=memory, attention_mask=mask, max_new_tokens=16, do_sample=False)
    return [tokenizer.decode(row[width:]).split("\n")[0].strip() for row in out]


def draw(rng: np.random.Generator, doc: Document, chunk: int, size: int, count: int) -> list[tuple[int, int, bool]]:
    """Up to `count` (fact, question form, whole) whose value ends in `chunk`; whole: the sentence begins there too."""
    found = np.flatnonzero((doc.end - 1) // size == chunk)
    return [
        (int(i), int(rng.integers(len(doc.prompts[i]))), bool(doc.start[i] // size == chunk))
        for i in rng.permutation(found)[:count]
    ]


@torch.no_grad()
def examine(model: MPlusForCausalLM, tokenizer, args: argparse.Namespace) -> list[dict]:
    """All answers: one record per question and system."""
    size, rng = model.config.chunk_size, np.random.default_rng(args.seed)
    last = max(args.distances) + 8 + 7 * (args.times - 1)  # the opening page tells no facts
    chapters = last * size // 1_000 + 3
    docs = [document(tokenizer, args.seed + i, CONFIGS["full"], chapters, "test") for i in range(args.streams)]
    memory = model.new_memory(args.streams, seed=list(range(args.streams)), initial="empty")
    asked_at = {last - 7 * i for i in range(args.times)}
    records: list[dict] = []
    for t in range(last):
        model.inject(torch.from_numpy(np.stack([d.tokens[t * size : (t + 1) * size] for d in docs])), memory)
        if t + 1 not in asked_at:
            continue
        for distance in args.distances:
            drawn = [draw(rng, d, t - distance, size, args.questions) for d in docs]
            for j in range(max(len(d) for d in drawn)):
                records += ask_all(
                    model, tokenizer, memory, docs, [d[j] if j < len(d) else None for d in drawn], distance
                )
        print(f"{t + 1} writes, {len(records)} answers", flush=True)
    return records


def ask_all(model, tokenizer, memory: Memory, docs: list[Document], asked: list, distance: int) -> list[dict]:
    """One question to every stream (None: none), by every system."""
    prompts = [d.prompts[a[0]][a[1]] if a else d.prompts[0][0] for d, a in zip(docs, asked, strict=True)]
    given = {"long_term": answers(model, tokenizer, memory, prompts)}
    given["no_ltm"] = answers(model, tokenizer, memory.short_term_only(), prompts)
    with random_retrieval(model):
        given["random"] = answers(model, tokenizer, memory, prompts)
    return [
        {
            "system": system,
            "distance": distance,
            "whole": a[2],
            "question": d.questions[a[0]][a[1]],
            "answer": d.values[a[0]],
            "given": texts[row],
            "right": texts[row] == d.values[a[0]],
        }
        for system, texts in given.items()
        for row, (d, a) in enumerate(zip(docs, asked, strict=True))
        if a
    ]


def table(records: list[dict]) -> dict[str, dict[str, dict]]:
    """system -> distance -> n, right, exact match and interval. Facts cut by a chunk border are counted apart."""
    cells: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for r in records:
        cells[r["system"], str(r["distance"]) if r["whole"] else "cut"].append(r["right"])
    out: dict[str, dict[str, dict]] = defaultdict(dict)
    for (system, distance), right in cells.items():
        low, high = wilson(sum(right), len(right))
        out[system][distance] = {
            "n": len(right),
            "right": sum(right),
            "exact_match": round(sum(right) / len(right), 4),
            "low": round(low, 4),
            "high": round(high, 4),
        }
    return dict(out)


def plot(scores: dict, path: Path, survival: float) -> None:
    """Exact match over distance with intervals, and the share of a write that random drop has left."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    for system, colour in zip(LABELS, ("#1b6ca8", "#d1495b", "#8a8a8a"), strict=True):
        cells = sorted((int(d), c) for d, c in scores[system].items() if d != "cut")
        x = [d + 0.7 for d, _ in cells]
        y = [100 * c["exact_match"] for _, c in cells]
        error = [
            [y[i] - 100 * c["low"] for i, (_, c) in enumerate(cells)],
            [100 * c["high"] - y[i] for i, (_, c) in enumerate(cells)],
        ]
        axes.errorbar(x, y, error, color=colour, marker="o", markersize=4, capsize=2, label=LABELS[system])
    far = np.arange(0, max(x) + 1)
    axes.plot(
        far + 0.7,
        100 * survival**far,
        color="#d1495b",
        linestyle=":",
        linewidth=1,
        label="share of the write still in short-term memory",
    )
    axes.set_xscale("log")
    axes.set_xticks([d + 0.7 for d, _ in cells], [str(d) for d, _ in cells], minor=False)
    axes.minorticks_off()
    axes.set_ylim(-2, 102)
    axes.set_xlabel("writes since the fact was told")
    axes.set_ylabel("exact match, %")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", required=True, help="path without ending")
    parser.add_argument("--streams", type=int, default=60)
    parser.add_argument("--times", type=int, default=4, help="how often each stream is asked, seven writes apart")
    parser.add_argument("--questions", type=int, default=3, help="questions per stream, distance and time")
    parser.add_argument("--distances", type=int, nargs="+", default=list(DISTANCES))
    parser.add_argument("--seed", type=int, default=88_000_000)
    args = parser.parse_args()
    begun = time.time()
    torch.manual_seed(args.seed)
    model = MPlusForCausalLM.from_pretrained(args.model)
    records = examine(model, load_tokenizer(args.model), args)
    scores = table(records)
    config = model.config
    result = {
        "what": "exact match of the bundled model on fresh chronicles, names of the test space",
        "settings": vars(args) | {"model": model.fingerprint(), "minutes": round((time.time() - begun) / 60, 1)},
        "scores": scores,
        "some_wrong": [r for r in records if r["system"] == "long_term" and not r["right"]][:40],
    }
    out = Path(args.out)
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(scores, out.with_suffix(".png"), 1 - config.memory_tokens_per_write / config.short_term_size)
    for system, cells in scores.items():
        line = "  ".join(f"{d}: {100 * c['exact_match']:.0f}% ({c['n']})" for d, c in cells.items())
        print(f"{LABELS[system]:24} {line}", flush=True)


if __name__ == "__main__":
    main()
