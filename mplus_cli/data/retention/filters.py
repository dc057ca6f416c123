"""Who can answer a question: with the context it must be possible, without it better not (paper section 4.1.2)."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from mplus_cli.console import Progress
from mplus_cli.data.chat import Answer, AnswerCache, Backend, ChatRequest, DryRun, Plan, Usage, ask_visibly
from mplus_cli.data.chat.requests import content_key
from mplus_cli.data.retention.examples import Example
from mplus_cli.errors import UsageError

NEW_TOKENS = 10
_SYSTEM = "Answer the question with the fewest words that answer it, and nothing else."
_BATCH = 8


class Answerer(Protocol):
    """A model that is asked.

    Attributes:
        identity: what decides the answers, for the manifest.
        requests: how many questions it was given so far, answered before or not.
        faults: why it gave no usable answer, counted.
    """

    identity: dict[str, Any]
    requests: int
    faults: Counter[str]

    def answers(self, examples: Sequence[Example], with_context: bool) -> list[str | None]:
        """What it says to each question: an empty text where it says nothing usable.

        None where a dry run would have to ask.
        """

    def plan(self, estimated: bool) -> Plan:
        """After a dry run: what asking would take."""


class ChatAnswerer:
    """A model behind an OpenAI-compatible server."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.identity = backend.settings.identity
        self.requests = 0
        self.faults: Counter[str] = Counter()

    def answers(self, examples: Sequence[Example], with_context: bool) -> list[str | None]:
        """See `Answerer`."""
        requests = [ChatRequest(_SYSTEM, prompt(example, with_context), 40, NEW_TOKENS) for example in examples]
        asked = ask_visibly(f"asking {self.backend.settings.model}", self.backend, requests, lambda _, text: text)
        self.requests += len(requests)
        self.faults.update(result.fault for result in asked if result.unusable and result.fault)
        return [None if result.answer is None else result.value or "" for result in asked]

    def plan(self, estimated: bool) -> Plan:
        """See `Answerer`; the backend must be a `DryRun`."""
        if not isinstance(self.backend, DryRun):
            raise TypeError("only a dry run has a plan")
        return self.backend.plan(self.requests, estimated)


class LocalAnswerer:
    """A Hugging Face causal language model in this process, greedy. Its answers are cached like those of a server.

    Args:
        dry_run: only count; the model is not loaded.
    """

    def __init__(self, name: str, cache: AnswerCache, device: str = "cpu", dry_run: bool = False) -> None:
        self.name, self.cache, self.device, self.dry_run = name, cache, device, dry_run
        self.requests = self.missing = 0
        self.faults: Counter[str] = Counter()
        self.identity = {"model": name, "files": _fingerprint(name)}
        self._key = f"local:{name}:{self.identity['files']}"
        self._loaded: tuple[Any, Any] | None = None

    def answers(self, examples: Sequence[Example], with_context: bool) -> list[str | None]:
        """See `Answerer`."""
        prompts = [prompt(example, with_context) for example in examples]
        bodies = [{"prompt": text, "max_new_tokens": NEW_TOKENS} for text in prompts]
        keys = [content_key(self._key, body) for body in bodies]
        missing = [index for index, key in enumerate(keys) if self.cache.get(key) is None]
        self.requests += len(keys)
        self.missing += len(missing)
        with Progress(f"asking {self.name}", len(missing), "answers") as progress:
            for start in range(0, 0 if self.dry_run else len(missing), _BATCH):
                part = missing[start : start + _BATCH]
                for index, text in zip(part, self._generate([prompts[i] for i in part]), strict=True):
                    answer = Answer(text, None, "stop", self.name, 0, 0)
                    self.cache.put(keys[index], self._key, bodies[index], answer)
                progress.update(start + len(part))
        found = (self.cache.get(key) for key in keys)
        return [None if answer is None else answer.content or "" for answer in found]

    def plan(self, estimated: bool) -> Plan:
        """See `Answerer`; a model of one's own costs no money."""
        return Plan(self.name, self.requests, self.requests - self.missing, Usage(self.missing), 0.0, estimated)

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
