"""Options of the commands that ask a chat model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mplus_cli.data.chat import AnswerCache, Backend, Budget, ChatSettings

CHAT_PANEL = "Chat model"


def _option(*names: str, **settings) -> typer.models.OptionInfo:
    return typer.Option(*names, rich_help_panel=CHAT_PANEL, **settings)


BaseUrlOption = Annotated[
    str | None,
    _option("--base-url", help="An OpenAI-compatible server. Default: $OPENAI_BASE_URL, else OpenAI."),
]
MaxCostOption = Annotated[float | None, _option("--max-cost", min=0, help="Stop before US dollars exceed this.")]
PricesOption = Annotated[
    Path | None, _option("--prices", help="Table of prices (JSON) to use instead of the one that comes along.")
]
BatchFlag = Annotated[bool, _option("--batch", help="Ask through the Batch API: half the price, within a day.")]
ConcurrencyOption = Annotated[int, _option("--concurrency", min=1, max=256, help="Requests under way at a time.")]
TemperatureOption = Annotated[
    float, _option("--temperature", max=2, help="-1 leaves it out, for models that refuse it.")
]
CacheOption = Annotated[
    Path | None, _option("--cache", help="Folder of all answers so far. Default: in the user's cache folder.")
]


def open_chat(
    settings: ChatSettings, cache: Path | None, prices: Path | None, max_cost: float | None, batch: bool
) -> tuple[AnswerCache, Budget, Callable[[], Backend]]:
    """The answers so far, the budget, and how to reach the model (which needs a key)."""
    import platformdirs

    from mplus_cli.data.chat import AnswerCache, Budget, load_price, open_backend

    answers = AnswerCache(cache or platformdirs.user_cache_path("mplus") / "answers")
    budget = Budget(load_price(settings.model, prices, batch), max_cost)
    return answers, budget, lambda: open_backend(settings, answers, budget, batch)
