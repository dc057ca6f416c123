"""A question-and-answer session over one memory file: what `mplus ask` does, and what a program would use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mplus_cli.core.long_term_memory import Retrieved
from mplus_cli.core.memory import Memory
from mplus_cli.core.state.memory_state import MemoryState
from mplus_cli.data.sources import Source
from mplus_cli.inference.answering import Answer, AnswerSettings, answer
from mplus_cli.inference.device_map import write_stages
from mplus_cli.inference.explain import Passage, explain
from mplus_cli.inference.injection import Injection, InjectProgress, InjectReport
from mplus_cli.inference.models import load_for_state
from mplus_cli.inference.prompts import prompt_text


class Session:
    """A model, a memory file opened for reading, and the turns so far.

    Args:
        model: folder or hub id; None for the model the state names.
        long_term: False answers from short-term memory alone.
        quantize: None for what the state names; another is refused.
        device_map: layers over several devices, in the place of `device`.
        compiled: generate through one compiled graph (see `core.decoding`).
    """

    def __init__(
        self,
        path: Path,
        model: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        settings: AnswerSettings | None = None,
        long_term: bool = True,
        quantize: str | None = None,
        compiled: bool = False,
        device_map: str | None = None,
    ) -> None:
        self.path, self.settings, self.long_term = path, settings or AnswerSettings(), long_term
        self.settings.check()
        self.state = MemoryState.open(path)
        try:
            self.loaded = load_for_state(self.state, model, device, dtype, quantize, device_map)
            if compiled:
                self.loaded.model.compile_decoding()
            self.memory: Memory = self.state.load_memory(self.loaded.model)
        except BaseException:
            self.state.close()
            raise
        self.history: list[tuple[str, str]] = []
        self._retrieval: list[list[Retrieved]] = []
        self.unsaved = 0

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.state.close()

    def prompt(self, question: str) -> str:
        """The text the model will read for this question."""
        return prompt_text(question.strip(), self.loaded.tokenizer, self.history)

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> Answer:
        """Answer, and keep the turn for chat models."""
        memory = self.memory if self.long_term else self.memory.short_term_only()
        loaded = self.loaded
        result = answer(question.strip(), loaded.model, loaded.tokenizer, memory, self.settings, self.history, on_text)
        self.history.append((question.strip(), result.text))
        self._retrieval = memory.last_retrieval
        return result

    def explain(self, most: int = 5) -> list[Passage]:
        """The passages that the last answer's retrieved memory came from."""
        return explain(self._retrieval, self.memory, self.state, most)

    def inject(
        self, sources: Sequence[Source], on_progress: Callable[[InjectProgress], None] | None = None
    ) -> InjectReport:
        """Put texts into this session's memory; `save` writes them to the file."""
        if self.memory.journal is None:
            self.memory.keep_journal()
        loaded = self.loaded
        stages = write_stages(loaded.model, None)
        injection = Injection(
            loaded.model, loaded.tokenizer, self.memory, None, sources, None, False, on_progress, stages
        )
        report = injection.run()
        self.unsaved += report.chunks
        return report

    def save(self) -> int:
        """Write what was injected in this session to the memory file; returns the chunks saved.

        Raises:
            StateError: another process is writing the file, or has changed it since this session began.
        """
        saved = self.unsaved
        if saved:
            with MemoryState.open(self.path, writable=True) as state:
                state.commit(self.memory, state.job)
            self.state.close()
            self.state = MemoryState.open(self.path)
            self.unsaved = 0
        return saved
