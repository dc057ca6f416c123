"""Figures 1 and 7, Tables 1 and 4 and the FLOPs of the M+ paper: what it is made of and what it costs."""

from __future__ import annotations

from mplus_cli.profiling.published import FLOPS, LATENCY_LENGTH, MEMORY_MB, MODELS
from mplus_cli.reproduction import published
from mplus_cli.reproduction.entry import LLAMA_8B, MPLUS, Cost, Entry, Value

_RANDOM = "mplus profile --random-weights llama-3.1-8b --prompt 2048 --compare-paper"
_MEMORY = "--system mplus --system mplus:offload=true --system memoryllm --system memoryllm:offload=true"
_LONG = (16_384, 32_768, 65_536, LATENCY_LENGTH)
_COST = "Cost does not depend on the values of weights, so random ones serve; the numbers compare on an H100."


def _table_1() -> Entry:
    small = "llama-3.2-3b"
    names = MODELS | {"mplus": "M+", "memoryllm": "MemoryLLM-8B"}
    names |= {f"{system} --offload": f"{names[system]} (offload)" for system in ("mplus", "memoryllm")}
    return Entry(
        MPLUS,
        "Table 1",
        "peak GPU memory on LongBook, MB",
        "yes",
        (
            f"{_RANDOM} --len 128k {_MEMORY} --system window --system snapkv:size=32768 "
            "--out reproduced/mplus-table-1/8b",
            f"mplus profile --random-weights {small} --prompt 2048 --len 128k --system full "
            "--out reproduced/mplus-table-1/3b",
        ),
        why=_COST,
        memory_mb=MEMORY_MB["snapkv"],
        tokens=LATENCY_LENGTH,
        values=tuple(
            Value(
                f"{names[system]}, MB",
                number,
                Cost(
                    "snapkv:size=32768" if system == "snapkv" else system,
                    LATENCY_LENGTH,
                    "memory",
                    small if system == "full" else "llama-3.1-8b",
                ),
            )
            for system, number in MEMORY_MB.items()
        ),
    )


def _figure_7() -> Entry:
    return Entry(
        MPLUS,
        "Figure 7",
        "latency of the text and one token",
        "yes",
        (f"{_RANDOM} --len 16k,32k,64k,128k {_MEMORY} --system full --out reproduced/mplus-figure-7",),
        why=f"{_COST} The figure has no printed points; --compare-paper shows what the text says of it.",
        memory_mb=MEMORY_MB["full"],
        tokens=sum(_LONG),
    )


def _flops() -> Entry:
    lengths = ",".join(f"{length // 1024}k" for length in FLOPS)
    values = []
    for length, numbers in FLOPS.items():
        for system, name, number in zip(("full", "mplus"), ("Llama-3.1-8B", "M+"), numbers, strict=True):
            if number is not None:
                where = Cost(system, length, "flops", "llama-3.1-8b")
                values.append(Value(f"{name}, {length // 1024}k tokens", number, where))
    return Entry(
        MPLUS,
        "Appendix E.4",
        "FLOPs of the text and one token",
        "yes",
        (f"{_RANDOM} --len {lengths} --system mplus --system full --out reproduced/mplus-appendix-e-4",),
        why=f"{_COST} The published ones grow with the length alone; ours count attention over what came before too. "
        "Llama at 128k was out of memory.",
        memory_mb=MEMORY_MB["full"],
        tokens=sum(FLOPS),
        values=tuple(values),
    )


def _table_4() -> Entry:
    return Entry(
        MPLUS,
        "Table 4",
        "long documents of SlimPajama by length",
        "partly",
        (),
        (f"mplus build-data slimpajama --out builds/slim-all --tokenizer {LLAMA_8B} --edges 4k,8k,16k,32k,64k,128k",),
        "The command counts documents of each length and source while it samples them (mplus build-data show "
        "builds/slim-all). It has no range without an upper end, so 128k+ is not counted.",
        duration="about 230 core-hours of tokenizing, by the rate in README.md (758,000 tokens/s a core)",
        values=tuple(Value(f"{name} tokens, documents", numbers[0]) for name, numbers in published.SLIMPAJAMA.items()),
    )


def entries() -> tuple[Entry, ...]:
    """In the order of the paper."""
    figure_1 = Entry(
        MPLUS, "Figure 1", "how M+ writes and reads", "drawing", why="README.md has our own drawing of it."
    )
    return (figure_1, _table_1(), _figure_7(), _table_4(), _flops())
