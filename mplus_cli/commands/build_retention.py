"""`mplus build-data retention`: facts, distractors and questions to measure how long a memory keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mplus_cli.commands.build_options import (
    BadRowsOption,
    FilesOption,
    LicenceOption,
    OutOption,
    RevisionOption,
    SeedOption,
    TokenizerOption,
    show_result,
)
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
from mplus_cli.errors import UsageError

if TYPE_CHECKING:
    from mplus_cli.data.retention import Answerer

FILTERS = "Filters"
MODEL_HELP = "A model of the server, or a local one: a folder, or hf:HUB-ID."


def retention(
    out: OutOption,
    tokenizer: TokenizerOption,
    source: Annotated[str, typer.Option("--source", help="squad, nq, a file, a folder or a hub id.")] = "squad",
    revision: RevisionOption = None,
    files: FilesOption = None,
    licence: LicenceOption = None,
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
    device: Annotated[str, typer.Option("--device", help="For a local model.", rich_help_panel=FILTERS)] = "cpu",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only so many first examples. The paper's figures: 100.")
    ] = None,
    seed: SeedOption = 0,
    max_bad_rows: BadRowsOption = 100,
    base_url: BaseUrlOption = None,
    dry_run: DryRunFlag = False,
    max_cost: MaxCostOption = None,
    prices: PricesOption = None,
    batch: BatchFlag = False,
    attempts: AttemptsOption = 3,
    concurrency: ConcurrencyOption = 8,
    temperature: TemperatureOption = 0.0,
    cache: CacheOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Questions with short answers, and texts to inject between the fact and the question.

    Answers of models are kept on disk: a rerun costs nothing, and an interrupted one goes on where it stopped.
    """
    from mplus_cli.data.building import BuildFolder, require_disk
    from mplus_cli.data.chat import ChatSettings
    from mplus_cli.data.named_tokenizer import open_tokenizer
    from mplus_cli.data.retention import (
        ChatAnswerer,
        Filters,
        LocalAnswerer,
        RetentionOptions,
        build_retention,
        choose_examples,
        open_examples,
    )
    from mplus_cli.data.retention.builder import BUILDER, NEED_BYTES, parameters

    remote = [model for model in (closed_book, with_context) if model and _is_remote(model)]
    answers, connect = open_chat(cache, prices, max_cost if remote else None, batch, dry_run)

    def answerer(model: str | None) -> Answerer | None:
        if model is None:
            return None
        if not _is_remote(model):
            return LocalAnswerer(model.removeprefix("hf:"), answers, device, dry_run)
        degrees = temperature_or_none(temperature)
        settings = ChatSettings(model, base_url, degrees, concurrency=concurrency, attempts=attempts)
        return ChatAnswerer(connect(settings))

    options = RetentionOptions(
        max_answer_tokens, distractor_count, distractor_tokens or None, seed, limit, max_bad_rows
    )
    filters = Filters(answerer(closed_book), answerer(with_context))
    examples = open_examples(source, revision, files, licence)
    counter, identity = open_tokenizer(tokenizer)
    if dry_run:
        counts: dict[str, int] = {}
        chosen = choose_examples(examples, counter, options, filters, counts)
        plans = filters.plans(limited=limit is not None)
        data = {"counts": counts, "at_most": len(chosen), "asking": [asdict(plan) for plan in plans]}
        output.result(_render_plan(len(chosen), [plan_text(plan) for plan in plans]), data)
        return
    try:
        others = open_examples(distractors or "squad", train=True)
    except UsageError as error:
        raise UsageError(f"distractors: {error.message}", f"--distractors names their source. {error.hint}") from error
    require_disk(answers.folder, NEED_BYTES)
    given = parameters(examples, others, identity, options, filters)
    with BuildFolder.open(out, BUILDER, given, need_bytes=NEED_BYTES) as folder:
        manifest = build_retention(folder, examples, others, counter, identity, options, filters)
    backends = [model.backend for model in filters.models if isinstance(model, ChatAnswerer)]
    show_result(out, manifest, spent_text(backends), this_run=[*map(spent, backends)])


def _render_plan(chosen: int, plans: Sequence[str]) -> str:
    return "\n".join([f"examples: at most {chosen:,}", *(plans or ["no model is asked"])])


def _is_remote(model: str) -> bool:
    """A folder or `hf:` id is a model in this process; any other name is one of the server."""
    return not model.startswith("hf:") and not Path(model).is_dir()
