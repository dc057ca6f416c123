"""Which task a step runs: the published process and its figures, a pure function of (seed, step)."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from mplus_cli.training.tasks.choosing import TaskChooser
from tests.training.helpers import tiny_recipe

STEPS = 12_000


def simulate(stage, steps=STEPS, seed=1, **sections):
    chooser = TaskChooser(tiny_recipe(stage, **sections), seed)
    return [chooser.draw(step) for step in range(steps)]


@pytest.mark.parametrize(("stage", "share", "distance"), [(1, 1 / 7, 5.0), (2, 1 / 7, 5.0), (3, 1 / 6.2, 20.8)])
def test_share_and_distance_of_revisits(stage, share, distance):
    """14% of steps (stages 1, 2) and 16% (stage 3), full-context steps apart; distances 5.0 and 20.8 documents."""
    documents = [draw for draw in simulate(stage) if draw.task != "full_context"]
    revisits = sum(draw.task == "revisit" for draw in documents)
    assert revisits / len(documents) == pytest.approx(share, abs=0.01)
    since, distances, kept = 0, [], False
    for draw in documents:
        if draw.task == "revisit":
            distances.append(since)
            kept = True
        elif draw.cache:
            since, kept = 0, False
        else:
            since += not kept  # the published count leaves out the document that a kept cache passes over
            kept = False
    assert sum(distances) / len(distances) == pytest.approx(distance, rel=0.1)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_shares_of_the_other_tasks(stage):
    recipe = tiny_recipe(stage)
    draws = simulate(stage)
    counts = Counter(draw.task for draw in draws)
    assert counts["full_context"] / len(draws) == pytest.approx(recipe.tasks.full_context, abs=0.01)
    new = counts["two_chunk"] + counts["multi_chunk"]
    assert counts["multi_chunk"] / new == pytest.approx(recipe.tasks.full_memory, abs=0.012)


def test_rules_of_revisiting():
    draws = [draw for draw in simulate(3, 5_000) if draw.task != "full_context"]
    assert draws[0].cache and draws[0].task != "revisit"
    for before, after in pairwise(draws):
        if before.task == "revisit" or before.cache:
            assert after.task != "revisit"  # never twice in a row, never right after caching
        if after.cache:
            assert before.task == "revisit"  # the cached document is replaced after a revisit only
    after_revisit = [b.cache for a, b in pairwise(draws) if a.task == "revisit"]
    assert sum(after_revisit) / len(after_revisit) == pytest.approx(0.2, abs=0.05)


def test_revisits_teach_the_retriever_on_full_memory_steps_only():
    flags = [draw.full_memory for draw in simulate(3, 10_000) if draw.task == "revisit"]
    assert sum(flags) / len(flags) == pytest.approx(0.8, abs=0.04)


def test_draws_are_a_function_of_seed_and_step():
    """Every process, in any order, after any interruption."""
    recipe = tiny_recipe(3, tasks={"questions": {"share": 0.3}, "fresh_memory": 0.1})
    whole = [TaskChooser(recipe, 3).draw(step) for step in range(300)]
    chooser = TaskChooser(recipe, 3)
    assert [chooser.draw(step) for step in (299, 7, 7, 150, 0)] == [whole[s] for s in (299, 7, 7, 150, 0)]
    assert [TaskChooser(recipe, 4).draw(step) for step in range(300)] != whole


def test_caps_follow_the_schedule():
    draws = simulate(1, 300, tasks={"max_contexts": [[100, 5], [200, 9], [None, 20]]})
    for step, draw in enumerate(draws):
        if draw.task == "multi_chunk":
            assert draw.contexts == (5 if step < 100 else 9 if step < 200 else 20)
        if draw.task == "two_chunk":
            assert draw.contexts == 1


def test_our_tasks_take_their_shares():
    ours = {"questions": {"share": 0.5, "fewest_contexts": 3, "help": 0.8, "help_until": 1_000}}
    draws = simulate(
        3, 4_000, tasks=ours | {"in_context": {"share": 0.2}, "copying": {"share": 0.1}, "max_contexts": [[None, 8]]}
    )
    counts = Counter(draw.task for draw in draws)
    for name, share in (("questions", 0.5), ("in_context", 0.2), ("copying", 0.1)):
        assert counts[name] / len(draws) == pytest.approx(share, abs=0.03)
    asked = [(step, draw) for step, draw in enumerate(draws) if draw.task == "questions"]
    assert {draw.contexts for _, draw in asked} == set(range(3, 9))
    assert all(draw.help == pytest.approx(max(0.0, 0.8 * (1 - step / 1_000))) for step, draw in asked)


def test_copying_comes_first():
    copying = {"share": 0.0, "first": 7}
    draws = simulate("base", 200, tasks={"in_context": {"share": 0.5}, "copying": copying})
    assert [draw.task for draw in draws[:7]] == ["copying"] * 7
    assert {draw.task for draw in draws[7:]} == {"in_context", "full_context"}
    recipe = tiny_recipe("base", tasks={"in_context": {"share": 0.5}, "copying": copying})
    assert "copying" in [draw.task for draw in TaskChooser(recipe, 1).all_tasks()], "the first step tries it"


def test_a_new_memory_forgets_the_cached_document():
    draws = [d for d in simulate(1, 3_000, tasks={"fresh_memory": 0.2}) if d.task != "full_context"]
    assert any(draw.fresh for draw in draws)
    for draw in draws:
        assert not (draw.fresh and draw.task == "revisit")
        assert draw.cache or not draw.fresh
    assert not any(draw.task == "revisit" for draw in simulate(1, 500, tasks={"fresh_memory": 1.0}))


@pytest.mark.parametrize(
    ("stage", "tasks", "names"),
    [
        (1, {}, ["full_context", "two_chunk", "multi_chunk", "revisit"]),
        (3, {"full_context": 0.0, "full_memory": 1.0, "revisit": 0.0}, ["multi_chunk"]),
        (3, {"questions": {"share": 1.0}}, ["questions"]),
        ("base", {"copying": {"share": 0.5}, "in_context": {"share": 0.2}}, ["copying", "in_context", "full_context"]),
    ],
)
def test_all_tasks_that_can_occur(stage, tasks, names):
    chooser = TaskChooser(tiny_recipe(stage, tasks=tasks), 0)
    assert [draw.task for draw in chooser.all_tasks()] == names
    assert {chooser.draw(step).task for step in range(400)} == set(names)
