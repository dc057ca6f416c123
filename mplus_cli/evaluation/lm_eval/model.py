"""The model `mplus` of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from mplus_cli.errors import UsageError
from mplus_cli.evaluation.items import Item
from mplus_cli.evaluation.lm_eval.texts import Reading, ask, move_spaces
from mplus_cli.evaluation.preparing import model_facts
from mplus_cli.evaluation.prompting import Generated
from mplus_cli.evaluation.registry import make_options
from mplus_cli.evaluation.runner import default_batch
from mplus_cli.evaluation.system import SystemSettings, find_system
from mplus_cli.evaluation.systems.memory_system import MemorySystem
from mplus_cli.inference.models import load_model
from mplus_cli.inference.prompts import has_chat_template

T = TypeVar("T")
HARNESS_DEVICE = "cuda:0"  # what it says where nobody named a device
MAX_NEW_TOKENS = 256  # where a task names no length, as elsewhere in lm-evaluation-harness


class MPlusLM(LM):
    """A memory system behind lm-evaluation-harness's three questions.

    Every request starts from a fresh memory. The text is written into it but for its end, which is read as the prompt
    (see `texts.Reading`); requests about the same text share one memory, asking does not disturb it.

    Args:
        pretrained: folder or hub id of the model; None for the bundled one.
        system: `mplus`, `memoryllm` or another system with a memory.
        batch_size: texts at a time; `auto` for many with small models, else one. No answer depends on it.
        max_batch_size: the most that `auto` may choose.
        device, dtype, quantize: as in `mplus eval`.
        max_length, keep, cut: see `texts.Reading`; by default nothing is cut away.
        seed: of what memories drop, together with the text.
        options: settings of the system, such as `retrieval_budget=96`.

    Raises:
        UsageError: there is no such system, or it has no memory; unknown settings.
        CheckpointError: there is no such model.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        system: str = "mplus",
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        quantize: str | None = None,
        max_length: int | None = None,
        keep: int | None = None,
        cut: str = "left",
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        cls, spec = find_system(system)
        if not issubclass(cls, MemorySystem):
            raise UsageError(f"{system} has no memory", "lm_eval's own `--model hf` evaluates plain models")
        if cut not in ("left", "middle"):
            raise UsageError(f"cut={cut}: a text is cut at the left or in the middle")
        settings = make_options(cls.options_class, [f"{key}={value}" for key, value in options.items()], spec.name)
        if device == HARNESS_DEVICE and not torch.cuda.is_available():
            device = None
        self.loaded = load_model(pretrained, device, dtype, quantize)
        self.batch = _batch_size(batch_size, min(default_batch(self.loaded), max_batch_size or 1 << 30))
        self.seed = seed
        self.system = cls(self.loaded, SystemSettings(options=settings, seed=seed, batch=self.batch))
        self.tokenizer = self.loaded.tokenizer
        chunk = self.system.options.chunk_size or self.loaded.model.config.chunk_size
        self.reading = Reading(self.tokenizer, chunk, keep, max_length, "middle" if cut == "middle" else "left")
        self._device = self.loaded.placement.device

    # -- the three questions --

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The greedy answer to each (text, {until, max_gen_toks ...}), without what ended it."""
        wanted = [_Wanted.of(*request.args) for request in requests]
        asked = {one: request.args for one, request in zip(wanted, requests, strict=True)}
        found: dict[_Wanted, str] = {}
        for until in dict.fromkeys(one.until for one in asked):
            group = {one: one.text for one in asked if one.until == until}
            for batch in self._batches(group, "generating", disable_tqdm):
                items = [self.reading.item(one.text, one.max_new_tokens) for one in batch]
                made = ask(self.system, items, until=until)
                for one, item in zip(batch, items, strict=True):
                    found[one] = _before(_only(made, item).raw, until)
                    self.cache_hook.add_partial("generate_until", asked[one], found[one])
        return [found[one] for one in wanted]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each (context, continuation), and whether it is the greedy answer."""
        pairs = [move_spaces(*request.args) for request in requests]
        asked = {pair: request.args for pair, request in zip(pairs, requests, strict=True)}
        texts: dict[str, list[str]] = {}
        for context, continuation in asked:
            texts.setdefault(context, []).append(continuation)
        found: dict[tuple[str, str], tuple[float, bool]] = {}
        for batch in self._batches({context: context for context in texts}, "weighing", disable_tqdm):
            read = [self.reading.pair(context, texts[context]) for context in batch]
            made = ask(self.system, [item for item, _ in read], {_name(item): options for item, options in read})
            for context, (item, _) in zip(batch, read, strict=True):
                for continuation, option in zip(texts[context], _only(made, item).options, strict=True):
                    pair = context, continuation
                    found[pair] = option.logprob, option.likeliest == option.tokens
                    self.cache_hook.add_partial("loglikelihood", asked[pair], found[pair])
        return [found[pair] for pair in pairs]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of every token of each (text,), see `Reading.whole`."""
        texts = [request.args[0] for request in requests]
        found = {"": 0.0}
        for batch in self._batches({text: text for text in texts if text}, "weighing texts", disable_tqdm):
            read = {text: self.reading.whole(text) for text in batch}
            options = {name: ids for _, pieces in read.values() for name, ids in pieces.items()}
            made = ask(self.system, [item for item, _ in read.values()], options)
            for text, (_, pieces) in read.items():
                found[text] = sum(made[name].options[0].logprob for name in pieces)
                self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[text])
        return [found[text] for text in texts]

    # -- chat templates and what is kept with results --

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in caches of requests."""
        return self.loaded.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template as text, for results; None where none is asked for."""
        if chat_template is False or chat_template is None:
            return None
        if not has_chat_template(self.tokenizer):
            raise UsageError(f"{self.loaded.name} has no chat template", "leave out --apply_chat_template")
        return str(self.tokenizer.get_chat_template(chat_template if isinstance(chat_template, str) else None))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Turns as one text, without BOS: memory models have their own in every layer."""
        text = str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )
        return text.removeprefix(self.tokenizer.bos_token) if self.tokenizer.bos_token else text

    def get_model_info(self) -> dict[str, Any]:
        """Model, memory and how texts are read, as plain JSON for the results."""
        facts = {key: value for key, value in model_facts(self.loaded).items() if key != "config"}
        reading = {"keep": self.reading.kept, "max_length": self.reading.length, "cut": self.reading.cut}
        return {
            "mplus": {
                **facts,
                "system": self.system.name,
                "system_sizes": self.system.describe(),
                **reading,
                "seed": self.seed,
                "batch": self.batch,
            }
        }

    def _batches(self, texts: Mapping[T, str], label: str, silent: bool) -> Iterator[list[T]]:
        """What is asked with these texts, the longest first: rows are alike, and what is too large shows at once."""
        ordered = sorted(texts, key=lambda one: -len(texts[one]))
        with tqdm(total=len(ordered), desc=f"mplus, {label}", disable=silent, unit="text") as progress:
            for first in range(0, len(ordered), self.batch):
                batch = ordered[first : first + self.batch]
                yield batch
                progress.update(len(batch))


