"""Books as sentences and windows of them."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mplus_cli.core.loading import encode
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.haystack import (
    Book,
    Haystack,
    Sentence,
    find_book,
    insert,
    join,
    passes,
    sentence_ends,
    tokens_after,
)
from tests.fixtures import book, byte_tokenizer

TEXT = book(400)
HAYSTACK = Haystack(Book("test", TEXT), byte_tokenizer())


def sentences_of(text: str) -> list[str]:
    ends = sentence_ends(text)
    return [text[a:b].strip() for a, b in pairwise([0, *ends])]


def test_sentences_end_at_stops_headings_and_paragraphs_but_not_after_titles():
    text = (
        'Chapter 1. Home\n\nMr. Holmes sat. "Who is it?" he said. J. R. Smith came!\n\nA heading\n\nI am. So do I. Yes.'
    )
    assert sentences_of(text) == [
        "Chapter 1.",
        "Home",
        "Mr. Holmes sat.",
        '"Who is it?" he said.',
        "J. R. Smith came!",
        "A heading",
        "I am.",
        "So do I.",
        "Yes.",
    ]


@given(st.text(alphabet=".!?\"' \nAbc1\u201d", max_size=200))
def test_sentences_join_up_to_the_text(text):
    ends = sentence_ends(text)
    assert ends == sorted(set(ends)) and ends[-1] == len(text)


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(1, 12_000), seed=st.integers(0, 10**6))
def test_a_window_has_the_tokens_asked_for_and_is_a_stretch_of_the_book(tokens, seed):
    window = HAYSTACK.window(Random(seed), tokens)
    assert sum(sentence.tokens for sentence in window) == tokens
    text = "".join(sentence.text for sentence in window)
    assert text in TEXT and len(encode(byte_tokenizer(), text)) == tokens
    assert passes(window) == 1


def test_windows_begin_in_many_places_and_the_seed_decides():
    first = [HAYSTACK.window(Random(seed), 1_000)[0].number for seed in range(40)]
    assert len(set(first)) > 25 and max(first) > 0.6 * len(HAYSTACK.ends)
    assert HAYSTACK.window(Random(5), 1_000) == HAYSTACK.window(Random(5), 1_000)


def test_a_book_shorter_than_the_window_begins_again():
    short = Haystack(Book("short", "One two. Three four. Five six."), byte_tokenizer())
    window = short.window(Random(0), 100)
    assert sum(sentence.tokens for sentence in window) == 100
    assert passes(window) == 4
    assert short.window(Random(0), 30)[0].number == 0 and passes(short.window(Random(0), 30)) == 1


def test_short_sentences_are_left_out_where_asked():
    text = Haystack(Book("b", "Yes. A long sentence stands here. No. Another long one follows."), byte_tokenizer(), 10)
    assert "Yes" not in join(text.window(Random(0), 40))
    with pytest.raises(UsageError, match="no sentence of 10 tokens"):
        Haystack(Book("b", "Yes. No."), byte_tokenizer(), 10).window(Random(0), 5)


@given(depth=st.floats(0, 1), seed=st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_a_sentence_is_inserted_at_its_depth(depth, seed):
    window = HAYSTACK.window(Random(seed), 2_000)
    needle = Sentence(" The needle.", 12)
    text = insert(window, [(depth, needle)])
    assert abs(tokens_after(text, needle) - 2_000 * (1 - depth)) <= max(sentence.tokens for sentence in window) / 2
    assert [sentence for sentence in text if sentence is not needle] == window
    assert join(text).count("The needle.") == 1


def test_sentences_at_one_place_keep_their_order_and_the_ends_are_the_ends():
    window = HAYSTACK.window(Random(1), 500)
    first, second, last = (Sentence(f" N{i}.", 4) for i in range(3))
    text = insert(window, [(0, first), (0, second), (1, last)])
    assert text[:2] == [first, second] and text[-1] is last
    assert join(text).startswith("N0. N1.") and join(text).endswith(" N2.")


def test_the_bundled_book_is_continued_by_the_generator():
    held = find_book(None, None, 1_000)
    assert held.name == "assets/chronicle.txt" and "Chronicle" in held.text[:40]
    longer = find_book(None, None, 15_000)
    assert longer.text.startswith(held.text) and len(longer.text) >= 15_000 * 4
    assert "continued" in longer.name


def test_books_are_found_by_name_and_the_longest_is_the_default(tmp_path: Path):
    books = tmp_path / "books"
    books.mkdir()
    (books / "short.txt").write_text("Short book. " * 3)
    (books / "long.txt.gz").write_bytes(gzip.compress(TEXT.encode(), 0))
    assert find_book(tmp_path, None, 10).text == TEXT
    assert find_book(tmp_path, "short.txt", 10).name == "short.txt"
    assert find_book(None, str(books / "short.txt"), 10).text.startswith("Short")
    assert find_book(books / "short.txt", None, 10).name == "short.txt"
    with pytest.raises(UsageError, match="missing.txt"):
        find_book(tmp_path, "missing.txt", 10)
    (books / "binary.txt").write_bytes(bytes(range(32)) * 20)
    with pytest.raises(UsageError, match="binary"):
        find_book(tmp_path, "binary.txt", 10)
