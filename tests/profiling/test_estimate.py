"""The formulas against what is measured: bytes of tensors and operations, to within 10%."""

from __future__ import annotations

import pytest
import torch

from mplus_cli.core.memory import Memory
from mplus_cli.core.modeling_mplus import MPlusForCausalLM
from mplus_cli.profiling.configurations import CONFIGURATIONS, known_configuration
from mplus_cli.profiling.estimate import estimate
from mplus_cli.profiling.loading import ModelChoice, load, text_subject
from mplus_cli.profiling.measuring import count_flops
from mplus_cli.profiling.published import MEMORY_MB
from mplus_cli.profiling.sizes import Fill, Sizes
from mplus_cli.profiling.state_size import state_size
from mplus_cli.profiling.subjects import MemorySubject
from tests.profiling.helpers import TEXT, TensorPeak, cell, config_folder, small_model_config

WITHIN = 0.10
CASES = [
    ("mplus", 6_144, 100, True),
    ("mplus", 6_144, 100, False),
    ("mplus", 2_048, 600, True),
    ("mplus:ltm_dtype=int8", 4_096, 100, True),
    ("memoryllm", 4_096, 300, True),
    ("window:size=1024", 4_096, 100, True),
    ("full", 2_048, 100, True),
    ("full", 5_000, 100, True),
]


def choice(folder, merged: bool) -> ModelChoice:
    return ModelChoice(None, str(folder), "cpu", "float32", "merged" if merged else "separate", 1)


def subject_of(one, how):
    if not one.asked.has_memory:
        return text_subject(how, one.asked, one.length)
    return MemorySubject(load(how), one.asked, one.length - one.prompt, one.prompt, one.stored)


@pytest.mark.parametrize(("system", "length", "prompt", "merged"), CASES)
def test_memory_of_tensors(tmp_path, system, length, prompt, merged):
    one = cell(system, length, prompt, merged)
    expected = estimate(Sizes.of(small_model_config(), torch.float32), one)
    with TensorPeak() as peak:
        subject = subject_of(one, choice(config_folder(tmp_path), merged))
        if isinstance(subject, MemorySubject):
            subject.fill(subject.writes - 1)
            subject.write()
        for _ in range(2):
            subject.ask(one.new_tokens)
    assert peak.most == pytest.approx(expected["peak_bytes"], rel=WITHIN), expected["bytes"]


@pytest.mark.parametrize(("system", "length", "prompt", "merged"), CASES)
def test_operations(tmp_path, system, length, prompt, merged):
    one = cell(system, length, prompt, merged)
    expected = estimate(Sizes.of(small_model_config(), torch.float32), one)["flops"]
    subject = subject_of(one, choice(config_folder(tmp_path), merged))
    if isinstance(subject, MemorySubject):
        subject.fill(subject.writes)
    measured = count_flops(subject, one.new_tokens)
    assert {key: measured[key] for key in expected} == pytest.approx(expected, rel=WITHIN)


@pytest.mark.parametrize(
    ("system", "length"), [("mplus", 700), ("mplus", 8_192), ("mplus:ltm_dtype=int8", 8_192), ("memoryllm", 8_192)]
)
def test_state_file(tmp_path, system, length):
    one = cell(system, length)
    sizes = Sizes.of(small_model_config(), torch.float32)
    subject = subject_of(one, choice(config_folder(tmp_path), True))
    measured = state_size(subject.model, subject, tmp_path)
    assert measured == pytest.approx(estimate(sizes, one)["state_bytes"], rel=WITHIN)


def test_a_state_file_is_extrapolated_to_the_byte_of_a_whole_one(tmp_path):
    from mplus_cli.core.state.memory_state import MemoryState

    one = cell("mplus", 4_096)
    subject = subject_of(one, choice(config_folder(tmp_path), True))
    path = tmp_path / "whole.pt"
    with MemoryState.create(path, subject.model, subject.memory) as state:
        subject.fill(subject.writes)
        state.commit(subject.memory)
    assert state_size(subject.model, subject, tmp_path) == pytest.approx(path.stat().st_size, rel=0.02)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_parameters_of_every_known_configuration(name):
    config = known_configuration(name)
    with torch.device("meta"):
        model = MPlusForCausalLM(config)
    sizes = Sizes.of(config, torch.float32)
    assert sizes.memory_model == sum(parameter.numel() for parameter in model.parameters())
    nominal = {"b": 1e9, "m": 1e6}[name[-1]] * float(name[:-1].rpartition("-")[2])
    assert sizes.backbone == pytest.approx(nominal, rel=0.35)  # the name says what it is


