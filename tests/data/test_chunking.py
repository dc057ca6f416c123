"""Chunks: nothing lost, nothing doubled, places in order, no short tail."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mplus_cli.core.loading import encode
from mplus_cli.data import chunking
from mplus_cli.data.chunking import chunks, segments
from tests.fixtures import byte_tokenizer

TOKENIZER = byte_tokenizer()
TEXTS = st.text(alphabet=st.sampled_from("ab é語😀 .\n\t"), max_size=400)


@given(TEXTS, st.integers(1, 60))
@settings(deadline=None, max_examples=200)
def test_segments_join_up_and_keep_their_length(text, length):
    spans = list(segments(text, length))
    assert "".join(text[a:b] for a, b in spans) == text
    assert all(0 < b - a <= length for a, b in spans)
    assert [b for _, b in spans[:-1]] == [a for a, _ in spans[1:]]


def test_segments_end_where_a_line_starts():
    text = "first line\n\nsecond line\n  indented\nlast"
    assert [text[a:b] for a, b in segments(text, 16)] == ["first line\n\n", "second line\n ", " indented\nlast"]


@given(TEXTS, st.integers(4, 40), st.integers(5, 100))
@settings(deadline=None, max_examples=200)
def test_chunks_hold_every_token_once_and_every_character_in_order(text, chunk_size, segment):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking.segments, "__defaults__", (segment,))
        made = list(chunks(text, TOKENIZER, chunk_size))
    expected = [token for a, b in segments(text, segment) for token in encode(TOKENIZER, text[a:b])]
    assert [token for chunk in made for token in chunk.ids] == expected
    assert "".join(text[chunk.start : chunk.end] for chunk in made) == text
    assert all(len(chunk.ids) <= chunk_size for chunk in made)
    if len(made) > 1:
        assert min(len(chunk.ids) for chunk in made) >= max(1, chunk_size // 2)
        assert all(len(chunk.ids) == chunk_size for chunk in made[:-2])


def test_chunk_spans_are_the_characters_of_their_tokens():
    text = "".join(f"line {number} of the book\n" for number in range(200))
    for chunk in chunks(text, TOKENIZER, 50):
        assert TOKENIZER.decode(chunk.ids) == text[chunk.start : chunk.end]


def test_a_short_tail_is_joined_and_split_evenly():
    assert [len(chunk.ids) for chunk in chunks("a" * 210, TOKENIZER, 100)] == [100, 55, 55]
    assert [len(chunk.ids) for chunk in chunks("a" * 250, TOKENIZER, 100)] == [100, 100, 50]
    assert [len(chunk.ids) for chunk in chunks("a" * 7, TOKENIZER, 100)] == [7]
    assert list(chunks("", TOKENIZER, 100)) == []


def test_control_tokens_in_a_text_are_plain_characters():
    ids = [token for chunk in chunks("a <|end_of_text|> b", TOKENIZER, 100) for token in chunk.ids]
    assert TOKENIZER.eos_token_id not in ids
    assert TOKENIZER.decode(ids) == "a <|end_of_text|> b"


def test_only_one_segment_is_tokenized_at_a_time():
    longest = 0

    class Watching:
        def __call__(self, text, **options):
            nonlocal longest
            longest = max(longest, len(text))
            return TOKENIZER(text, **options)

    text = "a line of the book\n" * 10_000
    first = next(iter(chunks(text, Watching(), 512)))
    assert len(first.ids) == 512
    assert longest <= chunking.SEGMENT_CHARS
