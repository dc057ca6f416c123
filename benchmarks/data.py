"""Speed and memory of `mplus build-data slimpajama`: documents and tokens per second against plain `datasets.map`.

    python benchmarks/data.py --tokenizer tokenizer.json                 # invented text
    python benchmarks/data.py --tokenizer tokenizer.json --source DIR    # jsonl files of your own

Three measurements, each in processes of its own: our first stage (reading, skipping, tokenizing) on N processes; a
single-process `datasets.map` that counts the tokens of every document with the same tokenizer; the skip test alone.
Then the peak memory of a whole build, in one process, at 1x and 10x the corpus. Needs the `data` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EDGES = "4k,8k,16k,32k,64k"


def write_corpus(folder: Path, documents: int, files: int = 16) -> Path:
    """Chronicles cut to lengths spread as those of web text: most short, a few of tens of thousands of tokens."""
    from mplus_cli.data.chronicle import Chronicle

    text = Chronicle.generate(1, min_chars=3_000_000).text
    rng = random.Random(2)
    folder.mkdir(parents=True)
    for number in range(files):
        with open(folder / f"part-{number:03d}.jsonl", "w", encoding="utf-8") as file:
            for _ in range(documents // files):
                length = int(min(400_000, rng.lognormvariate(8.0, 1.4))) + 50
                start = rng.randrange(len(text) - length)
                row = {"text": text[start : start + length], "meta": {"redpajama_set_name": "Benchmark"}}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return folder


def measure_index(source: Path, tokenizer: Path, processes: int) -> dict:
    """Our first stage, with the start of its processes."""
    from mplus_cli.data.building import BuildFolder, engine
    from mplus_cli.data.building.documents import Running, Selection, _plan

    edges = tuple(int(edge[:-1]) * 1024 for edge in EDGES.split(","))
    wanted = Selection("slimpajama", str(source), tokenizer=str(tokenizer), edges=edges, quota=200)
    with tempfile.TemporaryDirectory() as out:
        folder = BuildFolder.open(Path(out) / "b", "slimpajama", wanted.parameters())
        stage = next(_plan(folder, wanted, Running(processes=processes)).stages())
        start = time.perf_counter()
        engine.run_local(stage, folder.path, processes)
        seconds = time.perf_counter() - start
        readings = [json.loads(path.read_bytes())["reading"] for path in (folder.work / "index").glob("*.json")]
    total = {key: sum(reading[key] for reading in readings) for key in ("rows", "tokens", "skipped_short")}
    return {"seconds": seconds, "documents": total["rows"], "tokenized_tokens": total["tokens"]}


def measure_datasets(source: Path, tokenizer: Path) -> dict:
    """What one would write first: one process, `map`, the same tokenizer."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))
    with tempfile.TemporaryDirectory() as cache:
        data = datasets.load_dataset(
            "json", data_files=sorted(map(str, source.glob("*.jsonl"))), split="train", cache_dir=cache
        )
        start = time.perf_counter()
        counted = data.map(
            lambda row: {"tokens": len(fast(row["text"], add_special_tokens=False, verbose=False)["input_ids"])}
        )
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "documents": len(counted), "tokens": sum(counted["tokens"])}


def measure_skip(source: Path, tokenizer: Path) -> dict:
    """The test by length alone: how fast lines that are too short are passed over."""
    from mplus_cli.data.building.lengths import TokenCounter
    from mplus_cli.data.building.rows import BadRows, Fields, read_rows

    bounds = TokenCounter(tokenizer).bounds
    start = time.perf_counter()
    size = skipped = 0
    for path in sorted(source.glob("*.jsonl")):
        size += path.stat().st_size
        for row in read_rows(str(path), Fields(), BadRows(0), short=lambda line: bounds.short_line(line, 1 << 30)):
            skipped += row.text is None
    return {"seconds": time.perf_counter() - start, "bytes": size, "skipped": skipped}


def measure_memory(source: Path, tokenizer: Path) -> dict:
    """Peak resident size of a whole build in one process."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "mplus_cli", "build-data", "slimpajama", "--out", f"{out}/b", "--quiet"]
        command += ["--source", str(source), "--tokenizer", str(tokenizer), "--per-bucket", "50"]
        subprocess.run([*command, "--processes", "1"], check=True, stdout=subprocess.DEVNULL)
    return {"peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}


MEASUREMENTS = {"index": measure_index, "datasets": measure_datasets, "skip": measure_skip, "memory": measure_memory}


def in_own_process(name: str, *arguments: object) -> dict:
    """Each measurement starts from nothing: no warm tokenizer, no memory of another."""
    command = [sys.executable, __file__, "--measure", name, *map(str, arguments)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--source", type=Path, help="Folder of jsonl files; default: invented text.")
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="The fastest counts.")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, source, tokenizer, *rest = options.measure
        print(json.dumps(MEASUREMENTS[name](Path(source), Path(tokenizer), *map(int, rest))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        source = options.source or write_corpus(Path(temporary) / "one", options.documents)
        small = write_corpus(Path(temporary) / "small", max(160, options.documents // 10))
        report(options, source, small)


def report(options: argparse.Namespace, source: Path, small: Path) -> None:
    def best(name: str, *arguments: object) -> dict:
        return min((in_own_process(name, *arguments) for _ in range(options.repeats)), key=lambda r: r["seconds"])

    ours = best("index", source, options.tokenizer, options.processes)
    single = best("index", source, options.tokenizer, 1)
    theirs = best("datasets", source, options.tokenizer)
    skip = best("skip", source, options.tokenizer)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    print(f"{machine}; {ours['documents']:,} documents, {theirs['tokens']:,} tokens")
    results = {
        "datasets.map, 1 process": theirs,
        "mplus, 1 process": single,
        f"mplus, {options.processes} processes": ours,
    }
    for name, result in results.items():
        seconds = result["seconds"]
        rates = (
            f"{result['documents'] / seconds:9,.0f} documents/s {theirs['tokens'] / seconds:12,.0f} tokens/s of corpus"
        )
        print(f"{name:<24} {seconds:7.2f} s {rates}  {theirs['seconds'] / seconds:5.2f}x")
    print(f"{'skip test alone':<24} {skip['seconds']:7.2f} s {skip['bytes'] / skip['seconds'] / 1e6:9,.0f} MB/s")
    for name, folder in (("1x", small), ("10x", source)):
        peak = in_own_process("memory", folder, options.tokenizer)["peak_mb"]
        print(f"peak memory at {name:<4} {peak:7.0f} MB")


if __name__ == "__main__":
    main()
