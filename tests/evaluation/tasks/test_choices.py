"""Multiple choice: the letter an answer gives, the likeliest option, chance."""

from __future__ import annotations

import pytest

from mplus_cli.evaluation.tasks import choices


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("B", "B"),
        (" F.", "F"),
        ("(c)", "C"),
        ("d", "D"),
        ("B. The miller leaves", "B"),
        ("A: he leaves", "A"),
        ("the correct answer is E", "E"),
        ("Option D", "D"),
        ("A man leaves", None),
        ("a man leaves", None),
        ("G", None),
        ("I think B", None),
        ("Because", None),
        ("", None),
        ("B's reason", None),
        (" b", "B"),
        ('"A"', "A"),
        ("Passage B comes first", "B"),
        ("Passage A comes first", "A"),
        ("The passage A", "A"),
        ("option a", "A"),
        ("Answer: a man", None),
        ("Because B", None),
        ("apple", None),
    ],
)
def test_the_letter_of_an_answer(text, found):
    assert choices.letter(text, 6) == found


def test_right_letters_and_likeliest_options():
    sample = {"text": "B", "metadata": {"choices": 3}, "extra": {"option_logprobs": [-2.0, -1.0, -1.0]}, "options": []}
    assert choices.accuracy(sample, ("B",)) == 1.0 and choices.accuracy(sample, ("C",)) == 0.0
    assert choices.by_likelihood(sample, ("B",)) == choices.by_likelihood(sample, ("C",)) == 0.5
    assert choices.by_likelihood(sample, ("A",)) == 0.0 and choices.chance(sample, ("A",)) == pytest.approx(1 / 3)
    assert choices.answered(sample, ("A",)) == 1.0 and choices.answered(sample | {"text": "x"}, ("A",)) == 0.0
    assert choices.by_likelihood(sample | {"extra": {}}, ("A",)) is None


def test_sentences_are_compared_by_their_likelihood_per_character():
    metadata = {"choices": 2, "letters": False}
    sample = {
        "text": "B",
        "metadata": metadata,
        "extra": {"option_logprobs": [-10.0, -12.0]},
        "options": ["x" * 5, "y" * 20],
    }
    assert choices.by_likelihood(sample, ("B",)) == 1.0 and choices.by_likelihood(sample, ("A",)) == 0.0
    assert choices.accuracy(sample, ("B",)) is None and choices.answered(sample, ("B",)) is None


def test_two_equally_likely_options_count_half():
    sample = {"metadata": {"choices": 2}, "extra": {"option_logprobs": [-1.0, -1.0]}, "options": [" A", " B"]}
    assert choices.by_likelihood(sample, ("A",)) == choices.by_likelihood(sample, ("B",)) == 0.5