def test_fill_follows_real_writes(tmp_path):
    config = small_model_config(short_term_size=40, long_term_capacity=100)
    sizes = Sizes.of(config, torch.float32)
    memory = Memory(config)
    layers, width = 3, 64
    for writes in range(1, 12):
        memory.append(0, torch.zeros(layers, 16, width), lambda layer, rows: torch.zeros(*rows.shape[:-1], 16))
        fill = Fill.after(sizes, 32 * writes, 32, True)
        assert (fill.short, fill.long) == (memory.short_term.fill[0], len(memory.long_term[0]))
        assert fill.retrieved == memory.long_term[0].expected_count()


def test_what_crosses_to_a_gpu():
    sizes = Sizes.of(small_model_config(), torch.float32)
    gpu = torch.device("cuda")
    row = 3 * 64 * 4
    plain = estimate(sizes, cell("mplus", 16_384, device=gpu, merged=False))
    offloaded = estimate(sizes, cell("mplus:offload=true", 16_384, device=gpu, merged=False))
    assert plain["transfer_bytes"]["question"] == row * 64
    stored = plain["long_term_tokens"]
    assert stored == offloaded["long_term_tokens"] > 4096
    assert offloaded["transfer_bytes"]["question"] == row * (64 + 512) + 3 * stored * 16 * 4
    short, keys = offloaded["host_bytes"]["short-term memory"], offloaded["host_bytes"]["retrieval keys"]
    assert short == 3 * 512 * (64 * 4 + 8) and keys >= 3 * stored * 16 * 4
    assert plain["bytes"]["retrieval keys"] == 3 * -(-stored // 4096) * 4096 * 16 * 4
    assert plain["bytes"]["kept retrieved rows"] > 0 == offloaded["bytes"]["kept retrieved rows"]
    assert offloaded["bytes"]["layers on their way"] == 2 * 4 * (512 * 64 + stored * 16)
    assert "long-term values" in plain["host_bytes"] and "long-term values" not in plain["bytes"]


def test_8b_at_128k_needs_less_than_the_published_figures():
    """Table 1 of the paper in MiB: what offloading saves there is 12,800 rows of 32 layers in bfloat16 to the MiB."""
    sizes, gpu = Sizes.of(known_configuration("llama-3.1-8b"), torch.bfloat16), torch.device("cuda")
    assert round(21_176.24 - 17_967.47) == pytest.approx(12_800 * 4096 * 32 * 2 / 2**20, rel=0.005)
    for system in ("mplus", "mplus:offload=true", "memoryllm", "memoryllm:offload=true"):
        one = cell(system, 131_072, 2048, merged=False, device=gpu, new_tokens=16)
        found = estimate(sizes, one)
        assert found["peak_bytes"] < MEMORY_MB[one.asked.label] * 2**20, found["bytes"]


def scales(module) -> list[torch.Tensor]:
    """Scales of a quantized matrix, as the library keeps them until it runs."""
    weight = module._parameters.get("weight")  # not what an adapter shows of the matrix inside
    if (state := getattr(weight, "quant_state", None)) is not None:
        return [state.absmax, state.state2.absmax]
    return [weight.SCB] if getattr(weight, "SCB", None) is not None else []


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantized_weights_to_the_byte_and_the_rest_as_before(tmp_path, kind):
    pytest.importorskip("bitsandbytes")
    text = TEXT | {"hidden_size": 256, "head_dim": 64, "intermediate_size": 192}
    folder, sizes = (
        config_folder(tmp_path, text_config=text),
        Sizes.of(small_model_config(text_config=text), torch.float32),
    )
    one = cell("mplus", 4_096, merged=False, quantize=kind)
    expected = estimate(sizes, one)["bytes"]
    with TensorPeak() as peak:
        model = load(ModelChoice(None, str(folder), "cpu", "float32", "separate", 1, kind))
        held = sum(parameter.nbytes for parameter in model.parameters())
        held += sum(tensor.nbytes for module in model.modules() for tensor in scales(module))
        subject = MemorySubject(model, one.asked, one.length - one.prompt, one.prompt, one.stored)
        subject.fill(subject.writes - 1)
        subject.write()
        subject.ask(one.new_tokens)
    assert model.quantized == kind
    plain = estimate(sizes, cell("mplus", 4_096, merged=False))["bytes"]
    assert expected["weights"] == pytest.approx(held, rel=0.002)
    assert {k: v for k, v in plain.items() if k != "weights"} == {k: v for k, v in expected.items() if k != "weights"}
    assert peak.most == pytest.approx(sum(expected.values()), rel=WITHIN)
