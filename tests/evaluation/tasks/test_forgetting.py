"""Forgetting: when things are told, what an answer counts as, and memory tokens counted against the drop rule."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch

from mplus_cli.core.configuration_mplus import MPlusConfig
from mplus_cli.core.loading import encode, load_tokenizer
from mplus_cli.errors import UsageError
from mplus_cli.evaluation.drop_rule import DropRule
from mplus_cli.evaluation.registry import make_options
from mplus_cli.evaluation.report import finish
from mplus_cli.evaluation.runs import find_pairs
from mplus_cli.evaluation.scoring import score_all
from mplus_cli.evaluation.task import TaskSettings
from mplus_cli.evaluation.tasks.forgetting import Forgetting, Options, course_of, outcome
from mplus_cli.evaluation.tasks.forgetting_plot import survival, table
from mplus_cli.evaluation.tasks.forgetting_story import CHANGED, Course
from mplus_cli.evaluation.tasks.survival import curve, left_of
from mplus_cli.inference.locate import bundled_model
from tests.evaluation.helpers import answers, evaluate
from tests.evaluation.tasks.helpers import is_png, results_of, task_settings
from tests.fixtures import byte_tokenizer, tiny_model

TASK = Forgetting()
ROOMY = tiny_model(chunk_size=400)  # bytes: room for a telling and a passage


def items(*options: str, model=ROOMY, **given):
    return list(TASK.items(task_settings(TASK, *options, model=model, **{"limit": 3} | given)))


def bundled(*options: str, **given) -> TaskSettings:
    """Settings for the bundled model."""
    folder = bundled_model()
    if folder is None:
        pytest.skip("this checkout has no bundled model")
    made = make_options(Options, options, "forgetting")
    return TaskSettings(load_tokenizer(folder), MPlusConfig.from_pretrained(folder), made, **{"limit": 2} | given)


# -- when things are told --


@pytest.mark.parametrize("seed", range(20))
def test_everything_is_told_and_asked_in_its_time(seed):
    rng = random.Random(seed)
    gaps = [rng.randint(1, 30) for _ in range(rng.randint(1, 4))]
    sinces = [rng.randint(0, 40) for _ in range(rng.randint(1, 4))]
    counts = [rng.randint(1, 4) for _ in range(rng.randint(1, 3))]
    course = Course.fitting(DropRule(8, 60), gaps, sinces, counts, rng.randint(1, 3), None)
    assert course.warm == 8 and course.gaps == tuple(sorted(set(gaps))) and course.counts == tuple(sorted(set(counts)))
    told = course.tellings(rng)
    assert len(told) == course.facts == len(set(gaps)) * len(set(counts)) * course.people
    for gap, writes in told:
        assert writes[0] >= course.warm and writes[-1] + max(sinces) < course.total
        assert {later - earlier for earlier, later in zip(writes, writes[1:], strict=False)} <= {gap}
    for gap in course.gaps:
        assert sorted(len(writes) - 1 for one, writes in told if one == gap) == sorted([*course.counts] * course.people)


def test_a_length_takes_the_longest_away_first():
    whole = Course.fitting(DropRule(8, 32), (1, 5, 20), (0, 10), (1, 2), 1, None)
    assert whole.total == 4 + 6 + 40 + 10
    assert Course.fitting(DropRule(8, 32), (1, 5, 20), (0, 10), (1, 2), 1, 60) == whole
    for most in range(59, 9, -1):
        course = Course.fitting(DropRule(8, 32), (1, 5, 20), (0, 10), (1, 2), 1, most)
        assert course.total <= most and course.gaps[0] == 1 and course.sinces[0] == 0
        assert course.gaps in ((1,), (1, 5)) and course.sinces in ((0,), (0, 10))
    with pytest.raises(UsageError, match="7 writes are too few for 8, of which 4 fill short-term memory"):
        Course.fitting(DropRule(8, 32), (1, 5, 20), (0, 10), (1, 2), 1, 7)


def test_the_defaults_are_half_lives_of_random_dropping():
    settings = bundled()
    course, half = course_of(settings), DropRule.of(settings.config).half_life
    assert course.gaps == (round(half / 4), round(half), round(4 * half))
    assert course.sinces == (0, round(half), round(4 * half))
    with pytest.raises(UsageError, match="need at least one value each"):
        items("gaps=[]")
    with pytest.raises(UsageError, match=r"a write of 64 tokens is too short for (what it has to tell|any passage)"):
        items(model=tiny_model())


# -- the story --


def check_story(item, settings: TaskSettings) -> None:
    """Everything that must hold of a story, whatever the tokenizer."""
    tokenizer, size = settings.tokenizer, settings.config.chunk_size
    texts = [document.text for document in item.documents]
    assert all(0 < len(encode(tokenizer, text)) <= size for text in texts)
    assert sum(len(encode(tokenizer, text)) for text in texts) > 0.5 * size * len(texts)  # writes are filled
    assert sum(question.metadata["last"] for question in item.questions) == 1
    people = {}
    for question in item.questions:
        given, (new,) = question.metadata, question.references
        assert question.after == given["told"][-1] + 1 + given["since"] <= len(texts)
        assert len(given["told"]) == given["contradictions"] + 1 == len(given["old"]) + 1
        assert len({new, *given["old"]}) == len(given["old"]) + 1
        assert question.options == tuple(f" {value}" for value in (new, *reversed(given["old"])))
        for write, value in zip(given["told"], (*given["old"], new), strict=True):
            assert value in texts[write]
        if given["kind"] == "home":  # an invented name stands where it is told and nowhere else
            assert [write for write, text in enumerate(texts) if new in text] == [given["told"][-1]]
        if given["contradictions"]:
            assert {b - a for a, b in zip(given["told"], given["told"][1:], strict=False)} == {given["gap"]}
        else:
            assert "gap" not in given
        people.setdefault(question.id.split("-")[0], []).append((given["contradictions"], given["since"]))
    sinces = course_of(settings).sinces
    for asked in people.values():  # every time after the last contradiction
        assert [since for count, since in asked if count] == list(sinces)


@pytest.mark.parametrize("option", ["told=changed", "told=plain", "kinds=[home,trade,food,instrument]"])
def test_stories_tell_what_is_asked(option):
    settings = bundled(option)
    made = list(TASK.items(settings))
    for item in made:
        check_story(item, settings)
    again = list(TASK.items(settings))
    assert again == made and len(made) == 2
    assert next(iter(TASK.items(bundled(option, limit=1)))) == made[0]
    assert list(TASK.items(bundled(option, seed=1))) != made


def test_stories_of_another_tokenizer_and_size():
    settings = task_settings(TASK, "gaps=[2,5]", "sinces=[0,3]", model=ROOMY, limit=2, length=400 * 24)
    for item in TASK.items(settings):
        check_story(item, settings)
        assert len(item.documents) <= 24


def test_every_kind_has_wordings_for_a_change():
    for kind, wordings in CHANGED.items():
        settings = bundled(f"kinds=[{kind}]", limit=1)
        (item,) = TASK.items(settings)
        told = {question.metadata["told"][-1] for question in item.questions if question.metadata["contradictions"]}
        assert all("{n}" in wording and wording.count("{v}") == 1 for wording in wordings)
        texts = " ".join(item.documents[write].text for write in told)
        assert any(mark in texts for mark in (" now.", " gone to live in ", "The new home of", "the new home of"))


# -- what an answer counts as --


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("Velford", "new"),
        ("in velford.", "new"),
        ("Sorham", "old"),
        ("Delby", "old"),
        ("from Sorham to Velford", "old"),
        ("Velford, no longer Sorham", "new"),
        ("Velfordshire", "neither"),
        ("New Velford Bay", "new"),
        ("", "neither"),
        ("I do not know", "neither"),
    ],
)
def test_an_answer_is_what_it_names_first(text, counted):
    sample = {"text": text, "metadata": {"old": ["Sorham", "Delby"], "contradictions": 2}, "extra": {}}
    assert outcome(sample, ["Velford"]) == counted
    scores = {name: TASK.metrics[name](sample, ["Velford"]) for name in ("new", "old", "neither", "uncontradicted")}
    assert scores == {"new": counted == "new", "old": counted == "old", "neither": counted == "neither"} | {
        "uncontradicted": None
    }
    first = {"text": text, "metadata": {"old": [], "contradictions": 0}, "extra": {}}
    assert TASK.metrics["uncontradicted"](first, ["Velford"]) == float(counted == "new" or "Velford" in text.split())
    assert TASK.metrics["new"](first, ["Velford"]) is None


def test_a_longer_name_that_begins_alike_is_the_one_that_is_named():
    sample = {"text": "pea soup with bread", "metadata": {"old": ["pea"], "contradictions": 1}, "extra": {}}
    assert outcome(sample, ["pea soup"]) == "new"


def test_preference_is_the_likeliest_of_all_values():
    def preference(*logprobs: float, contradictions: int = 1):
        sample = {"metadata": {"contradictions": contradictions}, "extra": {"option_logprobs": list(logprobs)}}
        return TASK.metrics["prefers_new"](sample, [])

    assert (preference(-1.0, -2.0), preference(-2.0, -1.0), preference(-1.0, -1.0)) == (1.0, 0.0, 0.5)
    assert preference(-1.0, contradictions=0) is None
    assert TASK.metrics["prefers_new"]({"metadata": {"contradictions": 1}, "extra": {}}, []) is None


# -- survival --


def fill(model, batch: int, writes: int, seed: int = 0):
    """A memory with random tokens, by the memory's own writing."""
    memory = model.new_memory(batch, [seed * 1000 + row for row in range(batch)])
    keys = model.memory_keys if memory.long_term else None
    torch.manual_seed(seed)
    config = model.config
    shape = (batch, memory.num_layers, config.memory_tokens_per_write, config.text_config.hidden_size)
    for _ in range(writes):
        memory.append_rows(range(batch), torch.randn(shape), keys)
    return memory


