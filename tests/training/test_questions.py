"""Questions about what was written: which are asked, their loss against a plain reference, and rebuilding a write."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from mplus_cli.training.examples import Example, Question
from mplus_cli.training.groups import group_of
from mplus_cli.training.losses import MaskedBatchError
from mplus_cli.training.tasks.questions import choose_questions
from tests.training.helpers import (
    documents,
    draw,
    expected_mean,
    gradients,
    mean_loss,
    plain_read,
    runner_of,
    tiny_recipe,
    written,
)


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
