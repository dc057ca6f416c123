"""Who can answer a question: with the context it must be possible, without it better not (paper section 4.1.2)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from mplus_cli.console import Progress
from mplus_cli.data.chat import Answer, AnswerCache, Backend, ChatRequest, ask_all
from mplus_cli.data.chat.requests import content_key
from mplus_cli.data.retention.examples import Example
from mplus_cli.errors import UsageError

NEW_TOKENS = 10
_SYSTEM = "Answer the question with the fewest words that answer it, and nothing else."
_BATCH = 8


class Answerer(Protocol):
    """A model that is asked."""

    name: str

    def answers(self, examples: Sequence[Example], with_context: bool) -> list[str]:
        """What it says to each question; an empty text where it says nothing usable."""


class ChatAnswerer:
    """A model behind an OpenAI-compatible server."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.name = f"{backend.settings.model} at {backend.settings.server}"

    def answers(self, examples: Sequence[Example], with_context: bool) -> list[str]:
        requests = [ChatRequest(_SYSTEM, prompt(example, with_context), 40) for example in examples]
        with Progress(f"asking {self.backend.settings.model}", len(requests)) as progress:

            def show(done: int, total: int) -> None:
                progress.total = max(total, 1)
                progress.update(done, f"{done:,}/{total:,} answers")

            asked = ask_all(self.backend, requests, lambda _, text: text, show)
        return [result.value or "" for result in asked]


class LocalAnswerer:
    """A Hugging Face causal language model in this process, greedy. Its answers are cached like those of a server."""

    def __init__(self, name: str, cache: AnswerCache, device: str = "cpu") -> None:
        self.name, self.cache, self.device = name, cache, device
        self._identity = f"local:{name}:{_fingerprint(name)}"
        self._loaded: tuple[Any, Any] | None = None

    def answers(self, examples: Sequence[Example], with_context: bool) -> list[str]:
        prompts = [prompt(example, with_context) for example in examples]
        bodies = [{"prompt": text, "max_new_tokens": NEW_TOKENS} for text in prompts]
        keys = [content_key(self._identity, body) for body in bodies]
        missing = [index for index, key in enumerate(keys) if self.cache.get(key) is None]
        with Progress(f"asking {self.name}", len(missing)) as progress:
            for start in range(0, len(missing), _BATCH):
                part = missing[start : start + _BATCH]
                for index, text in zip(part, self._generate([prompts[i] for i in part]), strict=True):
                    answer = Answer(text, None, "stop", self.name, 0, 0)
                    self.cache.put(keys[index], self._identity, bodies[index], answer)
                progress.update(start + len(part))
        found = (self.cache.get(key) for key in keys)
        return [answer.content or "" if answer else "" for answer in found]

    def _generate(self, prompts: list[str]) -> list[str]:
        import torch

        tokenizer, model = self._load()
        encoded = tokenizer(prompts, return_tensors="pt", padding=True).to(self.device)
        encoded.pop("token_type_ids", None)
        with torch.inference_mode():
            made = model.generate(
                **encoded, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        return tokenizer.batch_decode(made[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(self.name, padding_side="left")
                model: Any = AutoModelForCausalLM.from_pretrained(self.name, dtype="auto")
                model = model.to(self.device).eval()
            except (OSError, ValueError) as error:
                words = str(error).splitlines()[0]
                raise UsageError(f"{self.name}: no causal language model could be loaded ({words})") from error
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
            self._loaded = tokenizer, model
        return self._loaded


def prompt(example: Example, with_context: bool) -> str:
    """The wording of the paper's evaluation: `Question: .. Answer:`, after the context or without it."""
    question = f"Question: {example.question} Answer:"
    return f"Context: {example.context}\n{question}" if with_context else question


def is_right(answer: str, gold: str) -> bool:
    """The paper's measure: the gold answer occurs in what was said. Case, punctuation and spaces do not matter."""
    return f" {normalized(gold)} " in f" {normalized(answer)} "


def normalized(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _fingerprint(name: str) -> str:
    """Of the files of a local model: another model in the same folder is asked anew. A hub id stands for itself."""
    folder = Path(name)
    if not folder.is_dir():
        return ""
    facts = [f"{p.name}\t{p.stat().st_size}\t{p.stat().st_mtime_ns}" for p in sorted(folder.iterdir()) if p.is_file()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
