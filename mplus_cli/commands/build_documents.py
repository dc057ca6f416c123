"""`mplus build-data slimpajama` and `fineweb`: documents sampled from a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mplus_cli.commands.build_options import (
    RUNNING,
    SOURCES,
    BadRowsOption,
    FilesOption,
    LicenceOption,
    OptionalTokenizer,
    OutOption,
    ProcessesOption,
    RevisionOption,
    SeedOption,
    ShardOption,
    TokenizerOption,
    show_result,
)
from mplus_cli.commands.options import JsonFlag, QuietFlag, VerboseFlag
from mplus_cli.console import output
from mplus_cli.errors import UsageError

if TYPE_CHECKING:
    from mplus_cli.data.building.documents import Running, Selection

SourceOption = Annotated[str, typer.Option("--source", help="Folder, file or hub id.", rich_help_panel=SOURCES)]
TextOption = Annotated[str, typer.Option("--text-field", help="Field of the text.", rich_help_panel=SOURCES)]
SourceFieldOption = Annotated[
    str, typer.Option("--source-field", help="Field of the collection's name.", rich_help_panel=SOURCES)
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Read only so many first documents: a trial.")]
TasksOption = Annotated[
    int | None,
    typer.Option(
        "--tasks", min=1, help="Pieces of work. Default: one per file, at most 1000.", rich_help_panel=RUNNING
    ),
]
ExecutorOption = Annotated[
    str, typer.Option("--executor", help="local, slurm or ray (datatrove's).", rich_help_panel=RUNNING)
]
ExecutorOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--executor-option",
        metavar="KEY=VALUE",
        help="Slurm: time=08:00:00, partition=NAME, workers=200... Ray: workers=64...",
        rich_help_panel=RUNNING,
    ),
]


def slimpajama(
    out: OutOption,
    tokenizer: TokenizerOption,
    source: SourceOption = "cerebras/SlimPajama-627B",
    per_bucket: Annotated[int, typer.Option("--per-bucket", min=1, help="Documents to sample for each.")] = 200_000,
    edges: Annotated[str, typer.Option("--edges", help="Ascending token counts, k = 1024.")] = "4k,8k,16k,32k,64k",
    exclude: Annotated[
        list[Path] | None, typer.Option("--exclude", help="Build whose documents are not taken. Repeatable.")
    ] = None,
    seed: SeedOption = 0,
    limit: LimitOption = None,
    rows_per_shard: ShardOption = 1000,
    revision: RevisionOption = None,
    files: FilesOption = None,
    licence: LicenceOption = None,
    text_field: TextOption = "text",
    source_field: SourceFieldOption = "meta.redpajama_set_name",
    max_bad_rows: BadRowsOption = 100,
    processes: ProcessesOption = None,
    tasks: TasksOption = None,
    executor: ExecutorOption = "local",
    executor_option: ExecutorOptions = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Long documents by their number of tokens, a fixed number for each range of lengths."""
    from mplus_cli.data.building.documents import Selection
    from mplus_cli.data.building.rows import Fields

    wanted = Selection(
        "slimpajama",
        source,
        revision=revision,
        files=files or ("train/*" if source == "cerebras/SlimPajama-627B" else None),
        fields=Fields(text_field, source_field),
        licence=licence,
        tokenizer=tokenizer,
        edges=token_counts(edges),
        quota=per_bucket,
        limit=limit,
        exclude=tuple(exclude or ()),
        seed=seed,
        rows_per_shard=rows_per_shard,
    )
    _build(out, wanted, running(processes, tasks, executor, executor_option, max_bad_rows))


def fineweb(
    out: OutOption,
    source: SourceOption = "HuggingFaceFW/fineweb-edu",
    documents: Annotated[
        int, typer.Option("--documents", min=1, help="Documents after the held-out ones.")
    ] = 3_000_000,
    held_out: Annotated[
        int, typer.Option("--held-out", min=0, help="First documents, kept for validation; their copies are dropped.")
    ] = 50_000,
    tokenizer: OptionalTokenizer = None,
    seed: SeedOption = 0,
    limit: LimitOption = None,
    rows_per_shard: ShardOption = 1000,
    revision: RevisionOption = None,
    files: FilesOption = None,
    licence: LicenceOption = None,
    text_field: TextOption = "text",
    source_field: SourceFieldOption = "dump",
    max_bad_rows: BadRowsOption = 100,
    processes: ProcessesOption = None,
    tasks: TasksOption = None,
    executor: ExecutorOption = "local",
    executor_option: ExecutorOptions = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Short documents of a web corpus: the first ones held out, the next ones for training, shuffled."""
    from mplus_cli.data.building.documents import Selection
    from mplus_cli.data.building.rows import Fields

    wanted = Selection(
        "fineweb",
        source,
        revision=revision,
        files=files or ("data/CC-MAIN-2024-10/*" if source == "HuggingFaceFW/fineweb-edu" else None),
        fields=Fields(text_field, source_field),
        licence=licence,
        tokenizer=tokenizer,
        held_out=held_out,
        quota=documents,
        limit=limit,
        seed=seed,
        rows_per_shard=rows_per_shard,
    )
    _build(out, wanted, running(processes, tasks, executor, executor_option, max_bad_rows))


def _build(out: Path, wanted: Selection, how: Running) -> None:
    from mplus_cli.data.building.documents import build_documents

    result = build_documents(out, wanted, how)
    if isinstance(result, list):
        output.result(f"submitted jobs {', '.join(result) or '(done)'}", {"path": str(out), "jobs": result})
        output.hint(
            f"mplus build-data list {out.parent} shows when it is complete; submit again to resume failed tasks"
        )
        return
    show_result(out, result)
    for bucket, documents in result.counts["documents"].items():
        if not documents:
            output.warn(f"no document was found for {bucket}")


def running(
    processes: int | None, tasks: int | None, executor: str, options: list[str] | None, max_bad_rows: int = 0
) -> Running:
    """How to run, from the options that all builders of documents share."""
    from mplus_cli.data.building.documents import Running
    from mplus_cli.machine import usable_cores

    pairs = [option.partition("=") for option in options or []]
    wrong = [key for key, equals, _ in pairs if not equals]
    if wrong:
        raise UsageError(f"--executor-option {wrong[0]} has no value.", "--executor-option partition=cpu")
    return Running(
        processes=processes or usable_cores(),
        tasks=tasks,
        executor=executor,
        options={key: value for key, _, value in pairs},
        max_bad_rows=max_bad_rows,
    )


def token_counts(text: str) -> tuple[int, ...]:
    """`4k,8k,10000` -> (4096, 8192, 10000)."""
    try:
        return tuple(
            int(part[:-1]) * 1024 if part.lower().endswith("k") else int(part)
            for part in (piece.strip() for piece in text.split(","))
        )
    except ValueError as error:
        raise UsageError(f"--edges {text}: not a list of numbers.", "For example --edges 4k,8k,16k") from error
