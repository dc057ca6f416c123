"""Every task but questions: its texts, masks and loss against a slow, plain reference, and what it does to memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mplus_cli.core.writing import WritePass
from mplus_cli.training.examples import Example
from mplus_cli.training.groups import group_of
from mplus_cli.training.losses import MaskedBatchError
from mplus_cli.training.tasks.multi_chunk import choose_graded
from tests.fixtures import byte_tokenizer
from tests.training.helpers import (
    documents,
    draw,
    expected_mean,
    gradients,
    plain_read,
    runner_of,
    text_documents,
    tiny_recipe,
    written,
)

# -- full context --


@pytest.mark.parametrize("stage", [1, 3])
def test_full_context(stage):
    runner = runner_of(tiny_recipe(stage, loss={"random_query_length": False}))
    runner.run(0, documents(2, [7, 3]), draw("multi_chunk"))
    memory = runner.rows.memory
    before = memory.version, list(memory.created_total), list(runner.rows.cached)
    plain, repeated = documents(2, 3, seed=1, target=9)
    repeated = Example(repeated.id, repeated.contexts, repeated.target, [-100, *repeated.target[1:-1], -100], True)
    output = runner.run(1, [plain, repeated], draw("full_context"))
    ids = [*sum(plain.contexts, []), *plain.target][:48]
    memories = [
        written(runner, 0, documents(2, [7, 3])[0].contexts),
        written(runner, 1, documents(2, [7, 3])[1].contexts),
    ]
    losses = [
        plain_read(runner.model, ids, ids, memories[0]),
        plain_read(runner.model, repeated.target, repeated.labels, memories[1]),
    ]
    assert output.loss.item() == pytest.approx(expected_mean(losses), rel=1e-4)
    assert output.tokens == len(ids) + len(repeated.target)
    assert (memory.version, memory.created_total, runner.rows.cached) == before  # nothing written, nothing cached
    assert "retriever" not in output.parts


def test_full_context_is_cut_at_the_window():
    runner = runner_of(tiny_recipe(1))
    output = runner.run(0, documents(2, 9), draw("full_context"))
    assert output.tokens == 2 * 48


def test_full_context_without_memory_is_language_modelling():
    runner = runner_of(tiny_recipe("base"))
    batch = documents(2, 2)
    output = runner.run(0, batch, draw("full_context"))
    texts = [[*sum(example.contexts, []), *example.target] for example in batch]
    assert output.loss.item() == pytest.approx(expected_mean([plain_read(runner.model, t, t) for t in texts]), rel=1e-4)


# -- two-chunk --


@pytest.mark.parametrize("adapter", ["paper", "published"])
@pytest.mark.parametrize("stage", [1, 3])
def test_two_chunk(stage, adapter):
    runner = runner_of(tiny_recipe(stage, tasks={"two_chunk_adapter": adapter}))
    earlier, batch = documents(2, [6, 1], seed=1), documents(2, 3, seed=2)
    runner.run(0, earlier, draw("multi_chunk"))
    output = runner.run(1, batch, draw("two_chunk"))
    losses = []
    for row, example in enumerate(batch):
        memory = written(runner, row, earlier[row].contexts)
        with torch.no_grad():
            delta = runner.model.write(torch.tensor([example.contexts[-1]]), memory.context(0)[None])
        mode = "write" if adapter == "published" else "read"
        losses.append(plain_read(runner.model, example.target, example.labels, memory_tokens=delta, adapter=mode))
        expected, _ = written(runner, row, [*earlier[row].contexts, example.contexts[-1]]).short_term.ordered(0)
        found, _ = runner.rows.memory.short_term.ordered(row)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)  # written to memory afterwards
    assert output.loss.item() == pytest.approx(expected_mean(losses), rel=1e-4)
    assert "retriever" not in output.parts
    output.loss.backward()
    moved = {group_of(name) for name in gradients(runner.model)}
    assert {"write_adapter", "new_memory_positional_emb", "bos_embedding"} <= moved
    assert ("read_adapter" in moved) == (adapter == "paper")


def test_two_chunk_takes_the_first_context_of_a_document_to_repeat():
    runner = runner_of(tiny_recipe(1))
    batch = text_documents([["alpha beta", "gamma delta"], ["one two", "three four"]], "unused", repeat=True)
    output = runner.run(0, batch, draw("two_chunk"))
    losses = []
    for example, text in zip(batch, ["alpha beta", "one two"], strict=True):
        ids = byte_tokenizer().encode(f"Repeat: {text}", add_special_tokens=False)
        masked = len("Repeat:") + 5
        with torch.no_grad():
            delta = runner.model.write(torch.tensor([example.contexts[0]]), None)
        losses.append(plain_read(runner.model, ids, [-100] * masked + ids[masked:], memory_tokens=delta))
    assert output.loss.item() == pytest.approx(expected_mean(losses), rel=1e-4)


def test_two_chunk_with_memory_tokens_of_different_number():
    """An empty memory and a text shorter than K leave fewer memory tokens."""
    runner = runner_of(tiny_recipe(1))
    batch = [Example(f"d{n}", [list(range(50, 50 + n))], [60] * 6, [60] * 6, False) for n in (2, 9)]
    output = runner.run(0, batch, draw("two_chunk"))
    losses = []
    for example in batch:
        with torch.no_grad():
            delta = runner.model.write(torch.tensor([example.contexts[0]]), None)
        assert delta.shape[2] == min(4, len(example.contexts[0]))
        losses.append(plain_read(runner.model, example.target, example.labels, memory_tokens=delta))
    assert output.loss.item() == pytest.approx(expected_mean(losses), rel=1e-4)


# -- multi-chunk and repeat --


@pytest.mark.parametrize("stage", [1, 3])
def test_multi_chunk_keeps_the_last_contexts(stage):
    runner = runner_of(tiny_recipe(stage, loss={"random_query_length": False}))
    batch = documents(2, [9, 4])
    output = runner.run(0, batch, draw("multi_chunk", contexts=6))
    losses = [
        plain_read(runner.model, e.target, e.labels, written(runner, row, e.contexts[-6:]))
        for row, e in enumerate(batch)
    ]
    assert output.parts["ce"].item() == pytest.approx(expected_mean(losses), rel=1e-4)
    assert runner.rows.contexts == [6, 4]
    assert output.tokens == sum(sum(map(len, e.contexts[-6:])) + len(e.target) for e in batch)
    assert output.ids == [e.id for e in batch]


def test_repeat_keeps_the_first_contexts_and_masks_its_beginning():
    runner = runner_of(tiny_recipe(1))
    texts = [["In the town ", "of Vorn the ", "miller sold"], ["flour to all", " the abbots ", "it is said"]]
    batch = text_documents(texts, "unused", repeat=True)
    output = runner.run(0, batch, draw("multi_chunk", contexts=2))
    losses = []
    for row, (example, text) in enumerate(zip(batch, texts, strict=True)):
        ids = byte_tokenizer().encode(f"Repeat: {text[0]}{text[1]}", add_special_tokens=False)
        labels = [-100] * (len("Repeat:") + 5) + ids[len("Repeat:") + 5 :]
        losses.append(plain_read(runner.model, ids, labels, written(runner, row, example.contexts[:2])))
    assert output.loss.item() == pytest.approx(expected_mean(losses), rel=1e-4)
    assert runner.rows.cached[0].target[:7] == byte_tokenizer().encode("Repeat:", add_special_tokens=False)


def test_repeat_is_cut_at_the_window():
    runner = runner_of(tiny_recipe(1))
    batch = text_documents([["a b c d e f "] * 6] * 2, "unused", repeat=True)
    runner.run(0, batch, draw("multi_chunk"))
    assert [len(one.target) for one in runner.rows.cached] == [48, 48]


def test_multi_chunk_writes_build_no_graph(monkeypatch):
    recorded = []
    run = WritePass.run

    def watched(self, *args, **kwargs):
        made = run(self, *args, **kwargs)
        recorded.append(any(part.requires_grad for part in made))
        return made

    monkeypatch.setattr(WritePass, "run", watched)
    runner = runner_of(tiny_recipe(3))
    output = runner.run(0, documents(2, 5), draw("multi_chunk"))
    assert recorded == [False] * 5
    output.loss.backward()
    assert not {group_of(n) for n in gradients(runner.model)} & {"write_adapter", "new_memory_positional_emb"}


def test_multi_chunk_with_gradient_writes():
    found = []
    for count in (0, 2):
        recipe = tiny_recipe(3, tasks={"gradient_writes": count}, loss={"random_query_length": False})
        runner = runner_of(recipe)
        output = runner.run(0, documents(2, [6, 3]), draw("multi_chunk"))
        output.loss.backward()
        found.append((output.loss.item(), {group_of(name) for name in gradients(runner.model)}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)  # the same numbers
    assert found[1][1] - found[0][1] == {"write_adapter", "new_memory_positional_emb"}


def test_choosing_the_writes_with_gradient():
    rng = np.random.default_rng(0)
    assert choose_graded(rng, 9, 0, ()) == []
    assert choose_graded(rng, 2, 5, ()) == [0, 1]
    chosen = [tuple(choose_graded(rng, 9, 3, [2, 5])) for _ in range(20)]
    assert set(chosen) == {(2, 5, 8)}
    others = {tuple(choose_graded(rng, 6, 2, ())) for _ in range(60)}
    assert others == {(i, 5) for i in range(5)}


# -- revisit --


@pytest.mark.parametrize("flag", [True, False])
def test_revisit_asks_for_the_cached_target(flag):
    runner = runner_of(tiny_recipe(3, loss={"random_query_length": False}))
    first, second, third = (documents(2, 4, seed=seed) for seed in (1, 2, 3))
    runner.run(0, first, draw("multi_chunk"))
    runner.run(1, second, draw("multi_chunk", cache=False))
    version = runner.rows.memory.version
    output = runner.run(2, third, draw("revisit", full_memory=flag))
    losses = [
        plain_read(runner.model, a.target, a.labels, written(runner, row, [*a.contexts, *b.contexts]))
        for row, (a, b) in enumerate(zip(first, second, strict=True))
    ]
    assert output.parts["ce"].item() == pytest.approx(expected_mean(losses), rel=1e-4)
    assert runner.rows.memory.version == version  # nothing is written
    assert output.ids == [e.id for e in first] and output.parts["revisit_distance"].item() == 4
    assert ("retriever" in output.parts) == flag


def test_a_process_without_cached_documents_takes_the_new_ones():
    runner = runner_of(tiny_recipe(1))
    output = runner.run(0, documents(2, 2), draw("revisit", cache=True, contexts=5))
    assert output.ids == [e.id for e in documents(2, 2)] and all(runner.rows.cached)


# -- without memory --


def test_in_context():
    runner = runner_of(tiny_recipe("base", tasks={"in_context": {"share": 1.0, "questions": 3, "text_weight": 0.25}}))
    example = documents(1, 1, questions=2)[0]
    bare = documents(1, 1, seed=4)[0]
    output = runner.run(0, [example, bare], draw("in_context"))
    passage, candidates = example.contexts[0], []
    for first, second in ((0, 1), (1, 0)):
        ids, labels = list(passage), [-100] * len(passage)
        for question in (example.questions[first], example.questions[second]):
            ids += question.prompt + question.answer
            labels += [-100] * len(question.prompt) + question.answer
        candidates.append(plain_read(runner.model, ids, labels))
    assert any(output.parts["ce"].item() == pytest.approx(value, rel=1e-4) for value in candidates)
    text = expected_mean([plain_read(runner.model, ids, ids) for ids in (passage, bare.contexts[0])])
    assert output.parts["text"].item() == pytest.approx(text, rel=1e-4)
    assert output.loss.item() == pytest.approx((output.parts["ce"] + 0.25 * output.parts["text"]).item(), rel=1e-5)
    with pytest.raises(MaskedBatchError):
        runner.run(0, [bare, bare], draw("in_context"))


def test_copying():
    settings = {"share": 1.0, "rows": 5, "length": 30, "shortest": 4, "longest": 8}
    runner = runner_of(tiny_recipe("base", tasks={"copying": settings}))
    output = runner.run(0, documents(2), draw("copying"))
    assert output.tokens == 5 * 30 and output.loss.isfinite()
    again = runner_of(tiny_recipe("base", tasks={"copying": settings})).run(0, [], draw("copying"))
    assert again.loss.item() == output.loss.item()  # documents play no part
    other = runner_of(tiny_recipe("base", tasks={"copying": settings}), rank=1).run(0, [], draw("copying"))
    assert other.loss.item() != output.loss.item()  # every process has strings of its own


def test_a_masked_document_is_refused_by_name():
    runner = runner_of(tiny_recipe(1))
    good, bad = documents(2, 2)
    bad = Example("silent", bad.contexts, bad.target, [-100] * len(bad.target), False)
    for task in ("two_chunk", "multi_chunk"):
        with pytest.raises(MaskedBatchError, match="masked in silent:"):
            runner.run(0, [good, bad], draw(task))
