"""Regions around the parts of a model: every part has one, and nothing stays behind."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import pytest
import torch

from mplus_cli.core.long_term_memory import LayerStore
from mplus_cli.core.memory import Memory
from mplus_cli.core.prefix import MemoryPrefix
from mplus_cli.profiling import phases
from mplus_cli.profiling.breakdown import FIRST, WRITE, breakdown
from mplus_cli.profiling.loading import ModelChoice, load
from mplus_cli.profiling.subjects import MemorySubject
from tests.profiling.helpers import cell, config_folder


@pytest.fixture(scope="module", params=["merged", "separate"])
def subject(request, tmp_path_factory):
    folder = config_folder(tmp_path_factory.mktemp("model"))
    model = load(ModelChoice(None, str(folder), "cpu", "float32", request.param, 1))
    one = cell("mplus", 2048)
    made = MemorySubject(model, one.asked, 1948, 100, 0)
    made.fill(made.writes)
    return made


def test_every_phase_is_seen(subject):
    seen: Counter[str] = Counter()

    @contextmanager
    def region(phase):
        seen[phase] += 1
        yield

    with phases.regions(subject.model, region):
        subject.write()
        subject.changed()
        subject.ask(2)
    expected = set(phases.PHASES)
    if subject.model.adapters.merged:
        expected.remove(phases.ADAPTERS)
    assert set(seen) == expected
    assert seen[phases.SCORING] == seen[phases.GATHER] == 3  # one search per layer, at prefill alone
    assert seen[phases.UPDATE] == 1
    assert seen[phases.MLP] == 3 * (1 + 3)


def test_nothing_stays_behind(subject):
    before = [vars(owner).get(name) for owner, name in _patched()]
    with pytest.raises(ZeroDivisionError), phases.regions(subject.model, _null):
        raise ZeroDivisionError
    assert [vars(owner).get(name) for owner, name in _patched()] == before
    assert "keys_values" not in vars(subject.model)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in subject.model.modules())


def _patched():
    return [(MemoryPrefix, "load"), (MemoryPrefix, "retrieve"), (LayerStore, "_stored"), (Memory, "append_rows")]


@contextmanager
def _null(phase):
    yield


def test_breakdown(subject, tmp_path):
    trace = tmp_path / "traces" / "trace.json"
    found = breakdown(subject, 2, trace)
    assert set(found) == {WRITE, FIRST, "token"}
    assert {phases.SCORING, phases.GATHER, phases.ATTENTION, phases.MLP, "other"} <= set(found[FIRST])
    assert phases.UPDATE in found[WRITE] and phases.UPDATE not in found[FIRST]
    assert phases.SCORING not in found["token"]
    assert (phases.ADAPTERS in found[FIRST]) != subject.model.adapters.merged
    assert all(ms > 0 for parts in found.values() for ms in parts.values())
    assert b"retrieval scoring" in trace.read_bytes()


def test_the_parts_of_a_breakdown_make_up_the_whole(subject):
    """Exclusive times: their sum is the work's own time, nothing is counted twice."""
    from torch.profiler import ProfilerActivity, profile

    from mplus_cli.profiling import breakdown as module

    with profile(activities=[ProfilerActivity.CPU]) as profiler, phases.regions(subject.model, module.region):
        module._work(subject, 1)
    found = module._sum(profiler.events(), False, 1)
    whole = {e.name.removeprefix(module.MARK): e.cpu_time_total / 1e3 / module.REPEATS for e in profiler.events()}
    assert sum(found[WRITE].values()) == pytest.approx(whole[WRITE], rel=1e-3)
    assert sum(found[FIRST].values()) == pytest.approx(whole[FIRST], rel=1e-3)
    assert torch.is_grad_enabled()
