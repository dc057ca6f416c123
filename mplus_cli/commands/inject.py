"""`mplus inject`: put texts into a memory file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mplus_cli.commands.options import (
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    JsonFlag,
    LtmDtypeOption,
    ModelOption,
    QuantizeOption,
    QuietFlag,
    VerboseFlag,
)
from mplus_cli.console import Progress, duration, output, size
from mplus_cli.errors import MPlusError

if TYPE_CHECKING:
    from mplus_cli.inference.injection import InjectProgress
    from mplus_cli.inference.jobs import InjectionSummary


def inject(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Text, Markdown, HTML, PDF or EPUB files (.gz too), directories, globs, - for stdin.",
        ),
    ],
    state: Annotated[
        Path | None, typer.Option("--state", "-s", help="Memory file to make or to continue. Default: $MPLUS_STATE.")
    ] = None,
    model: ModelOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over, whatever the memory file holds.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Inject sources once more that are in memory already.")
    ] = False,
    chunk_size: Annotated[
        int | None, typer.Option("--chunk-size", min=16, help="Tokens per write. Default: the model's own.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the random drop, for a new memory file.")] = 0,
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = None,
    ltm_dtype: LtmDtypeOption = None,
    quantize: QuantizeOption = None,
    pipeline: Annotated[
        bool | None,
        typer.Option(
            "--pipeline/--no-pipeline",
            help="Layers work on several chunks at once, same memory. Default: on several GPUs only.",
        ),
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Put texts into the memory of a model, chunk by chunk, and keep it in a file.

    Interrupt it at any time: the same command continues where it stopped.
    """
    from mplus_cli.data.sources import read_sources
    from mplus_cli.inference.locate import remember_state, state_to_write

    path = state_to_write(state)
    texts = read_sources(sources)
    for text in texts:
        if text.guessed_encoding:
            output.warn(f"{text.name} is not UTF-8; read as {text.guessed_encoding}, which is a guess")

    from mplus_cli.inference.jobs import InjectOptions, inject_into_file

    options = InjectOptions(
        model, fresh, again, chunk_size, seed, device, dtype, ltm_dtype, quantize, device_map, pipeline
    )
    with Progress("injecting", sum(len(text.text) for text in texts)) as progress:
        summary = inject_into_file(
            path, texts, options, output.info, lambda step: progress.update(step.chars_done, progress_detail(step))
        )
    remember_state(path)
    for name in summary.report.skipped:
        output.hint(f"{name} is in this memory already; --again injects it once more")
    if summary.report.interrupted:
        raise MPlusError(_interrupted(path, summary), hint="the same command continues where it stopped", exit_code=130)
    output.result(_render(path, summary), summary.as_json(path))
    output.hint(f'ask about it: mplus ask "..." --state {path}')


def progress_detail(step: InjectProgress) -> str:
    """Counters, speed, fill and memory for the progress line."""
    fill = f"short-term {step.short_term:,}/{step.short_term_size:,}"
    if step.long_term_capacity:
        fill += f", long-term {step.long_term:,}/{step.long_term_capacity:,}"
    speed = f"{step.tokens:,} tokens, {step.chunks:,} chunks, {step.tokens_per_second:,.0f} tokens/s"
    return f"{speed}, {fill}, {size(step.rss)} RAM"


def _render(path: Path, summary: InjectionSummary) -> str:
    report = summary.report
    if not report.injected:
        return f"nothing to inject: {path} holds these sources already"
    lines = [
        f"injected {report.tokens:,} tokens in {report.chunks:,} chunks from {', '.join(report.injected)}",
        f"time {duration(report.seconds)}, {report.tokens_per_second:,.0f} tokens/s, "
        f"slowest chunk {duration(report.slowest_chunk)}",
        f"memory tokens per layer: {summary.short_term:,} of {summary.short_term_size:,} short-term, "
        f"{summary.long_term:,} of {summary.long_term_capacity:,} long-term",
        f"{path}: {size(summary.file_size)}",
    ]
    if report.resumed:
        lines.insert(1, f"continued after {report.resumed:,} chunks that an earlier run had injected")
    return "\n".join(lines)


def _interrupted(path: Path, summary: InjectionSummary) -> str:
    report = summary.report
    return f"interrupted: {report.tokens:,} tokens in {report.chunks:,} chunks are safe in {path}"
