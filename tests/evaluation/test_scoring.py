"""Scores: means by group, intervals over items, what is missing; from the files of a run alone."""

from __future__ import annotations

import json
import math
import random

import pytest

from mplus_cli.errors import UsageError
from mplus_cli.evaluation import predictions
from mplus_cli.evaluation.bootstrap import difference, estimate
from mplus_cli.evaluation.predictions import encode_line
from mplus_cli.evaluation.runs import find_pairs
from mplus_cli.evaluation.scoring import score, score_all
from tests.evaluation.helpers import Parrot, answers, evaluate


def test_estimate_of_nothing_of_one_and_of_many():
    assert estimate({}).plain() == {"mean": None, "low": None, "high": None, "n": 0, "items": 0}
    assert estimate({"a": [], "b": [0.25, 0.75]}).plain() == {
        "mean": 0.5, "low": None, "high": None, "n": 2, "items": 1,
    }  # fmt: skip
    found = estimate({str(n): [n / 10] for n in range(11)})
    assert (found.mean, found.n, found.items) == (0.5, 11, 11)
    assert 0.28 < found.low < 0.35 and 0.65 < found.high < 0.72


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draw, covered = random.Random(1), 0
    for _ in range(200):
        found = estimate({str(n): [float(draw.random() < 0.3)] for n in range(60)})
        covered += found.low <= 0.3 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_questions_of_one_item_do_not_count_as_independent():
    alone = estimate({str(n): [float(n % 2)] for n in range(20)})
    repeated = estimate({str(n): [float(n % 2)] * 50 for n in range(20)})
    assert (repeated.mean, repeated.n) == (alone.mean, 1000)
    assert (repeated.low, repeated.high) == (alone.low, alone.high)
    pooled = estimate({str(n): [float(n % 2)] for n in range(1000)})
    assert pooled.high - pooled.low < (repeated.high - repeated.low) / 5


def test_the_mean_is_over_samples_not_over_items():
    assert estimate({"a": [1.0] * 3, "b": [0.0]}).mean == 0.75


def test_equal_extremes_do_not_claim_certainty():
    none = estimate({str(n): [0.0] for n in range(4)})
    assert (none.mean, none.low) == (0.0, 0.0)
    assert math.isclose(none.high, 1 - 0.025**0.25)
    every = estimate({str(n): [1.0, 1.0] for n in range(100)})
    assert every.high == 1.0 and math.isclose(every.low, 0.025**0.01)
    assert estimate({str(n): [0.0] for n in range(4)}, bounded=False).high == 0.0


def test_estimates_repeat_and_do_not_depend_on_how_much_fits_at_once(monkeypatch):
    scores = {str(n): [random.Random(n).random()] for n in range(30)}
    first = estimate(scores)
    monkeypatch.setattr("mplus_cli.evaluation.bootstrap._BLOCK", 100)
    assert estimate(scores) == first


def test_paired_differences_use_shared_samples_only():
    first = {"a": {"1": 0.0, "2": 1.0}, "b": {"1": 0.5}, "c": {"1": 0.0}}
    second = {"a": {"1": 1.0, "2": 1.0, "3": 0.0}, "b": {"1": 0.5}, "d": {"1": 1.0}}
    found = difference(first, second)
    assert (found.mean, found.n, found.items) == (pytest.approx(1 / 3), 3, 2)
    noisy = {str(n): {"q": random.Random(n).random()} for n in range(50)}
    better = {item: {"q": score["q"] + 0.01} for item, score in noisy.items()}
    paired = difference(noisy, better)
    assert paired.low == pytest.approx(0.01) and paired.high == pytest.approx(0.01)
    same = {str(n): {"q": 1.0} for n in range(4)}
    assert difference(same, same).high == -difference(same, same).low == pytest.approx(1 - 0.025**0.25)
    assert difference(same, same, bounded=False).high == 0


def test_results_hold_what_is_needed_to_trust_them(tmp_path, toys, model_folder):
    (pair,) = evaluate(tmp_path / "out", model_folder, limit=6, seed=3)
    _, found, damaged = score(pair)
    results = json.loads((pair.path / "results.json").read_text())
    assert found.results == results and damaged == []
    right = sum(sample["text"].startswith("right") for sample in answers(pair).values())
    assert 0 < right < 18
    assert results["scores"]["exact"]["mean"] == pytest.approx(right / 18)
    assert (results["scores"]["exact"]["n"], results["scores"]["exact"]["items"]) == (18, 6)
    assert (results["expected"], results["scored"], results["missing"]) == (18, 18, 0)
    assert results["metric_version"] == "7" and results["settings"]["seed"] == 3
    assert results["stop_rule"].startswith("an answer ends at its first line break")
    assert results["decoding"] == "greedy" and results["max_new_tokens"] == [3]
    assert results["prompt"]["text"] == "Q1:" and len(results["prompt"]["sha256"]) == 64
    assert results["truncation"]["samples"] == {"none": 18} and results["stopped_by"] == {"line": 18}
    assert results["model"]["weights_sha256"] and results["sessions"][0]["versions"]["torch"]
    assert results["time"]["seconds"]["remember"] == pytest.approx(0.18)
    assert results["time"]["samples_per_second"] > 0 and results["time"]["batch"] == [2]
    assert results["peak_memory"]["host"] > 0
    assert results["bootstrap"]["resamples"] >= 1000


