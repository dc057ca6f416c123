"""One question to a chat model, its identity by content, and what came back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ChatRequest:
    """What is asked, whoever answers.

    Attributes:
        system: the instruction.
        user: the question.
        max_tokens: longest answer in tokens.
        typical_tokens: an answer of usual length in tokens, for estimates of the price; never sent.
        schema: JSON schema of the answer (structured outputs); None for plain text.
        schema_name: what the schema is called on the wire.
    """

    system: str
    user: str
    max_tokens: int
    typical_tokens: int
    schema: dict[str, Any] | None = None
    schema_name: str = "answer"

    def body(self, model: str, temperature: float | None, seed: int) -> dict[str, Any]:
        """The JSON body of `POST /chat/completions`. `seed` tells one attempt from another."""
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "system", "content": self.system}, {"role": "user", "content": self.user}],
            "max_completion_tokens": self.max_tokens,
            "seed": seed,
        }
        if temperature is not None:
            body["temperature"] = temperature
        if self.schema is not None:
            format = {"name": self.schema_name, "strict": True, "schema": self.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": format}
        return body

    def estimated_input_tokens(self) -> int:
        """About four characters of English make a token; three are counted, so that a limit on cost errs safely."""
        schema = len(json.dumps(self.schema)) if self.schema is not None else 0
        return (len(self.system) + len(self.user) + schema) // 3 + 16


@dataclass(frozen=True)
class Answer:
    """What a server said to one request: the text, or why there is none."""

    content: str | None
    refusal: str | None
    finish_reason: str
    model: str
    input_tokens: int
    output_tokens: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_completion(cls, completion: dict[str, Any]) -> Answer:
        """From the JSON of a chat completion.

        Raises:
            ValueError: it is not one.
        """
        try:
            choice = completion["choices"][0]
            message, usage = choice["message"], completion.get("usage") or {}
            content, refusal = message.get("content"), message.get("refusal")
            if not isinstance(content, str | None) or not isinstance(refusal, str | None):
                raise TypeError("the content of the message is no text")
            return cls(
                content=content,
                refusal=refusal,
                finish_reason=str(choice.get("finish_reason") or "stop"),
                model=str(completion.get("model") or ""),
                input_tokens=int(usage.get("prompt_tokens") or 0),
                output_tokens=int(usage.get("completion_tokens") or 0),
            )
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"not a chat completion: {str(completion)[:200]}") from error


def content_key(server: str, body: dict[str, Any]) -> str:
    """Identity of a request: the same words to the same model of the same server have the same answer."""
    canonical = json.dumps([server, body], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
