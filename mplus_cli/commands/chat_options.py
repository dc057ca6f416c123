"""Options of the builders that ask a chat model, how they reach it, and what they say about the cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mplus_cli.errors import UsageError

if TYPE_CHECKING:
    from mplus_cli.data.chat import AnswerCache, Backend, ChatSettings, Plan

CHAT_PANEL = "Chat model"


def _option(*names: str, **settings) -> typer.models.OptionInfo:
    return typer.Option(*names, rich_help_panel=CHAT_PANEL, **settings)


BaseUrlOption = Annotated[
    str | None,
    _option("--base-url", help="An OpenAI-compatible server. Default: $OPENAI_BASE_URL, else OpenAI."),
]
DryRunFlag = Annotated[
    bool, _option("--dry-run", help="Say how many requests, tokens and dollars it would take, and stop.")
]
MaxCostOption = Annotated[float | None, _option("--max-cost", min=0, help="Stop before US dollars exceed this.")]
PricesOption = Annotated[
    Path | None, _option("--prices", help="Table of prices (JSON) to use instead of the one that comes along.")
]
BatchFlag = Annotated[bool, _option("--batch", help="Ask through the Batch API: half the price, within a day.")]
AttemptsOption = Annotated[int, _option("--attempts", min=1, help="For answers that cannot be used.")]
ConcurrencyOption = Annotated[int, _option("--concurrency", min=1, max=256, help="Requests under way at a time.")]
TemperatureOption = Annotated[
    float, _option("--temperature", max=2, help="-1 leaves it out, for models that refuse it.")
]
CacheOption = Annotated[
    Path | None, _option("--cache", help="Folder of all answers so far. Default: in the user's cache folder.")
]


def open_chat(
    cache: Path | None, prices: Path | None, max_cost: float | None, batch: bool, dry_run: bool
) -> tuple[AnswerCache, Callable[[ChatSettings], Backend]]:
    """The answers so far, and how to reach a model, which needs a key. All models share one limit on the cost."""
    import platformdirs

    from mplus_cli.data.chat import AnswerCache, Budget, DryRun, Purse, load_price, open_backend

    answers, purse = AnswerCache(cache or platformdirs.user_cache_path("mplus") / "answers"), Purse(max_cost)

    def connect(settings: ChatSettings) -> Backend:
        budget = Budget(load_price(settings.model, prices, batch), purse=purse)
        return DryRun(settings, answers, budget) if dry_run else open_backend(settings, answers, budget, batch)

    return answers, connect


def temperature_or_none(value: float) -> float | None:
    """-1 leaves the temperature out of the requests.

    Raises:
        UsageError: any other negative number.
    """
    if value < 0 and value != -1:
        raise UsageError(f"--temperature {value:g}: below 0", "-1 leaves it out of the requests")
    return None if value == -1 else value


def plan_text(plan: Plan) -> str:
    """A plan in three lines."""
    about = "about " if plan.estimated else ""
    cost = _dollars(plan.cost) if plan.cost is not None else f"no price known for {plan.model} (--prices FILE)"
    return "\n".join(
        [
            f"requests to {plan.model}: {about}{plan.requests:,}, of which {plan.cached:,} are answered already",
            f"tokens to pay for: {plan.usage.input_tokens:,} in, {plan.usage.output_tokens:,} out (estimated high)",
            f"price: {cost}",
        ]
    )


def _dollars(cost: float) -> str:
    return "under $0.01" if 0 < cost < 0.01 else f"${cost:,.2f}"


def spent(backend: Backend) -> dict[str, Any]:
    """What this run sent and paid, for `--json`."""
    numbers = {"cost": backend.budget.cost, "retried": backend.retried}
    return {"model": backend.settings.model, **asdict(backend.budget.spent), **numbers}


def spent_text(backends: Sequence[Backend]) -> str:
    """The same for people, a line for each model."""
    lines = []
    for backend in backends:
        used, cost = backend.budget.spent, backend.budget.cost
        lines.append(
            f"this run asked {backend.settings.model} {used.requests:,} times: {used.input_tokens:,} tokens in, "
            f"{used.output_tokens:,} out{'' if cost is None else f', {_dollars(cost)}'}; {backend.retried:,} sent again"
        )
    return "\n".join(lines)
