"""Trains the tokenizer of the default model: byte-level BPE, so that any text can be encoded and decodes back exactly.

tokenizer = train_tokenizer(chronicle_texts(seeds=range(40)))
tokenizer.save_pretrained(folder)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from mplus_cli.data.chronicle import Chronicle, ChronicleConfig, Namer, answer_text, question_prompt
from mplus_cli.data.chronicle.kinds import KINDS
from mplus_cli.data.chronicle.names import pick
from mplus_cli.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
DEFAULT_VOCABULARY = 1024
_SMALLEST_VOCABULARY = 256 + 3


def train_tokenizer(texts: Iterable[str], vocab_size: int = DEFAULT_VOCABULARY) -> PreTrainedTokenizerFast:
    """Learns byte-level BPE merges from `texts`.

    All 256 bytes are in the vocabulary, nothing is normalised, no space is put in front, and encoding adds no special
    tokens.
    Special tokens: begin and end of text and padding, with ids 0, 1 and 2.

    Raises:
        UsageError: `vocab_size` cannot hold the bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < _SMALLEST_VOCABULARY:
        raise UsageError(f"A vocabulary of {vocab_size} is too small.", hint=f"Use at least {_SMALLEST_VOCABULARY}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def chronicle_texts(seeds: Iterable[int], chapters: int = 20, config: ChronicleConfig | None = None) -> Iterator[str]:
    """What the default tokenizer is trained on: chronicles in the train name space, each with questions and answers.

    Every closed value and some names of towns and pets are repeated beside each chronicle: answers deserve few tokens,
    and in running text they are rarer than the words of the fillers.
    """
    config = replace(config or ChronicleConfig(), move_rate=0.1, two_passage_rate=0.2)
    closed = [value for kind in KINDS.values() for value in kind.values or ()]
    for seed in seeds:
        chronicle = Chronicle.generate(seed, config, chapters=chapters)
        rng = Random(seed)
        namer = Namer(rng, "train", config.syllables)
        yield chronicle.text
        for _ in range(len(chronicle.facts) // 4):
            question = pick(rng, chronicle.questions)
            yield question_prompt(question.text) + answer_text(question.answer)
        yield " " + " ".join(closed * (chapters // 5))
        for role in ("town", "pet"):
            yield " " + " ".join(namer.name(role) for _ in range(chapters * 20))
