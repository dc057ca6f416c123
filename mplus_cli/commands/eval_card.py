"""`mplus eval card`: results and a model as cards in Hugging Face form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mplus_cli.commands.options import JsonFlag, QuietFlag, VerboseFlag
from mplus_cli.console import output


def card(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of results.")],
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Folder of the model: its card is written too.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the model. Default: as in the results.")] = None,
    license: Annotated[
        str | None, typer.Option("--license", help="The hub's identifier, for example mit or llama3.1.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="Hub id of the model that memory was added to.")
    ] = None,
    language: Annotated[list[str] | None, typer.Option("--language", help="Such as en; repeat for more.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a README.md that is there.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Write README.md for a folder of results, and for the model: tables, and a model-index with n and intervals."""
    from mplus_cli.evaluation.cards import About, check_free, check_model, eval_results, model_card, results_card, write
    from mplus_cli.evaluation.runs import find_pairs
    from mplus_cli.evaluation.scoring import score_all

    pairs = find_pairs([results])
    if not force:
        check_free([results] if model is None else [results, model])
    scored = score_all(pairs, output.warn)
    about = About(name, license, base_model, tuple(language or ()))
    cards = {results: results_card(scored, about)}
    if model is not None:
        check_model(model, scored)
        cards[model] = model_card(scored, about)
        for option, value in (("--license", license), ("--base-model", base_model)):
            if value is None:
                output.warn(f"the model card names no {option[2:].replace('-', ' ')}; {option} adds it")
    written = write(cards)
    entries = [vars(one) for one in eval_results(scored)]
    output.result("\n".join(map(str, written)), {"cards": [str(path) for path in written], "eval_results": entries})
    output.hint(f"{len(entries)} numbers in the model-index")