class _Wanted(NamedTuple):
    """What a `generate_until` request asks for; equal ones have equal answers."""

    text: str
    until: tuple[str, ...]
    max_new_tokens: int

    @classmethod
    def of(cls, text: str, settings: Mapping[str, Any]) -> _Wanted:
        """From a request's arguments.

        Raises:
            UsageError: something else than the greedy answer is asked for.
        """
        given: Mapping[str, Any] = normalize_gen_kwargs(dict(settings), MAX_NEW_TOKENS)
        if given.get("do_sample") or (given.get("num_beams") or 1) > 1:
            raise UsageError(
                f"a task asks for answers by sampling or beam search ({dict(settings)}); mplus answers greedily here",
                "--gen_kwargs do_sample=False,temperature=0,num_beams=1",
            )
        return cls(text, tuple(dict.fromkeys(stop for stop in given["until"] if stop)), given["max_gen_toks"])


def _before(text: str, until: Sequence[str]) -> str:
    """What stands before the first of these texts."""
    return text[: min((place for stop in until if (place := text.find(stop)) >= 0), default=len(text))]


def _name(item: Item) -> str:
    """The sample id of an item with one question."""
    return item.sample_id(item.questions[0])


def _only(made: Mapping[str, Generated], item: Item) -> Generated:
    return made[_name(item)]


def _batch_size(given: int | str, default: int) -> int:
    """A number of texts from what lm-evaluation-harness was given."""
    text = str(given)
    if text.partition(":")[0] == "auto":
        return default
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch_size {given}: not a number of texts", "a number, or auto")
    return int(text)
