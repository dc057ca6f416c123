"""What asking would take, without asking: requests, tokens, price."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mplus_cli.data.chat.backend import ChatSettings, Job
from mplus_cli.data.chat.cache import AnswerCache
from mplus_cli.data.chat.cost import Budget, Usage


@dataclass(frozen=True)
class Plan:
    """What a build would ask of a model.

    Attributes:
        model: its name.
        requests: in all.
        cached: of these, answered already: they cost nothing.
        usage: requests still to be sent and the tokens to pay for, estimated high.
        cost: in US dollars; None without a price.
        estimated: some requests follow from answers that are not there yet; their number is a guess.
    """

    model: str
    requests: int
    cached: int
    usage: Usage
    cost: float | None
    estimated: bool


class DryRun:
    """A backend that sends nothing and counts what it would send; answers that are in the cache are there as ever."""

    def __init__(self, settings: ChatSettings, cache: AnswerCache, budget: Budget) -> None:
        self.settings, self.cache, self.budget = settings, cache, budget
        self.retried = 0
        self.usage = Usage()

    def fetch(self, jobs: Sequence[Job], on_done: Callable[[int], None]) -> None:
        """See `Backend.fetch`; leaves the answers out."""
        for job in jobs:
            self.usage.add(job.input_tokens, job.typical_output_tokens)

    def plan(self, requests: int, estimated: bool) -> Plan:
        """The plan, for so many requests in all."""
        price = self.budget.price
        cost = price.of(self.usage) if price else None
        return Plan(self.settings.model, requests, requests - self.usage.requests, self.usage, cost, estimated)
