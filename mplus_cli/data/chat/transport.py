"""The openai client with patience: what is worth sending again is, after the pause the server asked for."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import openai

from mplus_cli.data.chat.backend import ChatSettings
from mplus_cli.errors import MPlusError, UsageError

T = TypeVar("T")
_logger = logging.getLogger(__name__)
_RETRIED_STATUS = {408, 409, 425, 429}


class RejectedRequestError(Exception):
    """The server will not answer this one request, whoever asks how often (content policy, too long)."""


class Transport:
    """An `AsyncOpenAI` client whose own retries are off, and the loop that replaces them.

    A pause that the server asks for (Retry-After) holds back every request of this client, not the one alone.
    """

    def __init__(self, settings: ChatSettings) -> None:
        self.settings = settings
        self._key = settings.api_key()
        self.client = openai.AsyncOpenAI(
            api_key=self._key, base_url=settings.url, max_retries=0, timeout=settings.timeout
        )
        self.retried = 0
        self._not_before = 0.0

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.client.close()

    async def call(self, send: Callable[[], Awaitable[T]]) -> T:
        """Await `send()`, again and again as far as the settings allow.

        Raises:
            RejectedRequestError: the server refuses this request for what it says.
            UsageError: the key, the model or the request as a whole is refused.
            MPlusError: the server keeps failing.
        """
        for tries in range(self.settings.retries + 1):
            await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
            try:
                return await send()
            except openai.APIStatusError as error:
                self._raise_if_final(error)
                failure, asked_pause = f"{error.status_code} {self._words(error)}", retry_after(error)
            except openai.APITimeoutError:
                failure, asked_pause = f"no answer in {self.settings.timeout:g} s", None
            except openai.APIConnectionError as error:
                failure, asked_pause = f"connection failed ({error.__cause__ or error})", None
            except ValueError as error:  # 200 with something that is no answer: a proxy's page, half a body
                failure, asked_pause = str(error), None
            _logger.debug("try %d failed: %s", tries + 1, self.redact(failure))
            if tries < self.settings.retries:
                await self._pause(tries, asked_pause, failure)
        raise MPlusError(
            f"{self.settings.server} kept failing, {self.settings.retries + 1} times: {self.redact(failure)}",
            hint="all answers so far are kept; the same command continues",
        )

    def redact(self, text: str) -> str:
        """Servers like to quote the key they did not like."""
        return text.replace(self._key, "***") if len(self._key) > 6 else text

    async def _pause(self, tries: int, asked: float | None, failure: str) -> None:
        self.retried += 1
        if asked is not None and asked > self.settings.longest_retry_after:
            raise MPlusError(
                f"{self.settings.server} asks to wait {asked:,.0f} s: {self.redact(failure)}",
                hint="all answers so far are kept; the same command continues later",
            )
        if asked is not None:
            self._not_before = max(self._not_before, time.monotonic() + asked)
            return
        longest = min(self.settings.longest_backoff, self.settings.first_backoff * 2**tries)
        await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # not all at the same moment again

    def _raise_if_final(self, error: openai.APIStatusError) -> None:
        """Raise what another try would not change."""
        status, words, code = error.status_code, self._words(error), getattr(error, "code", None) or ""
        server, model = self.settings.server, self.settings.model
        if status in (401, 403):
            raise UsageError(f"{server} refuses the API key: {words}", hint="check OPENAI_API_KEY") from None
        if status == 404:
            hint = "--model and --base-url name a model and a server; the address mostly ends in /v1"
            raise UsageError(f"{server} does not know {model}: {words}", hint=hint) from None
        if code == "insufficient_quota":
            raise MPlusError(f"{server}: the quota is used up: {words}", hint="the same command continues") from None
        if status in _RETRIED_STATUS or status >= 500:
            return
        if "content_filter" in code or "content_policy" in code or code == "context_length_exceeded":
            raise RejectedRequestError(words) from None
        raise UsageError(f"{server} refuses the request ({status}): {words}") from None

    def _words(self, error: openai.APIStatusError) -> str:
        body = error.body
        words = body.get("message") if isinstance(body, dict) else None
        return self.redact(" ".join(str(words or error.message).split())[:300])


def retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds that the server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date."""
    headers = error.response.headers
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else None
