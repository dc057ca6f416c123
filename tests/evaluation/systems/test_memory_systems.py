"""The systems with a memory, end to end on the bundled model: what each remembers near and far is what it is for."""

from __future__ import annotations

import pytest
import torch

from mplus_cli.errors import UsageError
from mplus_cli.evaluation.prompting import Prompt
from tests.evaluation.systems.helpers import (
    Asking,
    accuracy,
    ask,
    bundled,
    chronicles,
    loaded,
    random_items,
    system,
    texts,
)
from tests.fixtures import tiny_model

ITEMS = 6


def scores(name: str, count: int = ITEMS) -> tuple[float, float]:
    """Exact match near (a few writes) and far (about 25 writes) from the fact, of so many chronicles."""
    items = chronicles(count)
    answers = ask(system(name, bundled()), items)
    return accuracy(answers, items, "near"), accuracy(answers, items, "far")


def test_mplus_remembers_near_and_far_and_says_what_it_read():
    items = chronicles(ITEMS)
    answers = ask(system("mplus", bundled()), items)
    assert accuracy(answers, items, "near") >= 0.8
    assert accuracy(answers, items, "far") >= 0.8
    far = answers[f"{items[0].id}/far"]
    assert far.prompt == items[0].questions[1].prompt
    assert far.truncation == "none" and far.truncated_tokens == 0
    assert far.context_tokens > 12 * 100
    assert far.extra["writes"] * 48 == far.extra["long_term"] + 384  # every token written is in one of the two
    assert far.extra["retrieved"] == [192] * 4
    assert far.raw.endswith("\n") and far.text == far.raw.strip() and far.stop == "end"
    assert far.seconds["remember"] > 0 and far.seconds["ask"] > 0


@pytest.mark.parametrize("name", ["memoryllm", "zeros", "noise", "foreign", "mplus:retrieval_budget=1"])
def test_without_its_own_long_term_tokens_only_the_near_is_left(name):
    near, far = scores(name)
    assert near >= 0.6
    assert far <= 0.3


def test_random_retrieval_is_a_floor():
    """Every fourth memory token of these stores is drawn, so a fact is found by luck now and then."""
    near, far = scores("random", 16)
    assert near >= 0.6
    assert far <= 0.6


def test_search_by_attention_finds_the_far_too():
    near, far = scores("mplus-attn")
    assert near >= 0.8
    assert far >= 0.6


def test_without_short_term_values_nothing_recent_is_left():
    near, _ = scores("memoryllm:short_term=zeros")
    assert near <= 0.2


def test_a_smaller_store_forgets_the_far():
    _, far = scores("mplus:long_term_capacity=192")
    assert far <= 0.3


def test_offload_and_explicit_sizes_change_no_answer():
    items = chronicles(2)
    plain = texts(ask(system("mplus", bundled()), items))
    same = "mplus:offload=true,chunk_size=96,short_term_size=384,retrieval_budget=192,retriever_score=contrastive"
    assert texts(ask(system(same, bundled()), items)) == plain
    assert system("mplus:offload=true", bundled()).new_memory(items).short_term.values.device.type == "cpu"


def test_the_retriever_score_is_another_only_while_asking():
    items = chronicles(2)
    other = system("mplus:retriever_score=published", bundled())
    kinds = []
    retriever = bundled().model.retrievers[0]
    original = retriever.scores
    retriever.scores = lambda *given: kinds.append(retriever.score) or original(*given)
    try:
        ask(other, items)
    finally:
        del retriever.scores
    assert set(kinds) == {"mean_sigmoid"}
    assert {one.score for one in bundled().model.retrievers} == {"log_sum_exp"}
    assert other.describe()["retriever_score"] == "mean_sigmoid"


@pytest.mark.parametrize("name", ["mplus", "mplus-attn", "random", "zeros", "noise", "foreign"])
def test_a_model_without_retriever_is_refused(name):
    with pytest.raises(UsageError, match="tiny has no long-term memory and no retriever") as caught:
        system(name, loaded(tiny_model(long_term_capacity=0)))
    assert "memoryllm" in caught.value.hint


def test_memoryllm_runs_checkpoints_with_and_without_long_term_memory():
    items = random_items(3)
    for capacity in (80, 0):
        model = tiny_model(long_term_capacity=capacity)
        asked = system("memoryllm", loaded(model))
        assert len(ask(asked, items)) == 10
        assert asked.walk(items).memory.long_term == []
        assert asked.describe()["long_term_capacity"] == 0


def test_sizes_that_do_not_go_together_are_refused():
    with pytest.raises(UsageError, match="retrieval_budget"):
        system("mplus:retrieval_budget=5000,long_term_capacity=100", bundled())
    with pytest.raises(UsageError, match="short_term_size"):
        system("mplus:short_term_size=20", bundled())
    with pytest.raises(UsageError, match="retrieval_budget"):
        system("memoryllm:retrieval_budget=5", bundled())


def test_a_prompt_longer_than_the_positions_is_refused():
    asked = system("mplus", bundled())
    item = random_items(1)[0]
    question = item.questions[0]
    memory = asked.new_memory([item])
    assert isinstance(asked.prompt(question, memory), Prompt)
    long = type(question)("long", "word " * 6000, ("x",), 1)
    with pytest.raises(UsageError, match="question long .* 4096 positions"):
        asked.prompt(long, memory)


def test_the_foreign_text_can_be_given(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("The miller of Vorn sold nine sacks of flour to the abbot.\n" * 400)
    asked = system(f"foreign:text={book}", bundled())
    assert asked.describe()["donor"] == str(book)
    assert asked.describe()["donor_tokens"] >= 4 * 192
    item = chronicles(1)[0]
    answer = next(a for a in asked.answer(Asking(), [item]) if a.question == "far")
    assert answer.text != item.questions[0].references[0]


def test_a_carried_memory_larger_than_the_varied_size_is_refused():
    model = tiny_model()
    model.initial_memory = {"short_term.values": torch.zeros(3, 32, 32)}
    with pytest.raises(UsageError, match="less than the 32 memory tokens that tiny carries"):
        system("mplus:short_term_size=16", loaded(model))
    system("mplus:short_term_size=16", loaded(model), initial="empty")


def test_memory_values_in_less_space_are_kept_so_and_said():
    model, (item, *_) = bundled(), chronicles(1)
    for name, stored in (("bfloat16", torch.bfloat16), ("float8", torch.uint8), ("int8", torch.int8)):
        asked = system(f"mplus:memory_dtype={name}", model)
        assert asked.new_memory([item]).long_term[0].layers[0].values.dtype == stored
        assert asked.describe()["memory_dtype"] == name
    with pytest.raises(UsageError, match="memory_dtype"):
        system("mplus:memory_dtype=int4", model)
