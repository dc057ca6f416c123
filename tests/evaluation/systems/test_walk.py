"""Walking items through their documents: everything before a question is written, once, and nothing after it."""

from __future__ import annotations

from dataclasses import replace

import torch

from mplus_cli.core.loading import encode
from mplus_cli.data.chunking import chunks
from mplus_cli.evaluation.items import Document, Item, Question
from mplus_cli.evaluation.system import memory_seed
from tests.evaluation.systems.helpers import Asking, loaded, random_items, system
from tests.fixtures import byte_tokenizer, tiny_model


def test_each_stand_holds_exactly_what_was_told_before_it():
    model, items = tiny_model(), random_items(4, seed=2)
    walk = system("mplus", loaded(model)).walk(items)
    seen = []
    for stands in walk.stands():
        for stand in stands:
            seen.append((stand.item.id, stand.after, [question.id for question in stand.questions]))
            told = [document.text for document in stand.item.documents[: stand.after]]
            ids = [chunk.ids for text in told for chunk in chunks(text, byte_tokenizer(), 64)]
            alone = model.new_memory(1, memory_seed(3, stand.item.id))
            with torch.inference_mode():
                for one in ids:
                    model.inject(torch.tensor([one]), alone)
            assert (stand.writes, stand.tokens) == (len(ids), sum(map(len, ids)))
            assert stand.tokens == sum(len(encode(byte_tokenizer(), text)) for text in told)
            assert walk.memory.created_total[stand.row] == alone.created_total[0] == stand.spans[-1][1]
            here, there = walk.memory.short_term.ordered(stand.row), alone.short_term.ordered(0)
            torch.testing.assert_close(here[0], there[0], atol=1e-5, rtol=0)
            assert torch.equal(here[1], there[1])
    asked = {(item.id, q.after, q.id) for item in items for q in item.questions}
    assert {(id, after, q) for id, after, questions in seen for q in questions} == asked
    assert len(seen) == sum(len({q.after for q in item.questions}) for item in items)


def test_spans_say_which_memory_tokens_a_document_made():
    told = (Document("a" * 100), Document(""), Document("b" * 64), Document("c" * 10), Document("not asked about"))
    asked = (Question("now", "q", ("x",), 0), Question("later", "q", ("x",), 4))
    walk = system("mplus", loaded(tiny_model())).walk([Item("one", told, asked)])
    (first,), (second,) = walk.stands()
    assert first.spans == [] and first.writes == 0
    # 100 tokens are two writes of K = 8 memory tokens; nothing makes none.
    assert second.spans == [(0, 16), (16, 16), (16, 24), (24, 32)]
    assert second.writes == 4


def test_the_time_of_a_batch_is_shared_and_counted_once():
    item = random_items(1)[0]
    first = item.questions[-1]
    item = replace(item, questions=(*item.questions, replace(first, id="second")))
    answers = list(system("mplus", loaded(tiny_model())).answer(Asking(), [item, replace(item, id="other")]))
    seconds = {answer.sample_id: answer.seconds for answer in answers}
    assert seconds[f"{item.id}/second"]["remember"] == 0 < seconds[f"{item.id}/{first.id}"]["remember"]
    assert seconds[f"{item.id}/second"]["ask"] == seconds["other/second"]["ask"] > 0
