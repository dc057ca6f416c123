"""What bytes and words prove about token counts: nothing that is wanted may ever be skipped."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mplus_cli.data.building.lengths import LengthBounds, TokenCounter, bounds_of, fetch_tokenizer
from mplus_cli.errors import UsageError

NASTY = [
    "",
    " ",
    "\n\n\n",
    "a" * 500,
    " " * 300,
    "é" * 90,
    "e\u0301" * 90,
    "\u0344" * 60,
    "가" * 50,
    "\u1100\u1161" * 50,
]
NASTY += [
    "\U0001f468\u200d\U0001f469" * 20,
    "a\u2003b\u2000c" * 30,
    "\ufb2c" * 40,
    "word " * 200,
    "<|endoftext|>" * 9,
    "=" * 400,
]


@pytest.fixture(scope="module")
def counter(real_tokenizer):
    return TokenCounter(real_tokenizer)


def check(counter: TokenCounter, text: str) -> None:
    tokens = counter.counts([text])[0]
    lines = [json.dumps({"text": text}, ensure_ascii=ascii_only).encode() for ascii_only in (True, False)]
    for wanted in {0, 1, tokens - 1, tokens, tokens + 1, tokens + 5} - {-1}:
        if tokens >= wanted:
            assert not counter.bounds.surely_shorter(text, wanted)
            assert not any(counter.bounds.short_line(line, wanted) for line in lines)
        if tokens <= wanted:
            assert not counter.bounds.surely_longer(text, wanted)


@pytest.mark.parametrize("text", NASTY)
def test_no_nasty_text_is_judged_wrongly(counter, text):
    check(counter, text)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=300))
@example("\u0344\u0344")
def test_no_text_is_judged_wrongly(counter, text):
    check(counter, text)


def test_real_documents_are_judged_and_never_wrongly(counter, rows):
    texts = [row["text"] for row in rows]
    counts = counter.counts(texts)
    low, high = 128, 256
    short = [counter.bounds.surely_shorter(text, low) for text in texts]
    long = [counter.bounds.surely_longer(text, high) for text in texts]
    assert sum(short) > 20 and sum(long) > 20, "the test must skip something to show anything"
    for tokens, is_short, is_long in zip(counts, short, long, strict=True):
        assert not is_short or tokens < low
        assert not is_long or tokens > high


def test_counts_are_those_of_the_models_tokenizer(real_tokenizer, counter):
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(tokenizer_file=str(real_tokenizer))
    texts = ["Hello, world!", "  two  spaces\n", "<|endoftext|> é", ""]
    assert counter.counts(texts) == [len(reference(t, add_special_tokens=False)["input_ids"]) for t in texts]


def test_nothing_is_skipped_where_nothing_is_proven(real_tokenizer):
    spec = json.loads(real_tokenizer.read_text())
    assert bounds_of(spec).known
    for change in (
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"model": spec["model"] | {"type": "Unigram"}},
        {"model": spec["model"] | {"dropout": 0.1}},
        {"model": spec["model"] | {"vocab": {k: v for k, v in spec["model"]["vocab"].items() if k != "a"}}},
        {"added_tokens": [{"content": "<m>", "lstrip": True, "rstrip": False}]},
    ):
        assert not bounds_of(spec | change).known, change
    nothing = LengthBounds(False)
    assert not nothing.surely_shorter("", 4096) and not nothing.surely_longer("a " * 99999, 1)
    assert not nothing.short_line(b"{}", 4096)


def test_tokenizers_that_cannot_be_had(tmp_path):
    with pytest.raises(UsageError, match="no tokenizer.json at"):
        fetch_tokenizer(str(tmp_path), tmp_path / "copy.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="not a usable tokenizer"):
        fetch_tokenizer(str(tmp_path), tmp_path / "copy.json")
    with pytest.raises(UsageError, match="Download|could be had"):
        fetch_tokenizer("nobody/nothing", tmp_path / "copy.json")
