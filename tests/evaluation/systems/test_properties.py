"""What every system keeps to: no answer depends on what else is asked, in which batch, in which order."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from mplus_cli.evaluation.system import memory_seed
from tests.evaluation.systems.helpers import MEMORY, TEXT, AskingToTheEnd, ask, loaded, random_items, system, texts
from tests.fixtures import tiny_model

ITEMS = random_items(5, seed=1)
EVERY = (*MEMORY, *TEXT, "mplus:short_term=zeros", "mplus:retriever_score=published", "window:size=120,cut=middle")


@cache
def on_tiny(name: str):
    return system(name, loaded(tiny_model()))


@cache
def together(name: str) -> dict[str, str]:
    return texts(ask(on_tiny(name), ITEMS))


@pytest.mark.parametrize("name", EVERY)
def test_rows_of_a_batch_equal_items_one_by_one(name):
    one_by_one = ask(on_tiny(name), ITEMS, batch=1)
    assert texts(one_by_one) == together(name)
    in_batch = ask(on_tiny(name), ITEMS)
    for id, answer in one_by_one.items():
        other = in_batch[id]
        assert replace(answer, seconds={}, extra={}) == replace(other, seconds={}, extra={})
        assert answer.extra.get("option_logprobs") == pytest.approx(other.extra.get("option_logprobs"), abs=1e-3)
        assert {k: v for k, v in answer.extra.items() if k != "option_logprobs"} == {
            k: v for k, v in other.extra.items() if k != "option_logprobs"
        }


@pytest.mark.parametrize("name", EVERY)
def test_order_does_not_matter(name):
    shuffled = [replace(item, questions=item.questions[::-1]) for item in ITEMS[::-1]]
    assert texts(ask(on_tiny(name), shuffled, batch=2)) == together(name)


@pytest.mark.parametrize("name", EVERY)
def test_asking_does_not_disturb_memory(name):
    """Only the last question of each item: every earlier one was not asked. That is also how a resumed run goes on."""
    last = [replace(item, questions=item.questions[-1:]) for item in ITEMS]
    alone = texts(ask(on_tiny(name), last))
    assert alone == {id: text for id, text in together(name).items() if id in alone}


@pytest.mark.parametrize("name", MEMORY)
def test_asking_leaves_every_bit_of_memory_as_it_was(name):
    asked = on_tiny(name)
    walk = asked.walk(ITEMS)
    for stands in walk.stands():
        before = _content(walk.memory)
        view = asked.view(walk.memory.rows([stand.row for stand in stands]))
        asked.ask(AskingToTheEnd(), view, stands, [stand.questions[0] for stand in stands])
        assert all(torch.equal(a, b) for a, b in zip(before, _content(walk.memory), strict=True))
        assert walk.memory.reader is None and walk.memory.last_retrieval == []


def _content(memory) -> list[torch.Tensor]:
    held = [memory.short_term.values.clone(), memory.short_term.created.clone()]
    for store in memory.long_term:
        for layer in store.layers:
            held += [*(v.clone() for v in layer.keys.views()), *(v.clone() for v in layer.values.views())]
    return held


def test_the_memory_of_an_item_depends_on_run_seed_and_item_alone():
    one, two = (system("mplus", loaded(tiny_model()), seed=seed) for seed in (3, 4))
    assert texts(ask(one, ITEMS)) == together("mplus")
    assert texts(ask(two, ITEMS)) != together("mplus")
    assert one.new_memory(ITEMS[2:4]).seeds == [memory_seed(3, "item-2"), memory_seed(3, "item-3")]


def test_systems_do_not_answer_alike():
    """The tiny random model reads its memory, or the tests above would prove nothing."""
    assert len({tuple(together(name).values()) for name in EVERY}) >= 9
    unlike = ("mplus", "memoryllm", "zeros", "noise", "window", "closed-book", "mplus:short_term=zeros")
    assert len({tuple(together(name).values()) for name in unlike}) == len(unlike)
