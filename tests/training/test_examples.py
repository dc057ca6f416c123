"""From a document to contexts and a target: the rules at their limits, what is drawn, questions with their context."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mplus_cli.core.loading import encode
from mplus_cli.data.chronicle import Chronicle, ChronicleConfig, answer_text, question_prompt
from mplus_cli.data.chunking import SEGMENT_CHARS, chunks
from mplus_cli.training.documents import Document, Place
from mplus_cli.training.examples import chunk_lengths, make_examples, rejection, split_lengths, tokenize
from mplus_cli.training.reading import Asked
from mplus_cli.training.recipe import DataSettings
from mplus_cli.training.tokens import encode_texts
from tests.fixtures import book, byte_tokenizer

SMALL = DataSettings(min_chunk=4, max_chunk=10, window=30)


def document(text: str, questions: tuple[Asked, ...] = ()) -> Document:
    return Document(text, Place(0, 0, 0), questions)


def example(text: str, key: str = "key", settings: DataSettings = SMALL, questions=(), repeat: float = 0.0):
    tokenizer = byte_tokenizer()
    return make_examples(tokenize([document(text, questions)], tokenizer), [key], settings, tokenizer, repeat)[0]


@given(
    low=st.integers(1, 40),
    more=st.integers(0, 60),
    beyond=st.integers(0, 200),
    length=st.integers(0, 900),
    key=st.text(),
)
def test_contexts_and_target_have_the_published_lengths(low, more, beyond, length, key):
    settings = DataSettings(min_chunk=low, max_chunk=low + more, window=low + more + beyond)
    high, window = settings.max_chunk, settings.window
    if rejection(length, settings) is not None:
        assert length < low or length <= high
        return
    contexts, target = split_lengths(length, settings, Random(key))
    assert sum(contexts) + target == length and contexts
    assert all(1 <= context <= high for context in contexts) and 1 <= target <= window
    if length < window:
        assert target <= high
    elif length < window + low:
        assert contexts == [low]
    else:
        assert target >= low
    if 2 * low <= high + 1:
        assert all(context >= low for context in contexts) and target >= min(low, length - low)


@pytest.mark.parametrize(
    ("length", "reason"),
    [(0, "shorter"), (3, "shorter"), (4, "single chunk"), (10, "single chunk"), (11, None), (30, None), (500, None)],
)
def test_what_is_rejected(length, reason):
    found = rejection(length, SMALL)
    assert (found is None) == (reason is None) and (reason is None or reason in found)


def test_a_window_as_small_as_a_chunk_leaves_a_target():
    settings = DataSettings(min_chunk=8, max_chunk=8, window=8)
    assert rejection(8, settings) is not None
    assert split_lengths(9, settings, Random(0)) == ([8], 1)


def test_lengths_are_drawn_uniformly():
    drawn = Counter(chunk_lengths(1000, SMALL, Random(seed))[3] for seed in range(2000))
    assert sorted(drawn) == list(range(4, 11))
    assert max(drawn.values()) < 1.4 * min(drawn.values())
    targets = {split_lengths(200, SMALL, Random(seed))[1] for seed in range(2000)}
    assert targets == set(range(4, 31))


def test_a_short_rest_borrows_from_the_chunks_before_it():
    class Largest(Random):
        def random(self):
            return 0.999

    assert chunk_lengths(21, SMALL, Largest()) == [10, 7, 4]
    tight = DataSettings(min_chunk=384, max_chunk=512, window=2048)
    assert chunk_lengths(600, tight, Random(0)) == [300, 300], "no two lengths in 384..512 make 600"
    assert min(chunk_lengths(384 * 3, tight, Largest())) >= 384


def test_an_example_is_its_document(tokenizer):
    text = book(3)
    made = example(text)
    assert sum(made.contexts, []) + made.target == encode(tokenizer, text)
    assert made.labels == made.target and made.id == document(text).id
    assert made.tokens == len(text) and not made.repeat and made.questions == ()
    assert all(type(token) is int for token in made.target)


def test_what_looks_like_a_control_token_is_text(tokenizer):
    made = example("<|end_of_text|>" * 3)
    assert min(sum(made.contexts, []) + made.target) > 2


def test_what_is_drawn_depends_on_the_key_alone():
    text = book(20)
    assert example(text) == example(text)
    assert len({tuple(map(len, example(text, key).contexts)) for key in "abcdef"}) == 6
    repeated = [example(text, str(key), repeat=0.3).repeat for key in range(300)]
    assert 60 < sum(repeated) < 120
    assert not any(example(text, str(key)).repeat for key in range(50))


def test_documents_with_one_key_are_cut_alike():
    long, longer = example(book(20)[:700]), example(book(30)[:720])
    lengths = [list(map(len, made.contexts)) for made in (long, longer)]
    same = len(lengths[0]) - 2  # the last two share what is left
    assert lengths[0][:same] == lengths[1][:same] and same > 50
    assert len(long.target) == len(longer.target)


def test_segments_of_long_texts_are_those_of_injection(tokenizer):
    texts = [book(2000), "", "short"]
    assert len(texts[0]) > 2 * SEGMENT_CHARS
    encoded = encode_texts(tokenizer, texts, spans=True)
    for text, (tokens, begins) in zip(texts, encoded, strict=True):
        expected = list(chunks(text, tokenizer, 512)) if text else []
        assert tokens.tolist() == [token for chunk in expected for token in chunk.ids]
        assert tokens.dtype == np.int32 and begins is not None and begins.tolist() == list(range(len(text)))


def test_questions_stand_in_their_context(tokenizer):
    chronicle = Chronicle.generate(3, ChronicleConfig(two_passage_rate=0.5), chapters=3)
    facts = chronicle.facts
    asked = tuple(
        Asked(question.text, question.answer, tuple((facts[i].start, facts[i].end) for i in question.facts))
        for question in chronicle.questions
    )
    settings = DataSettings(min_chunk=100, max_chunk=600, window=900)
    made = example(chronicle.text, "k", settings, asked)
    by_prompt = {question_prompt(question.text): question for question in chronicle.questions}
    assert len(by_prompt) == len(chronicle.questions), "the test tells questions by their words"
    starts = np.cumsum([0, *map(len, made.contexts)])
    found = set()
    for question in made.questions:
        original = by_prompt[tokenizer.decode(question.prompt)]
        assert tokenizer.decode(question.answer) == answer_text(original.answer)
        first = question.context - question.cut
        context = tokenizer.decode(sum(made.contexts[first : question.context + 1], []))
        for fact in (facts[i] for i in original.facts):
            start = fact.start - starts[first]  # one token per character
            assert context[start : start + len(fact.value)] == fact.value
            assert ". " not in context[:start][-1:] and fact.subject.split()[0] in chronicle.text[: fact.end]
        assert max(facts[i].end for i in original.facts) > starts[question.context]
        found.add(original.facts)
    assert len(found) == len(made.questions), "one wording of each"
    assert any(len(which) == 2 for which in found)
    told = {
        question.facts
        for question in chronicle.questions
        if all(facts[i].end <= starts[-1] for i in question.facts) and len(question.facts) == 1
    }
    assert found >= told
    assert any(question.cut for question in made.questions) and not all(question.cut for question in made.questions)
    drawn = [example(chronicle.text, key, settings, asked).questions for key in "abcdef"]
    wordings = {by_prompt[tokenizer.decode(question.prompt)] for questions in drawn for question in questions}
    assert len(wordings) > 2 * len({question.facts for question in wordings}), "each key draws among the wordings"


def test_a_fact_whose_sentence_is_cut_says_so():
    text = "First words. Tom lives in Velford. Then more is told of it all."
    span = (text.index("Velford"), text.index("Velford") + 7)
    asked = (Asked("Where does Tom live?", "Velford", (span,)),)
    settings = DataSettings(min_chunk=16, max_chunk=40, window=200)
    cut = 0
    for key in map(str, range(60)):
        made = example(text, key, settings, asked)
        ends = np.cumsum(list(map(len, made.contexts)))
        inside = [i for i in range(len(ends)) if ends[i] - len(made.contexts[i]) < span[1] <= ends[i]]
        assert [question.context for question in made.questions] == inside
        for question in made.questions:
            assert question.cut == (ends[question.context] - len(made.contexts[question.context]) > text.index("Tom"))
            cut += question.cut
    assert 5 < cut < 55, "the cuts of this test meet the sentence now and then"
