"""The byte-level tokenizer: any text comes back exactly, and nothing is added to it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mplus_cli.data.chronicle import Chronicle, World, answer_text, question_prompt, sample_passage
from mplus_cli.data.tokenizer import BOS, EOS, PAD, chronicle_texts, train_tokenizer
from mplus_cli.errors import UsageError


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(chronicle_texts(range(4)), vocab_size=1024)


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_decodes_back_exactly(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n\n",
        "  two  spaces  ",
        " .",
        "a , b ! c ?",
        "tab\tand\r\nline",
        "don't I 'm",
        "naïve 雪 🙂 \u0000 \ufeff",
        "\u00a0x",
    ],
)
def test_awkward_texts_decode_back_exactly(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_byte_is_in_the_vocabulary(tokenizer) -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = tokenizer.get_vocab()
    assert all(letter in vocabulary for letter in ByteLevel.alphabet())
    every_byte = bytes(range(256)).decode("latin-1")
    assert tokenizer.decode(tokenizer(every_byte)["input_ids"]) == every_byte


def test_encoding_adds_no_special_token_and_no_space(tokenizer) -> None:
    ids = tokenizer("A quiet day.")["input_ids"]
    assert not set(ids) & {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert tokenizer.tokenize("x") == ["x"]
    assert tokenizer("A")["input_ids"] + tokenizer(" day")["input_ids"] == tokenizer("A day")["input_ids"]


def test_special_tokens_have_the_first_ids(tokenizer) -> None:
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (BOS, EOS, PAD)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert len(tokenizer) == 1024


def test_it_is_the_same_after_saving(tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = Chronicle.generate(1, chapters=2, split="test").text + " ,  naïve 雪 ."
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.decode(again(text)["input_ids"]) == text
    assert again.eos_token_id == tokenizer.eos_token_id


def test_training_is_deterministic() -> None:
    first, second = (train_tokenizer(chronicle_texts(range(2), chapters=5), vocab_size=400) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()


def test_unseen_names_cost_few_tokens(tokenizer) -> None:
    world = World(Random(1), split="test")
    firsts = {fact.subject.split()[0] for _ in range(100) for fact in sample_passage(world).facts}
    lengths = [len(tokenizer(" " + name)["input_ids"]) for name in firsts]
    assert sum(lengths) / len(lengths) < 3.2


def test_prompt_and_answer_join_at_a_token_boundary(tokenizer) -> None:
    """The ids of prompt + answer are those of the prompt, then those of the answer, which end in one newline token."""
    for question in Chronicle.generate(2, chapters=2, split="test").questions:
        prompt, answer = question_prompt(question.text), answer_text(question.answer)
        ids = tokenizer(answer)["input_ids"]
        assert tokenizer(prompt)["input_ids"] + ids == tokenizer(prompt + answer)["input_ids"]
        assert tokenizer.decode(ids[-1:]) == "\n"


def test_a_vocabulary_too_small_for_the_bytes_is_refused() -> None:
    with pytest.raises(UsageError):
        train_tokenizer(["text"], vocab_size=200)
