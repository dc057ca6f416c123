"""What the systems with a memory share: sizes and rules varied by options, one pass of writing, asking in batches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch

from mplus_cli.config import Range
from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.core.loading import encode
from mplus_cli.core.memory import Memory
from mplus_cli.core.value_codec import Values, value_codec
from mplus_cli.data.chunking import chunks
from mplus_cli.errors import CheckpointError, UsageError
from mplus_cli.evaluation.items import Answer, Document, Item, Question
from mplus_cli.evaluation.prompting import Generated, Prompt, generate
from mplus_cli.evaluation.system import System, SystemSettings, memory_seed
from mplus_cli.evaluation.systems.walk import Stand, Walk
from mplus_cli.evaluation.task import Task
from mplus_cli.inference.answering import end_tokens

if TYPE_CHECKING:
    from mplus_cli.inference.models import LoadedModel

Size = Annotated[int, Range(low=1)]
SCORES = {"published": "mean_sigmoid", "contrastive": "log_sum_exp"}
CHUNKED = 4_096  # documents whose chunks are kept: distractors come again in every item


@dataclass(frozen=True)
class MemoryOptions:
    """Settings of a system with a memory; None keeps what the model was trained with.

    Attributes:
        offload: keep short-term values on the host too (M+ table 1).
        chunk_size: text tokens per write.
        short_term_size: N; long_term_capacity: M; retrieval_budget: K_theta.
        retriever_score: the mean of sigmoids of the paper, or the log-sum-exp of contrastive training.
        memory_dtype: how memory values are kept, see `core.value_codec`.
        short_term: `zeros` reads zeros in the place of every short-term memory token; writing is as ever.
    """

    offload: bool = False
    chunk_size: Size | None = None
    short_term_size: Size | None = None
    long_term_capacity: Size | None = None
    retrieval_budget: Size | None = None
    retriever_score: Literal["published", "contrastive"] | None = None
    memory_dtype: Values = "model"
    short_term: Literal["kept", "zeros"] = "kept"


class MemorySystem(System):
    """A memory model that writes every document and is asked with the prompt alone.

    A subclass names the memory's sizes (`memory_config`) and how it is read (`view`, `reading`).
    """

    options_class: ClassVar[Any] = MemoryOptions

    def __init__(self, loaded: LoadedModel, settings: SystemSettings) -> None:
        super().__init__(loaded, settings)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.options = settings.options if isinstance(settings.options, MemoryOptions) else self.options_class()
        if self.needs_long_term and not self.model.config.has_long_term_memory:
            raise UsageError(
                f"{loaded.name} has no long-term memory and no retriever, which the system {self.name} needs.",
                "--system memoryllm runs every memory model",
            )
        self.config = self._checked_config()
        value_codec(self.options.memory_dtype, self.model.dtype)  # refuses one that would save nothing
        self.ends = end_tokens(self.model, self.tokenizer)
        self.chunk_ids = lru_cache(maxsize=CHUNKED)(self._chunk_ids)

    # -- what subclasses vary --

    def memory_config(self, config: MPlusConfig) -> MPlusConfig:
        """Sizes and rules of the memory, from those of the model."""
        names = ("short_term_size", "long_term_capacity", "retrieval_budget")
        changes = {name: value for name in names if (value := getattr(self.options, name)) is not None}
        return config.varied(**changes)

    def view(self, memory: Memory) -> Memory:
        """The memory as it is read; `memory` is a view of the rows that are asked."""
        if self.options.short_term == "zeros":
            memory.short_term = memory.short_term.zeroed()
        return memory

    def reading(self) -> AbstractContextManager[None]:
        """Entered around every question."""
        score = self.options.retriever_score
        return _scored(self.model.retrievers, SCORES[score]) if score else nullcontext()

    # -- remembering and asking --

    def new_memory(self, items: Sequence[Item], initial: str | None = None) -> Memory:
        """A fresh memory with one row per item, each with its own seed; `initial` as in the settings by default."""
        seeds = [memory_seed(self.settings.seed, item.id) for item in items]
        return self.model.new_memory(
            len(items),
            seeds,
            initial or self.settings.initial,
            config=self.config,
            offload=self.options.offload,
            values=self.options.memory_dtype,
        )

    def walk(self, items: Sequence[Item]) -> Walk:
        """The items on their way through their documents, in a fresh memory (`Walk.memory`)."""
        return Walk(self.model, self.new_memory(items), items, self.chunk_ids)

    def answer(self, task: Task, items: Sequence[Item]) -> Iterator[Answer]:
        """See `System.answer`."""
        walk, size = self.walk(items), max(self.settings.batch, len(items))
        for stands in walk.stands():
            # The first question of every row, then the second, ...: where all have equally many, one view serves all.
            asked = [(n, stand) for stand in stands for n in range(len(stand.questions))]
            asked.sort(key=lambda pair: (pair[0], pair[1].row))
            memory, viewed = None, None
            for first in range(0, len(asked), size):
                batch = asked[first : first + size]
                rows = [stand.row for _, stand in batch]
                if memory is None or rows != viewed:
                    memory, viewed = self.view(walk.memory.rows(rows)), rows
                questions = [stand.questions[n] for n, stand in batch]
                yield from self.ask(task, memory, [stand for _, stand in batch], questions)

    @torch.inference_mode()
    def ask(self, task: Task, memory: Memory, stands: Sequence[Stand], questions: Sequence[Question]) -> list[Answer]:
        """One question to every row of a view of memory; the memory itself stays as it is."""
        began = time.perf_counter()
        prompts = [self.prompt(question, memory) for question in questions]
        with self.reading():
            made = generate(self.model, self.tokenizer, prompts, self.ends, task.stop, first={"memory": memory})
        seconds = (time.perf_counter() - began) / len(stands)
        answers = [
            self._answer(stand, question, prompt, one, seconds, memory, row)
            for row, (stand, question, prompt, one) in enumerate(zip(stands, questions, prompts, made, strict=True))
        ]
        for row, (answer, stand, question) in enumerate(zip(answers, stands, questions, strict=True)):
            answer.extra |= task.look(memory, row, stand, question)
        return answers

    def prompt(self, question: Question, memory: Memory) -> Prompt:
        """A question as one row reads it.

        Raises:
            UsageError: it does not fit the positions that the model has, behind its memory.
        """
        ids = encode(self.tokenizer, question.recent + question.prompt)
        limit = self.config.text_config.max_position_embeddings
        held = 1 + max(memory.short_term.fill) + (self.config.retrieval_budget if memory.long_term else 0)
        if held + len(ids) + question.max_new_tokens > limit:
            raise UsageError(
                f"The prompt of question {question.id} has {len(ids)} tokens: behind a memory of {held} that is more "
                f"than the {limit} positions of {self.loaded.name}.",
                "Lower short_term_size or retrieval_budget, or put long text into documents.",
            )
        return Prompt(ids, question.max_new_tokens, [encode(self.tokenizer, option) for option in question.options])

    def _answer(
        self,
        stand: Stand,
        question: Question,
        prompt: Prompt,
        made: Generated,
        seconds: float,
        memory: Memory,
        row: int,
    ) -> Answer:
        extra: dict[str, Any] = {"writes": stand.writes}
        if memory.long_term:
            retrieved = [len(rows[row].created) for rows in memory.last_retrieval] or [0] * memory.num_layers
            extra |= {"long_term": len(memory.long_term[row]), "retrieved": retrieved}
        extra |= made.weighed()
        remember, stand.seconds = stand.seconds, 0.0  # counted once, for the first question at this point
        return Answer(
            stand.item.id,
            question.id,
            text=made.text,
            raw=made.raw,
            prompt=question.recent + question.prompt,
            prompt_tokens=len(prompt.ids),
            context_tokens=stand.tokens,
            answer_tokens=made.tokens,
            stop=made.stop,
            seconds={"remember": remember, "ask": seconds},
            extra=extra,
        )

    def describe(self) -> dict[str, Any]:
        """See `System.describe`."""
        config, score = self.config, self.options.retriever_score
        return {
            "chunk_size": self.options.chunk_size or config.chunk_size,
            "memory_tokens_per_write": config.memory_tokens_per_write,
            "short_term_size": config.short_term_size,
            "long_term_capacity": config.long_term_capacity,
            "retrieval_budget": config.retrieval_budget if config.has_long_term_memory else 0,
            "retriever_score": (SCORES[score] if score else config.retriever_score)
            if config.has_long_term_memory
            else None,
            "memory_dtype": self.options.memory_dtype,
            "short_term": self.options.short_term,
            "offload": self.options.offload,
        }

    def _chunk_ids(self, document: Document) -> list[list[int]]:
        size = self.options.chunk_size or self.config.chunk_size
        return [chunk.ids for chunk in chunks(document.text, self.tokenizer, size)]

    def _checked_config(self) -> MPlusConfig:
        try:
            config = self.memory_config(self.model.config)
        except CheckpointError as error:
            raise UsageError(f"system {self.name}: {error.message}", "Sizes have to fit together.") from error
        held = self.model.initial_memory
        carried = held["short_term.values"].shape[1] if held and self.settings.initial == "checkpoint" else 0
        if carried > config.short_term_size:
            raise UsageError(
                f"system {self.name}: short_term_size={config.short_term_size} is less than the {carried} memory "
                f"tokens that {self.loaded.name} carries."
            )
        return config


@contextmanager
def _scored(retrievers: Any, score: str) -> Iterator[None]:
    """Other scores from the same projections."""
    before = [retriever.score for retriever in retrievers]
    for retriever in retrievers:
        retriever.score = score
    try:
        yield
    finally:
        for retriever, old in zip(retrievers, before, strict=True):
            retriever.score = old
