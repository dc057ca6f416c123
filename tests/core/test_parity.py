"""Parity with the official implementation: every case of the golden folders, at the stated tolerance.

`MPLUS_GOLDENS` names one or more folders, separated by `:`; all sizes are read from them.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mplus_cli.core.modeling_mplus import MPlusForCausalLM

DEFAULT = Path(__file__).parents[3] / "shared" / "goldens" / "official_tiny"
FOLDERS = [Path(p) for p in os.environ.get("MPLUS_GOLDENS", str(DEFAULT)).split(":") if p]
TOLERANCE = 2e-5


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda p: p.name)
def golden(request):
    folder = request.param
    if not (folder / "cases.safetensors").exists():
        pytest.skip(f"no goldens at {folder} (set MPLUS_GOLDENS)")
    cases = load_file(folder / "cases.safetensors")
    return folder, json.loads((folder / "meta.json").read_text()), cases


@pytest.fixture
def model(golden):
    return MPlusForCausalLM.from_pretrained(golden[0] / "checkpoint")


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


def names(cases: dict, pattern: str) -> list[str]:
    found = sorted({m.group(1) for key in cases if (m := re.match(pattern, key))})
    assert found, f"the goldens hold no case like {pattern}"
    return found


def assert_reads(model, memory, cases: dict, case: str) -> None:
    ids = cases[f"{case}.ids"][None]
    with torch.no_grad():
        close(model(ids, memory=memory).logits[0], cases[f"{case}.logits"])
    if f"{case}.greedy" in cases:
        new = len(cases[f"{case}.greedy"]) - ids.shape[1]
        out = model.generate(ids, memory=memory, max_new_tokens=new, do_sample=False, eos_token_id=None)
        assert out[0].tolist() == cases[f"{case}.greedy"].tolist()


def test_write(golden, model):
    cases = golden[2]
    for case in names(cases, r"(write\.\w+)\."):
        memory = model.new_memory()
        with torch.no_grad():
            delta = model.write(cases[f"{case}.ids"][None], memory.context(0)[None])
        close(delta[0], cases[f"{case}.delta_memory"])


def test_read(golden, model):
    cases = golden[2]
    for case in names(cases, r"(read\.initial\w*)\."):
        memory = model.new_memory()
        assert_reads(model, memory, cases, case)
        model(cases[f"{case}.ids"][None], memory=memory)
        for layer, found in enumerate(memory.last_retrieval):
            wanted = cases[f"{case}.ltm_indices_by_layer"][layer]
            assert found[0].positions.tolist() == wanted.tolist()
            close(found[0].scores, cases[f"{case}.ltm_scores"][layer][wanted])


def test_read_of_a_store_smaller_than_the_budget(golden, model):
    _, meta, cases = golden
    size = meta["small_ltm_size"]
    for key in list(model.initial_memory):
        if key.startswith("long_term"):
            model.initial_memory[key] = model.initial_memory[key][:, :size]
    assert_reads(model, model.new_memory(), cases, "read.small_ltm")


def test_updates(golden, model):
    _, meta, cases = golden
    memory = model.new_memory()
    checked = 0
    for step, ids in enumerate(cases["update.ids"]):
        model.inject(ids[None], memory, dropped_ranks=cases["update.dropped_indices"][step][None])
        if f"update.after{step + 1}.memory" in cases:
            assert_memory(memory, cases, f"update.after{step + 1}", meta["L"])
            assert_reads(model, memory, cases, f"update.after{step + 1}.read")
            checked += 1
    assert checked


def assert_memory(memory, cases: dict, at: str, layers: int) -> None:
    values, created = memory.short_term.ordered(0)
    close(values, cases[f"{at}.memory"])
    assert memory.age(0, created).tolist() == cases[f"{at}.memory_ages"].tolist()
    store = memory.long_term[0]
    pending = cases[f"{at}.pending.ages"].shape[1] if f"{at}.pending.ages" in cases else 0
    assert store.pending == pending
    for layer in range(layers):
        rows, born = store.layers[layer].take(layer, store.layers[layer].all_positions())
        keys = torch.cat(list(store.layers[layer].keys.views()))
        ages = memory.age(0, born)
        merged = len(rows) - pending
        close(rows[:merged], cases[f"{at}.ltm.{layer}"])
        close(keys[:merged], cases[f"{at}.ltm_keys.{layer}"])
        assert ages[:merged].tolist() == cases[f"{at}.ltm_ages.{layer}"].tolist()
        recall = cases[f"{at}.ltm_recall_frequencies.{layer}"].float()
        assert store.layers[layer].recall_frequency.tolist() == recall.tolist()
        if pending:
            close(rows[merged:], cases[f"{at}.pending.memories"][layer])
            close(keys[merged:], cases[f"{at}.pending.keys"][layer])
            assert ages[merged:].tolist() == cases[f"{at}.pending.ages"][layer].tolist()