def test_counts_are_those_of_counting_one_by_one():
    memory = fill(tiny_model(), 2, 14)
    spans = [(8 * write, 8 * write + 8) for write in range(14)]
    for row in range(2):
        for (start, end), left in zip(spans, left_of(memory, row, spans), strict=True):
            near = far = 0
            for layer in range(3):
                near += sum(start <= at < end for at in memory.short_term.created[row, layer].tolist())
                far += sum(start <= at < end for at in memory.long_term[row].layers[layer].all_created().tolist())
            assert (left.short, left.held, left.made) == (near, near + far, 24)
            assert left.short <= left.held <= left.made
            assert left.writes == ((14 * 8 - end) // 8 if end >= 32 else None)
    uneven = left_of(memory, 0, [(40, 56), (48, 52)])
    assert [left.writes for left in uneven] == [None, None] and uneven[0].made == 48  # no single full writes


def test_what_is_counted_is_what_random_dropping_leaves():
    """60 memories: the theory lies within the interval as often as that promises, and never far outside."""
    model = tiny_model()
    memory, rule = fill(model, 60, 24), DropRule.of(model.config)
    spans = [(8 * write, 8 * write + 8) for write in range(24)]
    counted = [
        [left.writes, left.short, left.held, left.made]
        for row in range(60)
        for left in left_of(memory, row, spans)
        if left.writes is not None
    ]
    rows = curve(counted, rule)
    assert [row["writes"] for row in rows] == list(range(21)) and {row["tokens"] for row in rows} == {60 * 3 * 8}
    assert rows[0]["measured"] == rows[0]["expected"] == 1.0
    inside = [row["low"] <= row["expected"] <= row["high"] for row in rows]
    assert sum(inside) >= 0.8 * len(rows)  # shares of neighbouring ages go together
    for row in rows:
        spread = math.sqrt(row["expected"] * (1 - row["expected"]) / row["tokens"])
        assert abs(row["measured"] - row["expected"]) <= 4.5 * spread + 1e-12
        assert row["low"] - 1e-9 <= row["measured"] <= row["high"] + 1e-9
    wrong = curve(counted, DropRule(rule.write, round(1.25 * rule.size)))  # the test can tell a quarter more memory
    assert sum(row["low"] <= row["expected"] <= row["high"] for row in wrong[1:10]) == 0


def test_long_term_memory_holds_what_short_term_memory_drops_until_it_is_full():
    model = tiny_model()
    memory = fill(model, 1, 9)
    spans = [(8 * write, 8 * write + 8) for write in range(9)]
    assert all(left.held == left.made for left in left_of(memory, 0, spans))  # 72 of 32 + 80
    memory = fill(model, 1, 40)
    spans = [(8 * write, 8 * write + 8) for write in range(40)]
    held = [left.held for left in left_of(memory, 0, spans)]
    assert held[0] < 24 and held[-1] == 24
    bare = fill(model, 1, 9)
    bare.long_term = []
    assert all(left.held == left.short for left in left_of(bare, 0, spans[:9]))


# -- on real models --


def test_the_bundled_model_end_to_end(tmp_path):
    bundled()
    given = {"limit": 2, "systems": ("mplus", "memoryllm", "closed-book"), "batch": 2}
    settings = ("gaps=[1,6]", "sinces=[0,4]", "contradictions=[1]")
    evaluate(tmp_path / "out", Path("default"), "forgetting", settings=settings, **given)
    ((_, results),), drawn, _ = finish(tmp_path / "out", lambda line: None)
    mplus, memoryllm, closed = results
    for one in results:
        scores = one.results["scores"]
        assert sum(scores[name]["mean"] for name in ("new", "old", "neither")) == pytest.approx(1)
        assert scores["new"]["n"] == 2 * 2 * 2 and scores["uncontradicted"]["n"] == 2 * 3
        assert {"new", "old"} <= set(scores) and 0 <= scores["prefers_new"]["mean"] <= 1
    assert closed.results["scores"]["survival"]["mean"] is None and survival(closed) == []
    assert closed.results["scores"]["uncontradicted"]["mean"] == 0
    assert mplus.results["scores"]["uncontradicted"]["mean"] > 0.5  # it remembers at all
    rule = DropRule.of(mplus.run["model"]["config"])
    for one in (mplus, memoryllm):
        for sample in one.samples:
            assert sample["extra"]["survival_expected"] == rule.survival(sample["metadata"]["since"])
            assert sample["extra"]["survival"] <= sample["extra"]["held"]
            if sample["metadata"]["since"] == 0:
                assert sample["extra"]["survival"] == 1.0
        assert sum("left" in sample["extra"] for sample in one.samples) == 2  # once a story
        rows = survival(one)
        assert [row["writes"] for row in rows] == list(range(len(rows))) and len(rows) >= 12
        assert sum(row["low"] <= row["expected"] <= row["high"] for row in rows) >= 0.85 * len(rows)
    assert all(row["held"] == 1.0 for row in survival(mplus))
    assert all(row["held"] == row["measured"] for row in survival(memoryllm))
    written = json.loads((tmp_path / "out" / "forgetting" / "forgetting.json").read_text())
    assert list(written) == ["mplus", "memoryllm", "closed-book"] and written == json.loads(json.dumps(table(results)))
    pytest.importorskip("matplotlib")
    assert [path.name for path in drawn] == ["forgetting.png", "survival.png"] and all(map(is_png, drawn))


def test_looking_changes_no_answer_and_neither_does_the_batch(tmp_path: Path):
    folder = tmp_path / "model"
    ROOMY.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    given = {"limit": 2, "systems": ("mplus", "window"), "settings": ("gaps=[1]", "sinces=[0,1]", "contradictions=[1]")}
    together = evaluate(tmp_path / "a", folder, "forgetting", **given)
    alone = evaluate(tmp_path / "b", folder, "forgetting", **(given | {"batch": 1}))
    for one, other in zip(together, alone, strict=True):
        for id, sample in answers(one).items():
            again = answers(other)[id]
            first, second = (each["extra"].pop("option_logprobs") for each in (sample, again))
            assert first == pytest.approx(second, abs=1e-3) and sample == again
    assert "survival" in next(iter(answers(together[0]).values()))["extra"]
    assert "survival" not in next(iter(answers(together[1]).values()))["extra"]


def test_curves_of_a_system_that_believes_the_first_telling(tmp_path):
    made = items("gaps=[2,6]", "sinces=[0,3]")
    said = {}
    for item in made:
        for question in item.questions:
            said[item.sample_id(question)] = (question.metadata["old"] or question.references)[0]
    one = results_of(TASK, made, said, "mplus", ROOMY.config)
    rows = table([one])["mplus"]["answers"]
    assert {row["contradictions"] for row in rows} == {0, 1, 2}
    for row in rows:
        if row["contradictions"]:
            assert (row["new"]["mean"], row["old"]["mean"], row["neither"]["mean"]) == (0, 1, 0)
            assert "uncontradicted" not in row and row["gap"] in (2, 6)
        else:
            assert row["uncontradicted"]["mean"] == 1 and "new" not in row and row["gap"] is None
    pytest.importorskip("matplotlib")
    (path,) = TASK.plot([one], tmp_path)  # no memory was looked into, so no survival
    assert path.name == "forgetting.png" and is_png(path)


def test_scores_are_made_again_from_the_files_alone(tmp_path, model_folder):
    with pytest.raises(UsageError, match="a write of 64 tokens is too short for"):
        evaluate(tmp_path / "no", model_folder, "forgetting", limit=1, systems=("mplus",))
    assert not (tmp_path / "no" / "forgetting").exists()
    folder = tmp_path / "model"
    ROOMY.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    evaluate(
        tmp_path / "out", folder, "forgetting", limit=1, systems=("memoryllm",), settings=("gaps=[1]", "sinces=[1]")
    )
    ((_, results),) = score_all(find_pairs([tmp_path / "out"]), lambda line: None)
    assert results[0].results["scores"]["survival"]["mean"] == pytest.approx(0.75, abs=0.2)  # (1 - K/N) after one write
