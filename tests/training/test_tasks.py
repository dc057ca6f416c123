"""Every task: its texts, masks and loss against a slow, plain reference, and what it does to memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from mplus_cli.core.memory import Memory
from mplus_cli.core.writing import WritePass
from mplus_cli.training.examples import Example, Question
from mplus_cli.training.groups import group_of
from mplus_cli.training.losses import MaskedBatchError
from mplus_cli.training.tasks.multi_chunk import choose_graded
from mplus_cli.training.tasks.questions import choose_questions
from tests.fixtures import byte_tokenizer
from tests.training.helpers import documents, draw, gradients, mean_loss, runner_of, text_documents, tiny_recipe


def plain_read(model, ids, labels, memory=None, **explicit):
    """One text's loss through the core's own forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([ids]), memory=memory, **explicit).logits[0]
    return mean_loss(logits, labels).item()


def one_row(runner, row: int) -> Memory:
    """A memory of its own with the seed of one of a runner's rows."""
    memory = runner.rows.memory
    return Memory(memory.config, 1, [memory.seeds[row]])


def written(runner, row: int, contexts) -> Memory:
    """What a row's memory holds after these contexts, written by the core one at a time."""
    memory = one_row(runner, row)
    for ids in contexts:
        runner.model.inject(torch.tensor([ids]), memory)
    return memory


def expected_mean(values) -> float:
    return sum(values) / len(values)


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


# -- questions --


def question_runner(tasks=None, memory=None):
    """All steps are questions, searched for with whole prompts and a contrastive retriever."""
    questions = {"questions": {"share": 1.0, "per_memory": 3, "rebuild": 0.0}, "gradient_writes": 0}
    return runner_of(
        tiny_recipe(
            3,
            tasks=questions | (tasks or {}),
            memory={"retriever_score": "log_sum_exp"} | (memory or {}),
            loss={"retriever": "contrastive", "random_query_length": False},
        )
    )


def test_questions_are_answered_from_memory():
    """Each question alone through the core's forward pass, searching with its prompt, is the reference."""
    runner = question_runner()
    batch = documents(2, [6, 3], questions=1)
    batch = [Example(e.id, e.contexts, e.target, e.labels, False, e.questions[-3:]) for e in batch]
    output = runner.run(0, batch, draw("questions"))
    model, losses = runner.model, []
    for row, example in enumerate(batch):
        memory = written(runner, row, example.contexts)
        for question in example.questions:
            with torch.no_grad():
                prompt = model(torch.tensor([question.prompt]), memory=memory)
                answer = model(torch.tensor([question.answer]), past_key_values=prompt.past_key_values)
            logits = torch.cat([prompt.logits[0], answer.logits[0]])
            labels = [-100] * len(question.prompt) + question.answer
            losses.append(mean_loss(logits, labels).item())
    assert output.parts["ce"].item() == pytest.approx(expected_mean(losses), rel=1e-4)
    assert output.tokens == sum(
        sum(map(len, e.contexts)) + sum(len(q.prompt) + len(q.answer) for q in e.questions) for e in batch
    )


def test_questions_of_a_long_document_are_about_the_written_stretch():
    runner = question_runner()
    seen = set()
    for step in range(12):
        batch = documents(2, 8, seed=step, questions=1)
        runner.rows.renew(runner.model)
        output = runner.run(step, batch, draw("questions", contexts=3))
        assert runner.rows.contexts == [3, 3]
        assert output.parts["ce"].isfinite()
        first = runner.rows.memory.short_term.ordered(0)[0]
        for start in range(6):
            values = written(runner, 0, batch[0].contexts[start : start + 3]).short_term.ordered(0)[0]
            if values.shape == first.shape and torch.allclose(values, first, atol=1e-4):
                seen.add(start)
    assert len(seen) >= 3


def test_a_stretch_has_questions_if_the_document_has():
    runner = question_runner()
    for step in range(8):
        batch = documents(2, 9, seed=step, questions=1)
        batch = [Example(e.id, e.contexts, e.target, e.labels, False, (e.questions[4],)) for e in batch]
        runner.run(step, batch, draw("questions", contexts=2))  # would refuse a step without questions


