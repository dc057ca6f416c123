"""`mplus build-data event-qa`: questions about what happens next in a book."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mplus_cli.commands.chat_options import (
    BaseUrlOption,
    BatchFlag,
    CacheOption,
    ConcurrencyOption,
    MaxCostOption,
    PricesOption,
    TemperatureOption,
    open_chat,
)
from mplus_cli.commands.options import JsonFlag, QuietFlag, VerboseFlag
from mplus_cli.console import output, table

if TYPE_CHECKING:
    from mplus_cli.data.building import Manifest
    from mplus_cli.data.chat import Backend
    from mplus_cli.data.event_qa import Plan


def event_qa(
    books: Annotated[
        list[str],
        typer.Argument(metavar="BOOK...", help="Books: text, EPUB, PDF... files, folders, or LongBook-QA's jsonl."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to build in.")],
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", help="What counts the tokens: tokenizer.json, model folder or hub id.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="Chat model that finds and invents events.")] = "gpt-4o",
    base_url: BaseUrlOption = None,
    chunk_size: Annotated[int, typer.Option("--chunk-size", min=64, help="Tokens per chunk.")] = 4096,
    characters: Annotated[int, typer.Option("--characters", min=1, help="Main characters per book.")] = 10,
    spacy: Annotated[
        str, typer.Option("--spacy", help="spaCy pipeline that finds persons, by name or folder.")
    ] = "en_core_web_sm",
    seed: Annotated[int, typer.Option("--seed", help="Of the order of the options.")] = 0,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Chunks per book, for a trial.")] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Of the books, for the manifest.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many requests, tokens and dollars it would take, and stop.")
    ] = False,
    max_cost: MaxCostOption = None,
    prices: PricesOption = None,
    batch: BatchFlag = False,
    attempts: Annotated[int, typer.Option("--attempts", min=1, help="For answers that cannot be used.")] = 3,
    concurrency: ConcurrencyOption = 8,
    temperature: TemperatureOption = 0.0,
    cache: CacheOption = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="For spaCy.")] = 1,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Build LongBook-Event-QA: which of six events happens next, given five past ones?

    Every answer of the model is kept on disk: a rerun costs nothing, and an interrupted one goes on where it stopped.
    """
    from mplus_cli.data.building import BuildFolder
    from mplus_cli.data.chat import ChatSettings
    from mplus_cli.data.event_qa import EventQAOptions, build_event_qa, load_pipeline, plan_event_qa, read_books
    from mplus_cli.data.event_qa.builder import BUILDER, need_bytes, parameters
    from mplus_cli.data.named_tokenizer import open_tokenizer

    settings = ChatSettings(
        model, base_url, temperature if temperature >= 0 else None, concurrency=concurrency, attempts=attempts
    )
    options = EventQAOptions(chunk_size, characters, seed, limit, processes, licence)
    answers, budget, connect = open_chat(settings, cache, prices, max_cost, batch)
    backend = None if dry_run else connect()  # no key: said before a book is read
    texts = read_books(books)
    pipeline = load_pipeline(spacy)
    counter, identity = open_tokenizer(tokenizer)
    if backend is None:
        plan = plan_event_qa(texts, pipeline, counter, settings, answers, budget.price, options)
        output.result(_render_plan(plan, model), {"model": model, **asdict(plan)})
        return
    given = parameters(texts, pipeline, identity, settings, options)
    with BuildFolder.open(out, BUILDER, given, need_bytes=need_bytes(texts)) as folder:
        manifest = build_event_qa(folder, texts, pipeline, counter, identity, backend, options)
    output.result(_render(out, manifest, backend), {"out": str(out), **manifest.to_json(), "this_run": _spent(backend)})


def _render_plan(plan: Plan, model: str) -> str:
    about = "about " if plan.estimated else ""
    cost = f"${plan.cost:,.2f}" if plan.cost is not None else f"no price known for {model} (--prices FILE)"
    return "\n".join(
        [
            f"books {plan.books:,}, chunks {plan.chunks:,}",
            f"requests {about}{plan.requests:,}, of which {plan.cached:,} are answered already",
            f"tokens to pay for: {plan.usage.input_tokens:,} in, {plan.usage.output_tokens:,} out (estimated high)",
            f"price {cost}",
        ]
    )


def _render(out: Path, manifest: Manifest, backend: Backend) -> str:
    counts = manifest.counts
    rows = [
        [name, *(f"{book[key]:,}" for key in ("tokens", "chunks", "kept", "questions"))]
        for name, book in counts["books"].items()
    ]
    lines = [table(["book", "tokens", "chunks", "events", "questions"], rows), ""]
    lines += [
        f"{counts['questions']:,} questions in {out}/questions.jsonl.gz, "
        f"{counts['flagged']['questions']:,} more failed a check"
    ]
    lines += [f"  {count:,} {check}" for check, count in counts["flagged"].items() if count and check != "questions"]
    lines += [f"set aside: {count:,} {reason}" for reason, count in counts["set_aside"].items()]
    blind = counts["guessing_by_length"]
    if blind["longest"] is not None:
        lines.append(
            f"guessing the longest option is right in {blind['longest']:.0%}, the shortest in {blind['shortest']:.0%} "
            f"(chance {blind['chance']:.0%})"
        )
    spent = _spent(backend)
    cost = f", ${spent['cost']:.2f}" if spent["cost"] is not None else ""
    lines.append(
        f"this run: {spent['requests']:,} requests, {spent['input_tokens']:,} tokens in, "
        f"{spent['output_tokens']:,} out{cost}; {spent['retried']:,} sent again"
    )
    return "\n".join(lines)


def _spent(backend: Backend) -> dict[str, Any]:
    return {**asdict(backend.budget.spent), "cost": backend.budget.cost, "retried": backend.retried}
