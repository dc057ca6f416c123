"""`mplus build-data retention`: facts, distractors and questions to measure how long a memory keeps them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mplus_cli.commands.chat_options import (
    BaseUrlOption,
    CacheOption,
    ConcurrencyOption,
    MaxCostOption,
    PricesOption,
    open_chat,
)
from mplus_cli.commands.options import JsonFlag, QuietFlag, VerboseFlag
from mplus_cli.console import output, table

FILTERS = "Filters"
MODEL_HELP = "A model of the server, or a local one: a folder, or hf:HUB-ID."


def retention(
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder to build in.")],
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", help="What counts the tokens: tokenizer.json, model folder or hub id.")
    ],
    source: Annotated[str, typer.Option("--source", help="squad, nq, a file, a folder or a hub id.")] = "squad",
    revision: Annotated[
        str | None, typer.Option("--revision", help="Commit, branch or tag on the hub. Default: today's.")
    ] = None,
    files: Annotated[str | None, typer.Option("--files", help="Only files that match, such as 'dev/*'.")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", help="Of a local source, for the manifest; hub ids state their own.")
    ] = None,
    max_answer_tokens: Annotated[
        int | None, typer.Option("--max-answer-tokens", min=1, help="Default: 3, for Natural Questions 4.")
    ] = None,
    distractors: Annotated[
        str | None,
        typer.Option("--distractors", help="Where they come from, as --source. Default: SQuAD's training split."),
    ] = None,
    distractor_count: Annotated[int, typer.Option("--distractor-count", min=1)] = 400,
    distractor_tokens: Annotated[
        int, typer.Option("--distractor-tokens", min=0, help="Of each; 0 takes paragraphs as they are.")
    ] = 512,
    closed_book: Annotated[
        str | None,
        typer.Option(
            "--drop-known-to", help=f"Drop what it answers closed-book. {MODEL_HELP}", rich_help_panel=FILTERS
        ),
    ] = None,
    with_context: Annotated[
        str | None,
        typer.Option(
            "--keep-answered-by", help=f"Keep what it answers from the context. {MODEL_HELP}", rich_help_panel=FILTERS
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only so many first examples. The paper's figures: 100.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of choice and order of the distractors.")] = 0,
    max_bad_rows: Annotated[int, typer.Option("--max-bad-rows", min=0, help="Stop after more unreadable rows.")] = 100,
    base_url: BaseUrlOption = None,
    max_cost: MaxCostOption = None,
    prices: PricesOption = None,
    concurrency: ConcurrencyOption = 8,
    cache: CacheOption = None,
    device: Annotated[str, typer.Option("--device", help="For a local model.", rich_help_panel=FILTERS)] = "cpu",
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Questions with short answers, and texts to inject between the fact and the question.

    Answers of models are kept on disk: a rerun costs nothing.
    """
    from mplus_cli.data.building import BuildFolder
    from mplus_cli.data.chat import ChatSettings
    from mplus_cli.data.named_tokenizer import open_tokenizer
    from mplus_cli.data.retention import (
        Answerer,
        ChatAnswerer,
        LocalAnswerer,
        RetentionOptions,
        build_retention,
        open_examples,
    )
    from mplus_cli.data.retention.builder import BUILDER, parameters

    def answerer(model: str | None) -> Answerer | None:
        if model is None:
            return None
        settings = ChatSettings(model, base_url, concurrency=concurrency)
        answers, _, connect = open_chat(settings, cache, prices, max_cost if is_remote(model) else None, batch=False)
        if is_remote(model):
            return ChatAnswerer(connect())
        return LocalAnswerer(model.removeprefix("hf:"), answers, device)

    options = RetentionOptions(
        max_answer_tokens, distractor_count, distractor_tokens or None, seed, limit, max_bad_rows
    )
    closed, context = answerer(closed_book), answerer(with_context)
    examples = open_examples(source, revision, files)
    others = open_examples(distractors or "squad", train=True)
    if licence:
        examples = replace(examples, source=replace(examples.source, licence=licence))
    counter, identity = open_tokenizer(tokenizer)
    names = [model.name if model else None for model in (closed, context)]
    given = parameters(examples, others, identity, options, *names)
    with BuildFolder.open(out, BUILDER, given, need_bytes=50e6) as folder:
        manifest = build_retention(folder, examples, others, counter, identity, options, closed, context)
    counts = [[key.replace("_", " "), f"{count:,}"] for key, count in manifest.counts.items()]
    output.result(f"{table(['', 'count'], counts)}\n\n{out}", {"out": str(out), **manifest.to_json()})


def is_remote(model: str) -> bool:
    """A folder or `hf:` id is a model in this process; any other name is one of the server."""
    return not model.startswith("hf:") and not Path(model).is_dir()
