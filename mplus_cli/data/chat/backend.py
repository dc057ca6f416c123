"""Where answers come from: settings of a server, and the two ways to ask it, request by request or as a batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from mplus_cli.data.chat.cache import AnswerCache
from mplus_cli.data.chat.cost import Budget
from mplus_cli.data.chat.requests import ChatRequest, content_key
from mplus_cli.errors import MissingExtraError, UsageError

OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True)
class ChatSettings:
    """Which model of which server, and how patiently.

    Attributes:
        model: name of the model on the server.
        base_url: of an OpenAI-compatible server; None takes $OPENAI_BASE_URL, else OpenAI's own.
        temperature: None leaves it out of the request (some reasoning models refuse it).
        concurrency: requests under way at a time.
        attempts: times a request is asked whose answers are malformed, empty or refused.
        retries: times one attempt is sent again after 429, 5xx, timeouts and broken connections.
        first_backoff: seconds before the first of these retries; doubled each time up to `longest_backoff`.
        longest_retry_after: a server that wants a longer pause (seconds) stops the run instead.
        timeout: seconds for one request.
        batch_poll: seconds between looks at a batch.
    """

    model: str = "gpt-4o"
    base_url: str | None = None
    temperature: float | None = 0.0
    concurrency: int = 8
    attempts: int = 3
    retries: int = 8
    first_backoff: float = 0.5
    longest_backoff: float = 60.0
    longest_retry_after: float = 900.0
    timeout: float = 120.0
    batch_poll: float = 30.0

    @property
    def url(self) -> str:
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL

    @property
    def server(self) -> str:
        """The address without user name, password and query: what may be stored and shown."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--base-url {self.url}: not an address", hint="as in http://localhost:8000/v1")
        host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
        return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the answers: for a manifest."""
        asked = {"model": self.model, "server": self.server}
        return asked | {"temperature": self.temperature, "attempts": self.attempts}

    def api_key(self) -> str:
        """The key, from $OPENAI_API_KEY alone. Servers of one's own mostly need none.

        Raises:
            UsageError: there is none and the server is OpenAI's.
        """
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not key and self.server == OPENAI_URL:
            raise UsageError(
                "no API key: the environment variable OPENAI_API_KEY is not set",
                hint="export OPENAI_API_KEY=..., or --base-url http://localhost:8000/v1 for a server of your own",
            )
        return key or "none"


@dataclass(frozen=True)
class Job:
    """A request as it goes over the wire, under its key."""

    key: str
    body: dict[str, Any]
    input_tokens: int
    max_output_tokens: int
    typical_output_tokens: int = 0


class Backend(Protocol):
    """Brings answers into the cache."""

    settings: ChatSettings
    cache: AnswerCache
    budget: Budget
    retried: int

    def fetch(self, jobs: Sequence[Job], on_done: Callable[[int], None]) -> None:
        """Ask; when this returns the answer of every job is in the cache. `on_done` is told how many are there.

        Only `DryRun` leaves the answers out.
        """


def make_job(settings: ChatSettings, request: ChatRequest, attempt: int) -> Job:
    body = request.body(settings.model, settings.temperature, seed=attempt)
    key = content_key(settings.server, body)
    return Job(key, body, request.estimated_input_tokens(), request.max_tokens, request.typical_tokens)


def open_backend(settings: ChatSettings, cache: AnswerCache, budget: Budget, batch: bool = False) -> Backend:
    """A backend that asks live, or through the Batch API.

    Raises:
        UsageError: no API key.
        MissingExtraError: the openai package is not installed.
    """
    settings.api_key()
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("asking a chat model needs the openai package", 'pip install "mplus[data]"') from error
    from mplus_cli.data.chat.batch import BatchBackend
    from mplus_cli.data.chat.live import LiveBackend

    return BatchBackend(settings, cache, budget) if batch else LiveBackend(settings, cache, budget)