def test_a_cut_sentence_is_asked_for_only_where_both_of_its_contexts_were_written():
    runner = question_runner()
    for step in range(8):
        batch = documents(2, 9, seed=step, questions=1)
        cut = [replace(e.questions[4], cut=True) for e in batch]
        batch = [Example(e.id, e.contexts, e.target, e.labels, False, (q,)) for e, q in zip(batch, cut, strict=True)]
        runner.rows.renew(runner.model)
        runner.run(step, batch, draw("questions", contexts=2))  # would refuse a step without questions
        with pytest.raises(MaskedBatchError):
            runner.run(step, batch, draw("questions", contexts=1))


def test_help_finds_what_is_asked_and_does_not_count_as_recall():
    losses = []
    for share in (0.0, 1.0):
        runner = question_runner(memory={"retrieval_budget": 4})
        output = runner.run(0, documents(2, 9, questions=1), draw("questions", help=share))
        assert ("recall" in output.parts) == (share == 0.0)
        losses.append(output.parts["ce"].item())
    assert losses[0] != losses[1]


def test_with_lent_stores_the_same_questions_are_searched_for_among_more():
    """The memories themselves, and what the writes learn from, stay as they are."""
    parts = []
    for share in (0.0, 1.0):
        questions = {"questions": {"share": 1.0, "per_memory": 3, "rebuild": 0.0, "lend_stores": share}}
        runner = question_runner(tasks=questions, memory={"retrieval_budget": 4})
        parts.append(runner.run(0, documents(2, 9, questions=1), draw("questions")).parts)
        held = [len(store) for store in runner.rows.memory.long_term]
        assert held == [20, 20]
    chance = [one["recall"] / one["recall_over_chance"] for one in parts]
    assert chance[1].item() == pytest.approx(chance[0].item() / 2)
    assert parts[1]["retriever"] > parts[0]["retriever"]


def test_questions_without_any_are_refused_by_name():
    with pytest.raises(MaskedBatchError, match="document-0-0, document-0-1"):
        question_runner().run(0, documents(2, 3), draw("questions"))


def test_rebuilding_reads_the_write_and_what_it_read():
    runner = question_runner(tasks={"questions": {"share": 1.0, "per_memory": 3, "rebuild": 0.5}, "gradient_writes": 1})
    batch = documents(2, [4, 1], questions=1)
    output = runner.run(0, batch, draw("questions"))
    model, losses = runner.model, []
    for row, example in enumerate(batch):
        before = written(runner, row, example.contexts[:-1]).context(0)[None] if len(example.contexts) > 1 else None
        ids = example.contexts[-1]
        with torch.no_grad():
            delta = model.write(torch.tensor([ids]), before)
        tokens = delta if before is None else torch.cat([before, delta], dim=2)
        losses.append(plain_read(model, ids, ids, memory_tokens=tokens))
    assert output.parts["rebuild"].item() == pytest.approx(expected_mean(losses), rel=1e-4)
    parts = output.parts
    total = parts["ce"] + parts["retriever"] + 0.5 * parts["rebuild"]
    assert output.loss.item() == pytest.approx(total.item(), rel=1e-5)
    output.loss.backward()
    assert {"write_adapter", "new_memory_positional_emb"} <= {group_of(n) for n in gradients(model)}


def test_questions_prefer_contexts_with_gradient():
    rng = np.random.default_rng(0)
    questions = [(Question([1], [2], context), context) for context in range(10) for _ in range(5)]
    counts: Counter[int] = Counter()
    for _ in range(50):
        chosen = choose_questions(rng, questions, [3, 6, 9], 10, 12)
        assert len(chosen) == 12 and len({id(one) for one in chosen}) == 12
        counts.update(context for _, context in chosen)
    assert counts[9] >= 2 * 50 and counts[3] + counts[6] >= 8 * 50
    assert all(counts[context] for context in (0, 1, 2, 4, 5, 7, 8))  # two are about any
    assert choose_questions(rng, questions[:2], [], 10, 12) != [] and len(choose_questions(rng, [], [], 3, 12)) == 0


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
