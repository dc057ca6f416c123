"""What a large memory file costs: opening it, asking from it, adding a page to it.

    python benchmarks/state.py                 # a store of 2 GB, in a temporary folder
    python benchmarks/state.py --gb 0.2 --json out.json

Model and sizes are those of benchmarks/core.py with random weights; the memory tokens are random. Opening and asking
are measured in a fresh process, after its model is loaded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from core import CHUNK, build, tokens  # noqa: E402

from mplus_cli.core.allocator import keep_freed_memory  # noqa: E402
from mplus_cli.core.modeling_mplus import MPlusForCausalLM  # noqa: E402
from mplus_cli.core.state.memory_state import MemoryState  # noqa: E402


def make(folder: Path, gigabytes: float) -> Path:
    """A state whose long-term values take `gigabytes`, committed every 50 writes."""
    model = build()
    model.save_pretrained(folder / "model")
    memory, path = model.new_memory(), folder / "mem.pt"
    config, layers = model.config, model.config.text_config.num_hidden_layers
    shape = layers, config.memory_tokens_per_write, config.text_config.hidden_size
    writes = int(gigabytes * 1e9 / (4 * shape[0] * shape[1] * shape[2])) + config.short_term_size // shape[1]
    with torch.no_grad(), MemoryState.create(path, model, memory) as state:
        for step in range(writes):
            memory.append(
                0, torch.randn(shape), model.memory_keys, {"source": "random", "start": step, "end": step + 1}
            )
            if step % 50 == 49:
                state.commit(memory)
        state.commit(memory)
    return path


def resident_mib() -> float:
    """Resident memory now, with and without pages that are mapped from files."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) / 1024


def measure(folder: Path) -> dict[str, float]:
    """In a fresh process: open, ask twice, add one page."""
    model, path = MPlusForCausalLM.from_pretrained(folder / "model"), folder / "mem.pt"
    figures = {"file_mib": path.stat().st_size / 2**20, "rss_before_mib": resident_mib()}
    start = time.perf_counter()
    with MemoryState.open(path) as state:
        memory = state.load_memory(model)
        figures["open_s"] = time.perf_counter() - start
        figures["rss_growth_open_mib"] = resident_mib() - figures["rss_before_mib"]
        figures["long_term_tokens"] = len(memory.long_term[0])
        for name in ("first_question_s", "second_question_s"):
            start = time.perf_counter()
            model.generate(tokens(24), memory=memory, max_new_tokens=1, do_sample=False, pad_token_id=0)
            figures[name] = time.perf_counter() - start
        figures["rss_growth_asked_mib"] = resident_mib() - figures["rss_before_mib"]
    with MemoryState.open(path, writable=True) as state:
        memory = state.load_memory(model)
        for _ in range(4):
            model.inject(tokens(CHUNK), memory)
        size, start = path.stat().st_size, time.perf_counter()
        state.commit(memory)
        figures["append_page_s"] = time.perf_counter() - start
        figures["append_page_mib"] = (path.stat().st_size - size) / 2**20
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the commands do
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.gb)
        command = [sys.executable, __file__, "--measure", folder, "--threads", str(options.threads)]
        figures = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )
    for key, value in figures.items():
        print(f"{key:24s} {value:12.2f}")
    if options.json:
        options.json.write_text(json.dumps({"gb": options.gb, "threads": options.threads, **figures}, indent=1))


if __name__ == "__main__":
    main()
