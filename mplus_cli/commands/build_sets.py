"""`mplus build-data mix` and `chronicle`: training sets put together, and invented worlds."""

from __future__ import annotations

from typing import Annotated

import typer

from mplus_cli.commands.build_documents import running
from mplus_cli.commands.build_options import (
    OptionalTokenizer,
    OutOption,
    ProcessesOption,
    SeedOption,
    ShardOption,
    show_result,
)
from mplus_cli.commands.options import JsonFlag, QuietFlag, VerboseFlag


def mix(
    out: OutOption,
    part: Annotated[
        list[str],
        typer.Option(
            "--part",
            metavar="BUILD[:BUCKET]=SHARE",
            help="A build, or one of its buckets, and its share of the documents. Repeatable.",
        ),
    ],
    documents: Annotated[
        int | None,
        typer.Option("--documents", min=1, help="Default: as many as the parts allow without repeating any."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Write only so many first documents of the mix: a trial.")
    ] = None,
    seed: SeedOption = 0,
    rows_per_shard: ShardOption = 1000,
    processes: ProcessesOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """A training set from other builds, by proportions."""
    from mplus_cli.data.building.mixing import build_mix
    from mplus_cli.data.building.parts import Mix, parse_parts

    wanted = Mix(parse_parts(part), documents, limit, seed, rows_per_shard)
    manifest = build_mix(out, wanted, running(processes, None, "local", None))
    show_result(out, manifest)


def chronicle(
    out: OutOption,
    train: Annotated[int, typer.Option("--train", min=0, help="Chronicles with names of the train space.")] = 100,
    test: Annotated[int, typer.Option("--test", min=0, help="Chronicles with names of the test space.")] = 10,
    characters: Annotated[int, typer.Option("--characters", min=1, help="Least length of each.")] = 50_000,
    move_rate: Annotated[
        float, typer.Option("--move-rate", min=0, max=1, help="People who move later; the later home is right.")
    ] = 0.2,
    two_passage_rate: Annotated[
        float, typer.Option("--two-passage-rate", min=0, max=1, help="Questions that need two facts.")
    ] = 0.2,
    filler: Annotated[float, typer.Option("--filler", min=0, help="Sentences around each fact.")] = 1.0,
    facts: Annotated[int, typer.Option("--facts", min=1, help="Facts about each person.")] = 3,
    plain: Annotated[
        bool, typer.Option("--plain", help="Short one-word names, two wordings and one question form of each fact.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only so many first chronicles of each split: a trial.")
    ] = None,
    tokenizer: OptionalTokenizer = None,
    seed: SeedOption = 0,
    processes: ProcessesOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Invented chronicles with questions: for the default model, and for tests of memory at any length."""
    from mplus_cli.data.building.worlds import Worlds, build_worlds

    wanted = Worlds(
        train=min(train, limit or train),
        test=min(test, limit or test),
        characters=characters,
        move_rate=move_rate,
        two_passage_rate=two_passage_rate,
        filler=filler,
        facts_per_person=facts,
        plain=plain,
        tokenizer=tokenizer,
        seed=seed,
    )
    manifest = build_worlds(out, wanted, running(processes, None, "local", None))
    show_result(out, manifest)
