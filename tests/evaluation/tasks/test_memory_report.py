"""The memory report: measurements that can be checked by hand, and the whole of it on a small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mplus_cli.errors import UsageError
from mplus_cli.evaluation.drop_rule import DropRule
from mplus_cli.evaluation.tasks.memory_anatomy import apart, effective_rank, examine, lens_shares, text_states
from mplus_cli.evaluation.tasks.memory_report import MemoryReport
from mplus_cli.evaluation.tasks.memory_report_plot import summary
from mplus_cli.evaluation.tasks.memory_writes import Write, spread, survival, writes_of
from tests.evaluation.tasks.helpers import is_png, results_of, system, task_settings
from tests.fixtures import byte_tokenizer, tiny_model

TASK = MemoryReport()
MODEL = tiny_model()


def items(*options: str, model=MODEL, **given):
    return list(TASK.items(task_settings(TASK, *options, model=model, **given)))


def measured(name: str, made, model=MODEL):
    return {answer.sample_id: answer.extra for answer in TASK.measure(system(name, model), made)}


@pytest.fixture(scope="module")
def report():
    made = items(length=2_000, limit=2)
    return made, measured("mplus", made)


# -- writes --


def test_writes_count_as_the_memory_does():
    model = tiny_model()
    chunks = [list(range(3, 9)), list(range(3, 67)), [5] * 3, list(range(3, 67))]
    memory = model.new_memory()
    for chunk, write in zip(chunks, writes_of(chunks, 8), strict=True):
        assert write.start == memory.created_total[0]
        model.inject(torch.tensor([chunk]), memory)
        assert write.start + write.made == memory.created_total[0]


def test_a_token_stands_for_the_place_it_was_made_at():
    write = Write(list(range(100, 164)), 40, 8)
    assert write.places(torch.arange(40, 48)).tolist() == list(range(56, 64))
    short = Write([1, 2, 3], 48, 8)  # five tokens of the write before are rewritten
    assert short.places(torch.arange(48, 56)).tolist() == [-5, -4, -3, -2, -1, 0, 1, 2]


def test_survival_is_counted_by_write_and_by_place():
    writes = [Write([0] * 16, 0, 8), Write([0] * 16, 8, 8)]
    left = survival(writes, {"short": torch.tensor([0, 1, 8, 9, 10, 11, 12, 13, 14, 15]), "long": torch.tensor([7])})
    assert left["short"] == [0.25, 1.0] and left["long"] == [0.125, 0.0]
    assert left["short_by_place"] == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert left["long_by_place"] == [0.0] * 7 + [0.5]


def test_spread_takes_the_ends():
    assert spread(3, 11) == [0, 5, 10] and spread(8, 3) == [0, 1, 2] and spread(2, 2) == [0, 1]


# -- measures --


def test_the_rank_of_rows_that_fill_k_dimensions_is_k():
    for dimensions in (1, 3, 6):
        rows = torch.zeros(2 * dimensions, 10)
        for i in range(dimensions):
            rows[2 * i, i], rows[2 * i + 1, i] = 1.0, -1.0
        assert effective_rank(rows + 5) == pytest.approx(dimensions)
    assert effective_rank(torch.ones(4, 10)) is None


def test_two_samples_of_one_set_do_not_lie_apart_and_shifted_ones_do():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4_000, 20, generator=generator)
    assert apart([(rows[:300], rows[300:])]) < 0.05
    shifted = rows[300:] + 0.0
    shifted[:, 0] += 20**0.5
    assert apart([(rows[:300], shifted)]) == pytest.approx(1.0, abs=0.1)
    assert apart([(rows[:300], shifted), (rows[:1], shifted)]) == pytest.approx(1.0, abs=0.1)
    assert apart([(rows[:1], rows)]) is None


def test_states_of_text_are_those_of_the_layers():
    ids = list(range(10, 30))
    states = text_states(MODEL, ids)
    assert states.shape == (3, 20, 32)
    logits = MODEL.lm_head(MODEL.model.norm(states[-1]))
    with torch.inference_mode():
        assert torch.allclose(logits, MODEL(torch.tensor([ids])).logits[0], atol=1e-5)


def test_a_memory_made_of_hidden_states_is_told_as_such():
    """Put in place of the model's own tokens: the states of the text at every place, so that all is known."""
    model = tiny_model(memory_tokens_per_write=64, short_term_size=256)
    chunks = [torch.randint(3, 259, (64,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(4)]
    memory = model.new_memory()
    for chunk in chunks:
        memory.append(0, text_states(model, chunk), None)
    layers = examine(model, byte_tokenizer(), memory.short_term_only(), 0, writes_of(chunks, 64), 4, 3)
    for layer in layers:
        assert layer["own_short"] == pytest.approx(1.0, abs=1e-4) and layer["nearest_is_own_short"] == 1.0
        assert layer["source_short"] == pytest.approx(1.0, abs=1e-4) and layer["offset_short"] < 1e-3
        assert layer["other_short"] == pytest.approx(layer["to_other_text"], abs=1e-4) and layer["other_short"] < 0.999
        assert layer["norm_short"] == pytest.approx(layer["norm_text"], rel=1e-4)
        assert layer["reads_short"] == pytest.approx(layer["reads_text"])
        assert layer["predicts_short"] == pytest.approx(layer["predicts_text"])
        assert layer["rank_short"] == pytest.approx(layer["rank_text"], rel=1e-3)
        assert layer["survival"]["short"] == [1.0] * 4 and "long" not in layer["survival"]
    grid = [layer["own_by_layer_short"] for layer in layers]
    assert all(max(row) == row[place] for place, row in enumerate(grid))


# -- the task --


def test_one_point_for_every_layer(report):
    made, extras = report
    assert list(extras) == [f"excerpt-{i}/layer-{layer}" for i in range(2) for layer in range(3)]
    for extra in extras.values():
        json.dumps(extra)
        assert extra["writes"] == 32  # ceil(2000 / 64)
        for metric in TASK.metrics.values():
            assert metric({"extra": extra}, ()) is not None


def test_survival_in_the_report_is_the_memory_s(report):
    made, extras = report
    extra = extras["excerpt-0/layer-1"]
    kept = extra["survival"]
    assert kept["short"][-1] == 1.0 and sum(kept["short"]) * 8 == pytest.approx(
        32, abs=0.01
    )  # short-term memory is full
    assert sum(kept["long"]) * 8 == pytest.approx(80, abs=0.01)  # and long-term memory
    assert kept["long"][0] == 0.0  # the oldest are gone
    assert extra["survival_expected"][-2] == pytest.approx(DropRule.of(MODEL.config).survival(1))


def test_what_all_memory_tokens_share_is_an_offset_and_no_unlikeness():
    model = tiny_model(memory_tokens_per_write=64, short_term_size=256)
    chunks = [torch.randint(3, 259, (64,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(4)]
    memory = model.new_memory()
    for chunk in chunks:
        memory.append(0, text_states(model, chunk) + 3.0, None)
    for layer in examine(model, byte_tokenizer(), memory.short_term_only(), 0, writes_of(chunks, 64), 4, 3):
        assert layer["offset_short"] == pytest.approx(3 * 32**0.5, rel=1e-3)
        assert layer["own_short"] == pytest.approx(1.0, abs=1e-4)
        assert layer["rank_short"] == pytest.approx(layer["rank_text"], rel=1e-3)


def test_nearest_words_are_compared_with_the_own_the_next_and_all_of_the_chunk():
    model = tiny_model()
    with torch.no_grad():
        weight = model.lm_head.weight
        weight.copy_(weight / weight.norm(dim=1, keepdim=True))
    write = Write([10, 20, 30, 40], 0, 4)
    words, places = [10, 30, 40, 99, 40], torch.tensor([0, 1, 1, 2, 3])
    with torch.no_grad():
        reads, predicts, in_chunk = lens_shares(model, model.lm_head.weight[words], places, write)
    assert reads.tolist() == [1, 0, 0, 0, 1]
    assert predicts.tolist() == [0, 1, 0, 0, 0]
    assert in_chunk.tolist() == [1, 1, 1, 0, 1]


def test_long_term_tokens_are_those_of_the_chunk_they_are_measured_with():
    """As above, with a store that is full and has moved on; wrong rows would not be like their own places."""
    model = tiny_model(memory_tokens_per_write=64, short_term_size=128, long_term_capacity=256)
    chunks = [torch.randint(3, 259, (64,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(9)]
    memory = model.new_memory()
    for chunk in chunks:
        memory.append(0, text_states(model, chunk), model.memory_keys)
    for layer in examine(model, byte_tokenizer(), memory, 0, writes_of(chunks, 64), 9, 3):
        assert sum(layer["survival"]["long"]) == pytest.approx(4.0, abs=1e-3) and layer["survival"]["long"][0] < 1
        assert layer["own_long"] > 0.95 and layer["own_short"] > 0.9
        assert layer["reads_long"] == pytest.approx(layer["reads_text"], abs=0.1)


def test_words_are_listed_with_the_text_before_them(report):
    made, extras = report
    text = made[0].documents[0].text
    for extra in (extras["excerpt-0/layer-0"], extras["excerpt-0/layer-2"]):
        assert len(extra["words_short"]) >= 1
        for word in extra["words_short"] + extra["words_long"]:
            assert word["before"] + word["own"] in text
            assert len(word["nearest"]) == len(word["probability"]) == 5
            assert word["probability"] == sorted(word["probability"], reverse=True)


def test_without_long_term_memory_there_is_nothing_about_it():
    made = items(length=1_000, limit=1)
    for extra in measured("memoryllm", made).values():
        assert "norm_long" not in extra and "short_to_long" not in extra and extra["norm_short"] > 0
        assert TASK.metrics["short_to_long"]({"extra": extra}, ()) is None


def test_a_single_chunk_can_be_measured():
    for extra in measured("mplus", items(length=40, limit=1)).values():
        assert extra["writes"] == 1 and extra["norm_long"] is None and extra["survival"]["short"] == [1.0]


def test_items_do_not_depend_on_what_is_measured_with_them():
    made = items(length=1_200, limit=2)
    together = measured("mplus", made)
    alone = measured("mplus", made[1:])
    for key, extra in alone.items():
        for name in ("norm_short", "own_long", "source_short", "rank_short", "short_to_long"):
            assert extra[name] == pytest.approx(together[key][name], rel=1e-3), (key, name)
        assert extra["survival"] == together[key]["survival"]


def test_systems_without_memory_are_refused():
    with pytest.raises(UsageError, match="closed-book has none"):
        measured("closed-book", items(length=500, limit=1))


def test_the_report_and_its_pictures(report, tmp_path: Path):
    pytest.importorskip("matplotlib")
    made, extras = report
    results = results_of(TASK, made, extras, "mplus", MODEL.config)
    paths = TASK.plot([results], tmp_path)
    assert len(paths) == 2 and all(is_png(path) for path in paths)
    held = json.loads((tmp_path / "memory-report-mplus.json").read_text())
    assert held == json.loads(json.dumps(summary(results.samples)))
    assert held["excerpts"] == 2 and [layer["layer"] for layer in held["layers"]] == [0, 1, 2]
    mean = (extras["excerpt-0/layer-2"]["norm_short"] + extras["excerpt-1/layer-2"]["norm_short"]) / 2
    assert held["layers"][2]["norm_short"] == pytest.approx(mean, abs=1e-4)
    assert len(held["survival"]["short"]) == 32
