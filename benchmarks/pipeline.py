"""Writing one chunk after the other against writing as a pipeline over layers, in turn, with equal memories in the end.

    python benchmarks/pipeline.py                       # the bundled model, one thread per stage
    python benchmarks/pipeline.py --model random --stages 2 --threads 1 --json out.json

Every round writes the same chunks into two fresh memories, one each way, and compares them bit for bit. A gain needs a
core per stage that nobody else uses: `cores_had` says what the process got. Where that is not about 1 and the number of
stages, only `processor_time_pipelined_over_sequential`, what the pipeline itself costs, means anything.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from core import build

from mplus_cli.core.adapters import READ, WRITE
from mplus_cli.core.allocator import keep_freed_memory
from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.core.pipeline import WriteText
from mplus_cli.core.placement import place, spans_of
from mplus_cli.machine import usable_cores

BUNDLED = Path(__file__).parents[1] / "assets" / "default"


def load(name: str) -> MPlusForCausalLM:
    if name == "random":
        return build()
    return MPlusForCausalLM.from_pretrained(BUNDLED if name == "default" else name).prepare_for_inference(READ, WRITE)


def texts_for(model: MPlusForCausalLM, count: int) -> list[WriteText]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, model.config.chunk_size)
    return [
        WriteText(torch.randint(3, model.config.text_config.vocab_size, shape, generator=generator), notes=[{"n": n}])
        for n in range(count)
    ]


def write(model: MPlusForCausalLM, texts: list[WriteText], stages: int) -> tuple[Memory, float, float]:
    """A memory after all texts, seconds, and seconds of processor time."""
    memory = model.new_memory(seed=1)
    memory.keep_journal()
    start, processor = time.perf_counter(), time.process_time()
    for _ in model.inject_stream(texts, memory, stages):
        pass
    return memory, time.perf_counter() - start, time.process_time() - processor


def same(one: Memory, other: Memory) -> bool:
    """Whether two memories, and the records from which their files are made, are equal bit for bit."""
    assert one.journal is not None and other.journal is not None
    pairs = [*zip(one.short_term.ordered(0), other.short_term.ordered(0), strict=True)]
    for layer, (a, b) in enumerate(zip(one.long_term[0].layers, other.long_term[0].layers, strict=True)):
        pairs += zip(a.take(layer, a.all_positions()), b.take(layer, b.all_positions()), strict=True)
        pairs += zip(a.keys.views(), b.keys.views(), strict=True)
    records = list(zip(one.journal[0], other.journal[0], strict=True))
    pairs += [pair for a, b in records for pair in ((a.values, b.values), (a.dropped, b.dropped), (a.keys, b.keys))]
    return all(torch.equal(a, b) for a, b in pairs) and all(a.note == b.note for a, b in records)


def run(model: MPlusForCausalLM, stages: int, writes: int, rounds: int) -> dict:
    texts, ways = texts_for(model, writes), (1, stages)
    for way in ways:
        write(model, texts[:8], way)
    seconds: dict[int, list[float]] = {way: [] for way in ways}
    busy: dict[int, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        memories = []
        for way in ways:
            memory, took, processor = write(model, texts, way)
            memories.append(memory)
            seconds[way].append(took)
            busy[way].append(processor)
        if not same(*memories):
            raise SystemExit("the two ways gave different memories")
    tokens = writes * model.config.chunk_size
    return {
        "tokens_per_s_sequential": tokens / statistics.median(seconds[1]),
        "tokens_per_s_pipelined": tokens / statistics.median(seconds[stages]),
        "gain": statistics.median(a / b for a, b in zip(seconds[1], seconds[stages], strict=True)),
        "gains": [round(a / b, 3) for a, b in zip(seconds[1], seconds[stages], strict=True)],
        "cores_had_sequential": sum(busy[1]) / sum(seconds[1]),
        "cores_had_pipelined": sum(busy[stages]) / sum(seconds[stages]),
        "processor_time_pipelined_over_sequential": statistics.median(
            b / a for a, b in zip(busy[1], busy[stages], strict=True)
        ),
        "equal": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default", help="default, random (that of benchmarks/core.py), or a folder")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="per stage")
    parser.add_argument("--writes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--devices", help="lay the layers evenly over these, for example cuda:0,cuda:1")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the commands do
    model = load(options.model)
    if options.devices:
        names, layers = options.devices.split(","), len(model.model.layers)
        counts = [layers * (n + 1) // len(names) - layers * n // len(names) for n in range(len(names))]
        place(model, spans_of(counts, [torch.device(name) for name in names]))
    machine = f"{platform.processor() or platform.machine()}, {usable_cores()} cores, torch {torch.__version__}"
    figures = run(model, options.stages, options.writes, options.rounds)
    print(f"{machine}; {options.model}, {options.stages} stages of {options.threads} threads")
    for key, value in figures.items():
        print(f"{key:42s} {value:12.2f}" if isinstance(value, float) else f"{key:42s} {value}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, **figures}, indent=1))


if __name__ == "__main__":
    main()