def test_groups_are_every_value_and_every_combination(tmp_path, toys, model_folder):
    (pair,) = evaluate(tmp_path / "out", model_folder, limit=4)
    groups = score(pair)[1].results["groups"]
    assert [group["by"] for group in groups] == [
        *({"distance": distance} for distance in (1, 2, 3)),
        *({"kind": kind} for kind in "ab"),
        *({"distance": distance, "kind": kind} for distance in (1, 2, 3) for kind in "ab"),
    ]
    wanted = [s["text"].startswith("right") for s in answers(pair).values() if s["metadata"]["distance"] == 2]
    assert groups[1]["scores"]["exact"]["mean"] == sum(wanted) / 4


def test_metrics_that_do_not_apply_are_left_out(tmp_path, toys, model_folder, monkeypatch):
    monkeypatch.setattr(
        Parrot, "metrics", {"even": lambda sample, references: 1.0 if sample["metadata"]["distance"] == 2 else None}
    )
    (pair,) = evaluate(tmp_path / "out", model_folder)
    scores = score(pair)[1].results["scores"]
    assert (scores["even"]["mean"], scores["even"]["n"]) == (1.0, 3)


def test_scoring_is_repeatable_and_needs_neither_model_nor_data(tmp_path, toys, model_folder, monkeypatch):
    (pair,) = evaluate(tmp_path / "out", model_folder)
    score(pair)
    first = (pair.path / "results.json").read_bytes()

    def never(*args):
        raise AssertionError("scoring asked for it")

    monkeypatch.setattr("mplus_cli.evaluation.runner.load_model", never)
    monkeypatch.setattr(Parrot, "items", never)
    score(pair)
    assert (pair.path / "results.json").read_bytes() == first


def test_missing_and_damaged_samples_are_counted_and_named(tmp_path, toys, model_folder):
    (pair,) = evaluate(tmp_path / "out", model_folder)
    path = pair.path / predictions.NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], b"{}\n", *lines[6:]]))
    before, warnings = path.read_bytes(), []
    ((_, (found,)),) = score_all(find_pairs([tmp_path / "out"]), warnings.append)
    assert found.results["missing_samples"] == ["item-1/q2", "item-1/q3"]
    assert (found.results["missing"], found.results["damaged_lines"]) == (2, 1)
    assert warnings[0] == f"{path}, line 5: cut off, or not a line of predictions; its sample counts as missing"
    assert warnings[1].startswith("samples are missing: parrot / echo (2 of 9); mplus eval --resume")
    assert path.read_bytes() == before, "scoring changes no predictions"


def test_nothing_finished_is_scored_as_nothing(tmp_path, toys, model_folder):
    (pair,) = evaluate(tmp_path / "out", model_folder)
    (pair.path / predictions.NAME).write_bytes(b"")
    results = score(pair)[1].results
    assert (results["scored"], results["missing"], results["scores"]["exact"]["mean"]) == (0, 9, None)


def test_samples_of_another_version_are_named(tmp_path, toys, model_folder):
    (pair,) = evaluate(tmp_path / "out", model_folder)
    samples, _ = predictions.read(predictions.files(pair.path))
    del samples["item-0/q1"]["text"]
    (pair.path / predictions.NAME).write_bytes(b"".join(map(encode_line, samples.values())))
    with pytest.raises(UsageError, match="sample item-0/q1 lacks what the metrics of parrot need: KeyError"):
        score(pair)


@pytest.mark.parametrize(("name", "text"), [("run.json", "{"), ("run.json", "[]")])
def test_damaged_files_of_a_run_are_named(tmp_path, toys, model_folder, name, text):
    (pair,) = evaluate(tmp_path / "out", model_folder)
    (pair.path / name).write_text(text)
    with pytest.raises(UsageError, match=f"{name} is damaged"):
        find_pairs([tmp_path / "out"])


def test_folders_without_results_are_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no evaluation"):
        find_pairs([tmp_path])
    with pytest.raises(UsageError, match="is no folder"):
        find_pairs([tmp_path / "gone"])
