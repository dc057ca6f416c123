"""The systems that read documents as text: what they read, what they leave out, and that they say so."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace

import pytest

from mplus_cli.core.loading import encode
from mplus_cli.errors import MissingExtraError, UsageError
from mplus_cli.evaluation.items import Document, Item, Question
from tests.evaluation.systems.helpers import ask, bundled, chronicles, loaded, random_items, system, texts
from tests.fixtures import byte_tokenizer, tiny_model

TOKENIZER = byte_tokenizer()
TEN = tuple(Document(f"Document {n} tells of fruit{n}. " + "x" * 100) for n in range(10))
ASKED = Question("q", "Question: Which tells of fruit3? Answer:", ("3",), 10, 6)
ITEM = Item("ten", TEN, (ASKED,))


@pytest.fixture(scope="module")
def tiny():
    return loaded(tiny_model())


def one(answers):
    (answer,) = answers.values()
    return answer


def test_full_reads_everything(tiny):
    answer = one(ask(system("full", tiny), [ITEM]))
    assert answer.prompt == "\n\n".join(document.text for document in TEN) + "\n\n" + ASKED.prompt
    assert answer.prompt_tokens == len(answer.prompt)
    assert (answer.truncation, answer.truncated_tokens) == ("none", 0)
    assert answer.context_tokens == len(answer.prompt) - len("\n\n" + ASKED.prompt)


def test_only_what_came_before_the_question_is_read(tiny):
    answer = one(ask(system("full", tiny), [replace(ITEM, questions=(replace(ASKED, after=2),))]))
    assert "fruit1" in answer.prompt and "fruit2" not in answer.prompt


@pytest.mark.parametrize(("cut", "gone", "kept"), [("left", "fruit0", "fruit9"), ("middle", "fruit5", "fruit0")])
def test_the_window_cuts_documents_and_never_the_question(tiny, cut, gone, kept):
    asked = system(f"window:size=500,cut={cut}", tiny)
    answer = one(ask(asked, [ITEM]))
    assert answer.prompt_tokens == 500 - ASKED.max_new_tokens == len(answer.prompt)
    assert answer.prompt.endswith("\n\n" + ASKED.prompt)
    assert gone not in answer.prompt and kept in answer.prompt
    assert answer.truncation == cut
    assert answer.truncated_tokens == answer.context_tokens - (answer.prompt_tokens - len("\n\n" + ASKED.prompt))
    assert asked.describe()["window"] == 500


def test_a_window_is_never_wider_than_the_model(tiny):
    assert system("window", tiny).describe()["window"] == 2_048  # positions of the tiny model; the default is 16,384
    long = replace(ITEM, documents=tuple(Document(d.text * 3) for d in TEN))
    for name in ("window", "full", "full:cut=middle"):
        answer = one(ask(system(name, tiny), [long]))
        assert answer.prompt_tokens == 2_048 - ASKED.max_new_tokens
        assert answer.truncation == ("middle" if "middle" in name else "left")


def test_a_question_longer_than_the_window_is_refused(tiny):
    for name in ("window:size=20", "closed-book"):
        long = replace(ITEM, questions=(replace(ASKED, prompt=ASKED.prompt * (60 if name == "closed-book" else 1)),))
        with pytest.raises(UsageError, match="longer than the window"):
            ask(system(name, tiny), [long])


def test_closed_book_reads_no_document_and_asks_once(tiny, monkeypatch):
    asked = system("closed-book", tiny)
    item = replace(ITEM, questions=tuple(replace(ASKED, id=f"q{n}", after=n) for n in (1, 5, 10)))
    batches = []
    plain = asked.generate
    monkeypatch.setattr(asked, "generate", lambda prompts, *rest: batches.append(len(prompts)) or plain(prompts, *rest))
    answers = ask(asked, [item])
    assert {answer.prompt for answer in answers.values()} == {ASKED.prompt}
    assert {answer.context_tokens for answer in answers.values()} == {0}
    assert len({answer.raw for answer in answers.values()}) == 1
    assert batches == [1]


@pytest.mark.parametrize("name", ["full", "window:size=600", "window:size=600,cut=middle"])
def test_a_long_text_is_read_once_for_all_its_questions(tiny, monkeypatch, name):
    """The answers are those of questions asked alone, and what a text and the next begin with is not read again."""
    documents = tuple(Document(f"Document {n} tells of fruit{n}. " + "xyz" * 150) for n in range(10))
    asked = tuple(replace(ASKED, id=f"q{n}", after=n, options=("ab", "c")) for n in (4, 1, 2, 4))[:3]
    item, alone = Item("long", documents, asked), {}
    reading = system(name, tiny)
    monkeypatch.setattr("mplus_cli.evaluation.systems.text_system.LONG_TEXT", 1_000)
    for question in asked:
        alone |= ask(reading, [replace(item, questions=(question,))])
    read = []
    original = reading.base.model.forward
    monkeypatch.setattr(
        reading.base.model, "forward", lambda **given: read.append(given["input_ids"].shape[1]) or original(**given)
    )
    together = ask(reading, [item])
    assert texts(together) == texts(alone)
    for id, answer in together.items():
        assert answer.extra["option_logprobs"] == pytest.approx(alone[id].extra["option_logprobs"], abs=1e-3)
        assert answer.prompt == alone[id].prompt
    if name == "full":
        longest = max(answer.prompt_tokens for answer in together.values())
        assert max(read) < longest and sum(n for n in read if n > 10) < longest + 3 * 60


def test_more_questions_than_items_fill_the_batch(tiny, monkeypatch):
    item = replace(ITEM, questions=tuple(replace(ASKED, id=f"q{n}", after=1, prompt=f"What{n}?") for n in range(7)))
    for name in ("closed-book", "mplus", "zeros"):
        asked = system(name, tiny, batch=4)
        model = asked.base.model if name == "closed-book" else asked.model
        rows = []
        original = model.forward
        monkeypatch.setattr(
            model,
            "forward",
            lambda *, seen=rows, run=original, **given: seen.append(len(given["input_ids"])) or run(**given),
        )
        assert texts(ask(asked, [item])) == texts(ask(system(name, tiny, batch=1), [item]))
        assert sorted({*rows}) == [1, 3, 4]
        monkeypatch.undo()


def test_bm25_reads_the_chunks_with_the_words_of_the_question(tiny):
    asked = system("bm25:chunk_tokens=128,top=2", tiny)
    answer = one(ask(asked, [ITEM]))
    assert "fruit3" in answer.prompt and "fruit9" not in answer.prompt
    assert answer.prompt.endswith(ASKED.prompt)
    assert answer.truncation == "chunks"
    assert 0 < answer.truncated_tokens < answer.context_tokens
    read = encode(TOKENIZER, answer.prompt.removesuffix("\n\n" + ASKED.prompt))
    # What joins two chunks is not of the documents, and white space around them is left out.
    assert abs(len(read) - (answer.context_tokens - answer.truncated_tokens)) <= 8


def test_bm25_puts_chunks_in_the_order_of_the_text(tiny):
    asked = system("bm25:top=3", tiny)
    parts = ["a b", "fruit3 fruit3", "c d", "the fruit3 of", "e f g", "one two"]
    assert asked.pick(parts, "fruit3 of the") == sorted(asked.pick(parts, "fruit3 of the"))
    assert {1, 3} < set(asked.pick(parts, "fruit3 of the"))
    assert asked.pick(parts[:2], "nothing") == [0, 1]


def test_bm25_chunks_shrink_to_what_the_model_can_read(tiny):
    asked = system("bm25", tiny)
    assert asked.describe()["chunk_tokens"] == 2_048 // 4
    long = replace(ITEM, documents=tuple(Document(d.text * 6) for d in TEN))
    answer = one(ask(asked, [long]))
    assert answer.prompt_tokens <= 2_048 - ASKED.max_new_tokens
    assert "fruit3" in answer.prompt


def test_text_systems_run_on_the_bundled_model():
    """It was taught to read its memory, not text: all that can be asked of it here is to answer."""
    items = [replace(item, questions=item.questions[:1]) for item in chronicles(2)]
    for name in ("window", "full", "bm25", "closed-book"):
        answers = ask(system(name, bundled()), items)
        assert len(answers) == 2
        assert all(answer.answer_tokens and answer.stop for answer in answers.values())


def test_a_missing_package_is_named_with_the_command_that_installs_it(tiny, monkeypatch):
    for name, package in (("bm25", "rank_bm25"), ("snapkv", "kvpress")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=f"system {name} needs the package") as caught:
            system(name, tiny)
        assert "pip install" in caught.value.hint


needs_kvpress = pytest.mark.skipif(
    importlib.util.find_spec("kvpress") is None,
    reason="kvpress is not installed; it needs transformers below 5.3 and has an extra of its own",
)


@needs_kvpress
def test_snapkv_keeps_so_many_keys_and_values(tiny, monkeypatch):
    asked = system("snapkv:cache=200,observed=32", tiny)
    lengths = []
    original = asked.base.model.forward

    def forward(**given):
        out = original(**given)
        lengths.append(out.past_key_values.get_seq_length())
        return out

    monkeypatch.setattr(asked.base.model, "forward", forward)
    answer = one(ask(asked, [ITEM]))
    assert answer.prompt_tokens > 1_000 and answer.truncation == "none"
    assert lengths == [200 + step for step in range(len(lengths))]
    assert len(lengths) == answer.answer_tokens
    assert asked.describe()["cache"] == 200


@needs_kvpress
def test_snapkv_with_room_for_everything_is_the_full_model(tiny):
    items = random_items(3)
    assert texts(ask(system("snapkv", tiny), items)) == texts(ask(system("full", tiny), items))
    assert texts(ask(system("snapkv:cache=70,observed=8", tiny), items)) != texts(ask(system("full", tiny), items))


@needs_kvpress
def test_snapkv_positions_go_on_where_the_prompt_ended(tiny, monkeypatch):
    asked = system("snapkv:cache=64,observed=16", tiny)
    positions = []
    original = asked.base.model.forward
    monkeypatch.setattr(
        asked.base.model, "forward", lambda **given: positions.append(given["position_ids"]) or original(**given)
    )
    answer = one(ask(asked, [ITEM]))
    assert [int(p[0, -1]) for p in positions] == [answer.prompt_tokens - 1 + n for n in range(len(positions))]


@needs_kvpress
def test_snapkv_answers_in_any_batch_alike(tiny):
    items, asked = random_items(4), system("snapkv:cache=90,observed=8", tiny)
    assert texts(ask(asked, items, batch=1)) == texts(ask(asked, items, batch=4))
    near = [replace(item, questions=item.questions[:1]) for item in chronicles(1)]
    assert one(ask(system("snapkv:cache=100", bundled()), near)).answer_tokens
