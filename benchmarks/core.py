"""Speed and memory of the core on CPU: writing, first and second question, generation, growth of long-term memory.

    python benchmarks/core.py                # the figures of the README
    python benchmarks/core.py --json out.json --writes 600 --threads 2

The model has random weights; cost does not depend on their values. Adapters are merged into copies of the weights, as
the commands do. Every first question follows a write, every second one another question to the same memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from pathlib import Path

import torch
from transformers import LlamaConfig

from mplus_cli.core.adapters import READ, WRITE
from mplus_cli.core.allocator import keep_freed_memory
from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.core.modeling_mplus import MPlusForCausalLM

CHUNK, QUESTION, ANSWER = 128, 24, 32
# The official implementation at this size on two cores of a machine of this kind, one run.
OFFICIAL = {
    "write_ms": 165.0,
    "slowest_write_ms": 716.0,
    "first_question_ms": 330.0,
    "second_question_ms": 330.0,
    "token_ms": 62.0,
}
FLOORS = {"write_ms": 2.3, "first_question_ms": 1.5, "second_question_ms": 5.0, "token_ms": 2.5}


def build() -> MPlusForCausalLM:
    text = LlamaConfig(
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=1376,
        vocab_size=32_000,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    )
    config = MPlusConfig(
        text_config=text,
        memory_tokens_per_write=64,
        short_term_size=2560,
        long_term_capacity=150_000,
        retrieval_budget=640,
        retriever_size=32,
        retriever_score="mean_sigmoid",
        chunk_size=CHUNK,
        lora={"r": 4, "alpha": 8},
    )
    torch.manual_seed(0)
    return MPlusForCausalLM(config).eval().prepare_for_inference(READ, WRITE)  # as the commands do


def tokens(count: int) -> torch.Tensor:
    return torch.randint(3, 32_000, (1, count))


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def time_writes(model: MPlusForCausalLM, memory, count: int) -> list[float]:
    return [timed(lambda: model.inject(tokens(CHUNK), memory)) for _ in range(count)]


@torch.inference_mode()  # as `mplus ask`
def ask(model: MPlusForCausalLM, memory, new_tokens: int) -> float:
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return timed(lambda: model.generate(tokens(QUESTION), memory=memory, max_new_tokens=new_tokens, **options))


def questions(model: MPlusForCausalLM, memory, repeats: int) -> dict[str, list[float]]:
    out: dict[str, list[float]] = {"first_question_ms": [], "second_question_ms": [], "token_ms": []}
    for _ in range(repeats):
        model.inject(tokens(CHUNK), memory)
        out["first_question_ms"].append(ask(model, memory, 1))
        out["second_question_ms"].append(ask(model, memory, 1))
        one, many = ask(model, memory, 1), ask(model, memory, 1 + ANSWER)
        out["token_ms"].append((many - one) / ANSWER)
    return out


def grow_store(memory, size: int) -> None:
    """Fill long-term memory with random tokens, `size` per layer in all."""
    store, step = memory.long_term[0], 512
    width, r = memory.short_term.values.shape[-1], memory.config.retriever_size
    while len(store) < size:
        created = torch.arange(step).expand(memory.num_layers, -1)
        store.append(torch.randn(memory.num_layers, step, width), torch.randn(memory.num_layers, step, r), created)


def paired_rates(model: MPlusForCausalLM, stored: int, repeats: int) -> list[float]:
    """Write time into a store of `stored` tokens over that into an empty one, write by write, taken in turn."""
    small, large = model.new_memory(), model.new_memory()
    for memory in (small, large):
        time_writes(model, memory, memory.config.short_term_size // memory.config.memory_tokens_per_write + 2)
    grow_store(large, stored)
    return [time_writes(model, large, 1)[0] / time_writes(model, small, 1)[0] for _ in range(repeats)]


def gemm_gflops(repeats: int = 200) -> float:
    """Rate of the model's own largest product, [128, 512] x [512, 1376], median: what this machine gives right now."""
    a, b = torch.randn(CHUNK, 512), torch.randn(512, 1376)
    times = [timed(lambda: a @ b) for _ in range(repeats)]
    return 2 * CHUNK * 512 * 1376 / (statistics.median(times) * 1e6)


def write_gflop(model: MPlusForCausalLM) -> float:
    """Operations of a write: every decoder weight once per text token, keys and values of K + 1 more rows, adapters."""
    layers, rows = model.model.layers, 1 + model.config.memory_tokens_per_write
    weights = sum(p.numel() for name, p in layers.named_parameters() if p.ndim == 2 and ".read." not in name)
    memory = sum(p.numel() for name, p in layers.named_parameters() if ("k_proj.base" in name or "v_proj.base" in name))
    return 2e-9 * (CHUNK * weights + rows * memory)


def peak_rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(writes: int, repeats: int, stored: int) -> dict:
    model = build()
    memory = model.new_memory()
    time_writes(model, memory, 5)
    before, rate = peak_rss_mib(), gemm_gflops()
    times = time_writes(model, memory, writes)
    asked = questions(model, memory, repeats)
    ratios = paired_rates(model, stored, repeats * 10)
    figures = {
        "write_ms": statistics.median(times),
        "tokens_per_s": CHUNK * 1e3 / statistics.median(times),
        "slowest_write_ms": max(times),
        "slowest_over_median": max(times) / statistics.median(times),
        **{key: statistics.median(values) for key, values in asked.items()},
        "long_term_tokens": len(memory.long_term[0]),
        f"write_time_at_{stored}_over_empty": statistics.median(ratios),
        "gemm_gflops": rate,
        "write_share_of_gemm_rate": write_gflop(model) / (statistics.median(times) / 1e3) / rate,
        "peak_rss_mib_before_writes": before,
        "peak_rss_mib": peak_rss_mib(),
    }
    figures |= {f"speedup_{key}": OFFICIAL[key] / figures[key] for key in FLOORS}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writes", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--stored", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the commands do
    machine = f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}"
    figures = run(options.writes, options.repeats, options.stored)
    print(machine)
    for key, value in figures.items():
        floor = FLOORS.get(key.removeprefix("speedup_")) if key.startswith("speedup_") else None
        print(f"{key:40s} {value:12.2f}" + (f"   floor {floor}" if floor else ""))
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine, "options": vars(options) | {"json": None}, **figures}, indent=1)
        )


if __name__ == "__main__":
    main()
