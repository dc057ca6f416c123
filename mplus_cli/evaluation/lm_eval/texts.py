"""Long texts as a memory system reads them: the beginning is written, chunk by chunk, and the end is the prompt.

Whoever asks knows only the whole text: no border between documents and question. Needs nothing of
lm-evaluation-harness. An item's memory seed is made of its text, so an answer depends on text and seed alone, whatever
is asked beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from mplus_cli.core.loading import encode
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.long_input import KEPT_CHUNKS, long_input
from mplus_cli.evaluation.prompting import Generated, generate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mplus_cli.evaluation.systems.memory_system import MemorySystem

Options = Mapping[str, Sequence[Sequence[int]]]  # sample id -> token ids of the continuations to be weighed


@dataclass(frozen=True)
class Reading:
    """How much of a text is read, and of that, how much is not written.

    Attributes:
        chunk: tokens of a write.
        keep: tokens of the end of the text and the answer together that are read and not written; None for four chunks,
            which are M+'s 2,048 tokens.
        length: tokens of text and answer together, beyond which text is cut away; None for no end.
        cut: where.
    """

    tokenizer: PreTrainedTokenizerBase
    chunk: int
    keep: int | None = None
    length: int | None = None
    cut: Literal["left", "middle"] = "left"

    @property
    def kept(self) -> int:
        return KEPT_CHUNKS * self.chunk if self.keep is None else self.keep

    @property
    def start(self) -> str:
        """Stands before a text that nothing stands before: the first token of a text is predicted from it."""
        tokenizer = self.tokenizer
        return tokenizer.bos_token or tokenizer.eos_token or "\n"

    def item(self, text: str, answer: int) -> Item:
        """A text with one question at its end.

        Args:
            answer: tokens of the longest answer or continuation. At least one chunk of text is read with it.

        Raises:
            UsageError: the answer alone is longer than `length`.
        """
        keep = max(self.kept, answer + self.chunk)
        given = long_input(text, "", answer, self.tokenizer, length=self.length, keep=keep, cut=self.cut)
        documents = (Document(given.document),) if given.document else ()
        question = Question("q", "", (), len(documents), answer, recent=given.recent or self.start)
        return Item(text_id(text), documents, (question,))

    def pair(self, context: str, continuations: Sequence[str]) -> tuple[Item, list[list[int]]]:
        """A context that does not end with spaces (see `move_spaces`), and what may go on after it.

        Returns:
            The item, and the tokens of the continuations. Each is tokenized as one text with the end of the context
            that is read, which is split after as many tokens as that end has alone, as lm-evaluation-harness does it.
        """
        tokenizer = self.tokenizer
        alone = [encode(tokenizer, continuation) for continuation in continuations]
        item = self.item(context, max(map(len, alone)) + 1)  # one more: it may be split otherwise behind the context
        if not context:
            return item, alone
        recent = item.questions[0].recent
        count = len(encode(tokenizer, recent))
        behind = [encode(tokenizer, recent + continuation)[count:] for continuation in continuations]
        return item, [ids or other for ids, other in zip(behind, alone, strict=True)]

    def whole(self, text: str) -> tuple[Item, dict[str, list[list[int]]]]:
        """A text whose every token is to be predicted once, from as much before it as there is.

        It is parted into pieces of half of what is kept. A piece is predicted from the piece before it, which is the
        prompt and alone searches long-term memory, and from the memory of all that comes before that.

        Returns:
            The item, with a question for each piece, and the tokens of the pieces by sample id.
        """
        encoded = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        ids, size = encoded["input_ids"], max(1, self.kept // 2)
        starts = [encoded["offset_mapping"][first][0] for first in range(0, len(ids), size)]
        pieces = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
        before = [self.start, *pieces]
        questions = tuple(
            Question(f"q{number}", "", (), max(0, number - 1), size, recent=before[number])
            for number in range(len(pieces))
        )
        item = Item(text_id(text), tuple(Document(piece) for piece in pieces[:-2]), questions)
        return item, {
            item.sample_id(question): [ids[number * size : (number + 1) * size]]
            for number, question in enumerate(questions)
        }


def text_id(text: str) -> str:
    """The id of an item with this text; the seed of its memory is made of it."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def move_spaces(context: str, continuation: str) -> tuple[str, str]:
    """Spaces at the end of a context, put at the beginning of the continuation."""
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation


@torch.inference_mode()
def ask(
    system: MemorySystem, items: Sequence[Item], options: Options | None = None, until: Sequence[str] = ()
) -> dict[str, Generated]:
    """Read texts as the rows of one batch, each into a fresh memory, and answer what is asked.

    Args:
        options: where these are given, nothing but their likelihood is wanted.
        until: texts that end an answer.

    Returns:
        Sample id -> answer.

    Raises:
        UsageError: a prompt does not fit the positions that the model has.
    """
    walk = system.walk(items)
    found: dict[str, Generated] = {}
    for stands in walk.stands():
        asked = [(stand, question) for stand in stands for question in stand.questions]
        memory = system.view(walk.memory.rows([stand.row for stand, _ in asked]))
        names = [stand.item.sample_id(question) for stand, question in asked]
        prompts = [system.prompt(question, memory) for _, question in asked]
        if options is not None:
            prompts = [
                replace(prompt, max_new_tokens=1, options=options[name])
                for name, prompt in zip(names, prompts, strict=True)
            ]
        with system.reading():
            made = generate(
                system.model, system.tokenizer, prompts, system.ends, "none", first={"memory": memory}, until=until
            )
        found |= dict(zip(names, made, strict=True))
    return found
