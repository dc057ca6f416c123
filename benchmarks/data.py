"""Speed and memory of `mplus build-data`: the bucketing of documents against plain `datasets.map`, and chronicles.

    python benchmarks/data.py --tokenizer tokenizer.json                 # invented text
    python benchmarks/data.py --tokenizer tokenizer.json --source DIR    # jsonl files of your own

Each measurement has processes of its own: our first stage (reading, skipping, tokenizing, hashing) on N processes and
on one; a single-process `datasets.map` that counts the tokens of every document with the same tokenizer. They alternate
`--repeats` times, so that whatever else the machine does meets all of them; ratios are taken within a round, and their
median and range are reported. Then the skip test alone, the peak memory of a whole build in one process at 1x and 10x
the corpus, and a chronicle of a million tokens. For one process the seconds of the processor are compared too, which
other work on the machine hardly changes. Needs the `data` extra.
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
from statistics import median

EDGES = "4k,8k,16k,32k,64k"


def write_corpus(folder: Path, documents: int, files: int = 8) -> Path:
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


class Stopwatch:
    """Seconds by the clock, and of the processor in this process."""

    def __enter__(self) -> Stopwatch:
        self.clock, self.used = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *exc: object) -> None:
        self.clock, self.used = time.perf_counter() - self.clock, time.process_time() - self.used

    def read(self) -> dict:
        return {"seconds": self.clock, "processor_seconds": self.used}


def measure_index(source: Path, tokenizer: Path, processes: int) -> dict:
    """Our first stage, with the start of its processes."""
    from mplus_cli.data.building import BuildFolder, engine
    from mplus_cli.data.building.documents import Running, Selection, _plan

    edges = tuple(int(edge[:-1]) * 1024 for edge in EDGES.split(","))
    wanted = Selection("slimpajama", str(source), tokenizer=str(tokenizer), edges=edges, quota=200)
    with tempfile.TemporaryDirectory() as out:
        folder = BuildFolder.open(Path(out) / "b", "slimpajama", wanted.parameters())
        stage = next(_plan(folder, wanted, Running(processes=processes)).stages())
        with Stopwatch() as watch:
            engine.run_local(stage, folder.path, processes)
        readings = [json.loads(path.read_bytes())["reading"] for path in (folder.work / "index").glob("*.json")]
    total = {key: sum(reading[key] for reading in readings) for key in ("rows", "tokenized", "tokens")}
    counts = {"documents": total["rows"], "tokenized": total["tokenized"], "counted": total["tokens"]}
    return watch.read() | counts


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
        with Stopwatch() as watch:
            counted = data.map(
                lambda row: {"tokens": len(fast(row["text"], add_special_tokens=False, verbose=False)["input_ids"])}
            )
        return watch.read() | {"documents": len(counted), "tokens": sum(counted["tokens"])}


def measure_skip(source: Path, tokenizer: Path) -> dict:
    """The test by length alone: how fast lines that are too short are passed over, and how fast they are just read.

    In seconds of the processor: the files are in the page cache, and other work on the machine is not counted.
    """
    from mplus_cli.data.building.lengths import TokenCounter
    from mplus_cli.data.building.rows import BadRows, Fields, read_rows

    bounds = TokenCounter(tokenizer).bounds
    paths = sorted(source.glob("*.jsonl"))
    start = time.process_time()
    size = sum(len(line) for path in paths for line in open(path, "rb"))  # noqa: SIM115 (also warms the page cache)
    reading = time.process_time() - start
    start = time.process_time()
    for path in paths:
        for _ in read_rows(str(path), Fields(), BadRows(0), short=lambda line: bounds.short_line(line, 1 << 30)):
            pass
    return {"seconds": time.process_time() - start, "bytes": size, "reading": reading}


def measure_memory(source: Path, tokenizer: Path) -> dict:
    """Peak resident size of a whole build in one process."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "mplus_cli", "build-data", "slimpajama", "--out", f"{out}/b", "--quiet"]
        command += ["--source", str(source), "--tokenizer", str(tokenizer), "--per-bucket", "50"]
        subprocess.run([*command, "--processes", "1"], check=True, stdout=subprocess.DEVNULL)
    return {"peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}


def measure_chronicle(source: Path, tokenizer: Path) -> dict:
    """One invented chronicle with its questions, as `mplus build-data chronicle` writes it, in one process."""
    from mplus_cli.data.building.documents import Running
    from mplus_cli.data.building.worlds import Worlds, build_worlds

    wanted = Worlds(train=1, test=0, characters=5_000_000, tokenizer=str(tokenizer))
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        counts = build_worlds(Path(out) / "b", wanted, Running(processes=1)).counts["train"]
        return {"seconds": time.perf_counter() - start, "tokens": counts["tokens"], "questions": counts["questions"]}


MEASUREMENTS = {
    "index": measure_index,
    "datasets": measure_datasets,
    "skip": measure_skip,
    "memory": measure_memory,
    "chronicle": measure_chronicle,
}


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
    parser.add_argument("--documents", type=int, default=8000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="Rounds in which the measurements alternate.")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, source, tokenizer, *rest = options.measure
        print(json.dumps(MEASUREMENTS[name](Path(source), Path(tokenizer), *map(int, rest))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        source = options.source or write_corpus(Path(temporary) / "one", options.documents)
        small = write_corpus(Path(temporary) / "small", max(160, options.documents // 10))
        report_speed(options, source)
        report_rest(options, source, small)


def report_speed(options: argparse.Namespace, source: Path) -> None:
    contestants = {
        "datasets.map, 1 process": ("datasets",),
        "mplus, 1 process": ("index", 1),
        f"mplus, {options.processes} processes": ("index", options.processes),
    }
    rounds = []
    for number in range(options.repeats):
        order = list(contestants) if number % 2 == 0 else list(contestants)[::-1]
        results = {}
        for name in order:
            measurement, *arguments = contestants[name]
            results[name] = in_own_process(measurement, source, options.tokenizer, *arguments)
        rounds.append(results)
    base, _, ours = contestants
    documents, tokens = rounds[0][base]["documents"], rounds[0][base]["tokens"]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {options.repeats} alternating rounds")
    tokenized, counted = rounds[0][ours]["tokenized"], rounds[0][ours]["counted"]
    print(f"{documents:,} documents, {tokens:,} tokens; mplus tokenizes {tokenized:,} of them, {counted:,} tokens")
    for name in contestants:
        seconds = median(results[name]["seconds"] for results in rounds)
        ratios = [results[base]["seconds"] / results[name]["seconds"] for results in rounds]
        rates = f"{documents / seconds:7,.0f} documents/s {tokens / seconds:9,.0f} tokens/s of corpus"
        spread = f"{median(ratios):5.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:<24} {seconds:7.2f} s {rates} {spread if name != base else ''}")
    used = [median(results[name]["processor_seconds"] for results in rounds) for name in list(contestants)[:2]]
    print(
        f"processor seconds of one process: datasets.map {used[0]:.2f}, mplus {used[1]:.2f}, {used[0] / used[1]:.2f}x"
    )


def report_rest(options: argparse.Namespace, source: Path, small: Path) -> None:
    skips = [in_own_process("skip", source, options.tokenizer) for _ in range(options.repeats)]
    rate, reading = (median(skip["bytes"] / skip[key] / 1e6 for skip in skips) for key in ("seconds", "reading"))
    print(f"skip test alone {rate:,.0f} MB/s; reading the lines and nothing else {reading:,.0f} MB/s")
    for name, folder in (("1x", small), ("10x", source)):
        peaks = [in_own_process("memory", folder, options.tokenizer)["peak_mb"] for _ in range(2)]
        print(f"peak memory of a build at {name:<4} {min(peaks):7.0f} to {max(peaks):.0f} MB")
    told = in_own_process("chronicle", source, options.tokenizer)
    print(f"chronicle: {told['tokens']:,} tokens, {told['questions']:,} questions in {told['seconds']:.1f} s")


if __name__ == "__main__":
    main()
