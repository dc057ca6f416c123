"""BM25 over chunks of text, the best ones answered from by the base model (M+ section 4.2: 4,096 tokens, top four)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

from mplus_cli.config import Range
from mplus_cli.core.loading import encode
from mplus_cli.data.chunking import chunks
from mplus_cli.errors import MissingExtraError
from mplus_cli.evaluation.items import Item, Question
from mplus_cli.evaluation.prompting import fit
from mplus_cli.evaluation.systems.text_system import Text, TextSystem
from mplus_cli.evaluation.task import Task

if TYPE_CHECKING:
    from mplus_cli.evaluation.system import SystemSettings
    from mplus_cli.inference.models import LoadedModel

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class BM25Options:
    """Settings of `bm25`.

    Attributes:
        chunk_tokens: length of a chunk; less where `top` of them would not fit the base model.
        top: chunks that are read, in the order of the text.
    """

    chunk_tokens: Annotated[int, Range(low=8)] = 4_096
    top: Annotated[int, Range(low=1)] = 4


class BM25(TextSystem):
    """Retrieves chunks of text by the words of the question."""

    name = "bm25"
    options_class = BM25Options

    def __init__(self, loaded: LoadedModel, settings: SystemSettings) -> None:
        try:
            import rank_bm25
        except ImportError as error:
            raise MissingExtraError(
                "system bm25 needs the package rank-bm25", hint='pip install "mplus[eval]"'
            ) from error
        super().__init__(loaded, settings)
        self.index: Any = rank_bm25.BM25Okapi
        self.cut = lru_cache(maxsize=64)(self._cut)

    def text(self, task: Task, item: Item, question: Question) -> Text:
        """See `TextSystem.text`."""
        tokenizer, room = self.base.tokenizer, self.room(question)
        frame = len(encode(tokenizer, task.context_prompt("x", question)))
        size = min(self.options.chunk_tokens, max(1, (room - frame) // self.options.top - 4))  # 4 for what joins them
        parts = self.cut(item.context(question, task.joint), size)
        picked = self.pick([text for text, _ in parts], question.prompt)
        ids, text, fitted = fit(
            "\n\n".join(parts[i][0].strip() for i in picked),
            lambda context: task.context_prompt(context, question),
            room,
            tokenizer,
        )
        total = sum(tokens for _, tokens in parts)
        dropped = total - sum(parts[i][1] for i in picked) + fitted.dropped
        return Text(text, ids, total, dropped, "chunks" if dropped else "none")

    def pick(self, parts: list[str], query: str) -> list[int]:
        """The numbers of the best chunks, in the order of the text."""
        if len(parts) <= self.options.top:
            return list(range(len(parts)))
        scores = self.index([words(part) for part in parts]).get_scores(words(query))
        best = sorted(range(len(parts)), key=lambda i: (-scores[i], i))[: self.options.top]
        return sorted(best)

    def _cut(self, text: str, size: int) -> list[tuple[str, int]]:
        return [(text[c.start : c.end], len(c.ids)) for c in chunks(text, self.base.tokenizer, size)]

    def describe(self) -> dict[str, Any]:
        """See `System.describe`."""
        largest = min(self.options.chunk_tokens, self.limit // self.options.top)
        return super().describe() | {
            "chunk_tokens": largest,
            "top": self.options.top,
            "rank-bm25": version("rank-bm25"),
        }


def words(text: str) -> list[str]:
    """What BM25 counts: words in lower case."""
    return _WORD.findall(text.lower())
