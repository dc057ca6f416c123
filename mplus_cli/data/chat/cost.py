"""What questions cost: a table of prices in a file, tokens counted, and a limit that holds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mplus_cli.errors import MPlusError, UsageError

_DATED = re.compile(r"-\d{4}-\d{2}-\d{2}$")


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens."""

    input: float
    output: float

    def of(self, usage: Usage) -> float:
        return (usage.input_tokens * self.input + usage.output_tokens * self.output) / 1e6


@dataclass
class Usage:
    """Requests, and the tokens that went in and came out."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, input_tokens: int, output_tokens: int, requests: int = 1) -> None:
        self.requests += requests
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens


class CostLimitError(MPlusError):
    """The next request could exceed --max-cost."""


def load_price(model: str, table: Path | None = None, batch: bool = False) -> Price | None:
    """The price of a model in a table (default: the one in this package); None where the table does not list it.

    A dated snapshot (`gpt-4o-2024-08-06`) has the price of its model unless it is listed itself.

    Raises:
        UsageError: the table cannot be read or is no table of prices.
    """
    source = table if table is not None else resources.files(__package__) / "prices.json"
    try:
        models = json.loads(source.read_text(encoding="utf-8"))["models"]
        row = models.get(model) or models.get(_DATED.sub("", model))
        return _price(row, batch) if row is not None else None
    except OSError as error:
        raise UsageError(f"{table}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        example = '{"models": {"my-model": {"input": 0.5, "output": 1.5, "batch_discount": 0.5}}}'
        raise UsageError(
            f"{table}: not a table of prices ({error!r})", hint=f"it should read like {example}"
        ) from error


def _price(row: dict[str, Any], batch: bool) -> Price:
    factor = 1 - float(row.get("batch_discount", 0.0)) if batch else 1.0
    price = Price(float(row["input"]) * factor, float(row["output"]) * factor)
    if not (0 <= price.input < float("inf") and 0 <= price.output < float("inf")):
        raise ValueError("a price is negative or not finite")
    return price


@dataclass
class Purse:
    """US dollars: the limit, what is spent, and what requests under way could still cost."""

    limit: float | None = None
    spent: float = 0.0
    reserved: float = 0.0


class Budget:
    """Keeps the cost of asking one model within a purse, which may be shared with the budgets of other models."""

    def __init__(self, price: Price | None, limit: float | None = None, purse: Purse | None = None) -> None:
        self.price, self.purse = price, purse or Purse(limit)
        if self.purse.limit is not None and price is None:
            raise UsageError(
                "--max-cost needs a price for this model", hint="give a table of prices with --prices FILE"
            )
        self.spent = Usage()

    @property
    def cost(self) -> float | None:
        """US dollars spent by this process; None without a price."""
        return self.price.of(self.spent) if self.price else None

    def reserve(self, input_tokens: int, max_output_tokens: int) -> float:
        """Set aside the most that a request can cost.

        Raises:
            CostLimitError: the limit could be exceeded.
        """
        if self.price is None:
            return 0.0
        most, purse = self.price.of(Usage(1, input_tokens, max_output_tokens)), self.purse
        if purse.limit is not None and purse.spent + purse.reserved + most > purse.limit:
            raise CostLimitError(
                f"stopped before --max-cost ${purse.limit:.2f} could be exceeded: ${purse.spent:.2f} spent",
                hint="all answers so far are kept; the same command with a larger --max-cost continues",
            )
        purse.reserved += most
        return most

    def settle(self, reserved: float, input_tokens: int = 0, output_tokens: int = 0, requests: int = 0) -> None:
        """Give back a reservation and count what was really used (nothing, for a request that failed)."""
        self.purse.reserved = max(0.0, self.purse.reserved - reserved)
        self.spent.add(input_tokens, output_tokens, requests)
        if self.price is not None:
            self.purse.spent += self.price.of(Usage(requests, input_tokens, output_tokens))
