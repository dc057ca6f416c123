"""The learning rate is a pure function of the step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mplus_cli.training.recipe import OptimizerSettings
from mplus_cli.training.schedule import base_rate, rate_factor


def test_the_published_schedule_of_stage_1():
    settings = OptimizerSettings(schedule="linear", schedule_steps=100_000, final_ratio=0.1)
    assert rate_factor(0, 1_200_000, settings) == 1.0
    assert rate_factor(50_000, 1_200_000, settings) == pytest.approx(0.55)
    assert rate_factor(100_000, 1_200_000, settings) == pytest.approx(0.1)
    assert rate_factor(900_000, 1_200_000, settings) == pytest.approx(0.1)


def test_warm_up_then_cosine_to_the_end_of_the_run():
    settings = OptimizerSettings(schedule="cosine", warmup_steps=10, final_ratio=0.2)
    factors = [rate_factor(step, 110, settings) for step in range(111)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == pytest.approx(1.0)
    assert factors[60] == pytest.approx(0.6)
    assert factors[110] == pytest.approx(0.2)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_constant_means_constant():
    settings = OptimizerSettings(final_ratio=0.5, warmup_steps=2)
    assert {rate_factor(step, 10, settings) for step in range(1, 12)} == {1.0}


def test_rates_are_scaled_as_published_but_never_the_retriever_s():
    settings = OptimizerSettings(lr=4.6e-5, retriever_lr=1e-4, lr_scaling="linear_batch")
    assert base_rate("write_adapter", settings, 8) == pytest.approx(3.68e-4)
    assert base_rate("retriever", settings, 8) == base_rate("write_retriever", settings, 8) == 1e-4
    assert base_rate("write_adapter", replace(settings, lr_scaling="none"), 8) == 4.6e-5
