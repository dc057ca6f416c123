"""`mplus build-data event-qa`: questions about what happens next in a book."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from mplus_cli.commands.build_options import RUNNING, LicenceOption, OutOption, SeedOption, TokenizerOption, show_result
from mplus_cli.commands.chat_options import (
    AttemptsOption,
    BaseUrlOption,
    BatchFlag,
    CacheOption,
    ConcurrencyOption,
    DryRunFlag,
    MaxCostOption,
    PricesOption,
    TemperatureOption,
    open_chat,
    plan_text,
    spent,
    spent_text,
    temperature_or_none,
)
from mplus_cli.commands.options import JsonFlag, QuietFlag, VerboseFlag
from mplus_cli.console import output


def event_qa(
    books: Annotated[
        list[str],
        typer.Argument(metavar="BOOK...", help="Books: text, EPUB, PDF... files, folders, or LongBook-QA's jsonl."),
    ],
    out: OutOption,
    tokenizer: TokenizerOption,
    model: Annotated[str, typer.Option("--model", "-m", help="Chat model that finds and invents events.")] = "gpt-4o",
    base_url: BaseUrlOption = None,
    chunk_size: Annotated[int, typer.Option("--chunk-size", min=64, help="Tokens per chunk.")] = 4096,
    characters: Annotated[int, typer.Option("--characters", min=1, help="Main characters per book.")] = 10,
    spacy: Annotated[
        str, typer.Option("--spacy", help="spaCy pipeline that finds persons, by name or folder.")
    ] = "en_core_web_sm",
    seed: SeedOption = 0,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Chunks per book, for a trial.")] = None,
    licence: LicenceOption = None,
    dry_run: DryRunFlag = False,
    max_cost: MaxCostOption = None,
    prices: PricesOption = None,
    batch: BatchFlag = False,
    attempts: AttemptsOption = 3,
    concurrency: ConcurrencyOption = 8,
    temperature: TemperatureOption = 0.0,
    cache: CacheOption = None,
    processes: Annotated[int, typer.Option("--processes", "-p", min=1, help="For spaCy.", rich_help_panel=RUNNING)] = 1,
    max_bad_rows: Annotated[
        int,
        typer.Option(
            "--max-bad-rows", min=0, help="Stop after more unreadable lines of jsonl.", rich_help_panel=RUNNING
        ),
    ] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Build LongBook-Event-QA: which of six events happens next, given five past ones?

    Every answer of the model is kept on disk: a rerun costs nothing, and an interrupted one goes on where it stopped.
    """
    from mplus_cli.data.building import BuildFolder, require_disk
    from mplus_cli.data.building.rows import BadRows
    from mplus_cli.data.chat import ChatSettings, DryRun
    from mplus_cli.data.event_qa import EventQAOptions, build_event_qa, load_pipeline, plan_event_qa, read_books
    from mplus_cli.data.event_qa.builder import BUILDER, need_bytes, parameters
    from mplus_cli.data.named_tokenizer import open_tokenizer

    settings = ChatSettings(
        model, base_url, temperature_or_none(temperature), concurrency=concurrency, attempts=attempts
    )
    options = EventQAOptions(chunk_size, characters, seed, limit, processes, licence)
    answers, connect = open_chat(cache, prices, max_cost, batch, dry_run)
    backend = connect(settings)  # no key: said before a book is read
    texts = read_books(books, bad := BadRows(max_bad_rows))
    for line in bad.named:
        output.warn(f"left out {line}")
    pipeline = load_pipeline(spacy)
    counter, identity = open_tokenizer(tokenizer)
    if isinstance(backend, DryRun):
        plan = plan_event_qa(texts, pipeline, counter, backend, options)
        output.result(f"books {plan.books:,}, chunks {plan.chunks:,}\n{plan_text(plan.asking)}", asdict(plan))
        return
    require_disk(answers.folder, need_bytes(texts))
    given = parameters(texts, pipeline, identity, settings, options)
    with BuildFolder.open(out, BUILDER, given, need_bytes=need_bytes(texts)) as folder:
        manifest = build_event_qa(folder, texts, pipeline, counter, identity, backend, options, bad.count)
    show_result(out, manifest, spent_text([backend]), this_run=spent(backend))
