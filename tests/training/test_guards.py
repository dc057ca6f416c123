"""Guards: checksums see every bit, gradients are watched by group, nothing that is not finite gets by."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mplus_cli.training.guards import (
    PIECE,
    GradientWatch,
    GuardError,
    check_finite,
    check_frozen,
    checksum,
    digest,
    frozen_checksums,
)
from mplus_cli.training.processes import Processes

ALONE = Processes(0, 1, torch.device("cpu"))


@given(st.integers(0, 999), st.integers(0, 31), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_a_checksum_sees_every_flipped_bit(place, bit, dtype):
    tensor = torch.linspace(-3, 3, 1000).to(dtype)
    before = checksum(tensor)
    width = tensor.element_size() * 8
    whole = {16: torch.int16, 32: torch.int32, 64: torch.int64}[width]
    number = bit % width
    flip = -(1 << (width - 1)) if number == width - 1 else 1 << number
    tensor.view(whole)[place] ^= flip
    assert checksum(tensor) != before


def test_a_checksum_is_about_bits_and_places():
    zeros = torch.zeros(4)
    assert checksum(zeros) != checksum(-zeros), "-0.0 is another tensor"
    assert checksum(torch.full((2,), float("nan"))) == checksum(torch.full((2,), float("nan")))
    assert checksum(torch.tensor([1.0, 2.0])) != checksum(torch.tensor([2.0, 1.0]))
    assert checksum(torch.zeros(3)) != checksum(torch.zeros(4))
    assert checksum(torch.arange(6.0).reshape(2, 3).T) == checksum(torch.arange(6.0).reshape(2, 3).T.contiguous())
    assert checksum(torch.tensor([True, False])) != checksum(torch.tensor([False, True]))


def test_a_checksum_goes_on_beyond_one_piece():
    tensor = torch.zeros(PIECE + 3)
    before = checksum(tensor)
    tensor[PIECE + 1] = 1
    late = checksum(tensor)
    tensor[PIECE + 1], tensor[1] = 0, 1
    assert len({before, late, checksum(tensor)}) == 3


def test_changed_frozen_tensors_are_named():
    layer = nn.Linear(3, 3)
    layer.weight.requires_grad_(False)
    before = frozen_checksums(layer.named_parameters())
    assert list(before) == ["weight"]
    with torch.no_grad():
        layer.bias += 1
    check_frozen(before, frozen_checksums(layer.named_parameters()), "in a test")
    with torch.no_grad():
        layer.weight[0, 0] += 1
    with pytest.raises(GuardError, match="1 frozen tensors changed in a test: weight"):
        check_frozen(before, frozen_checksums(layer.named_parameters()), "in a test")


def groups(**layers: nn.Module):
    return {name: list(layer.named_parameters()) for name, layer in layers.items()}


def test_a_group_without_gradient_stops_training_and_is_named():
    used, unused = nn.Linear(2, 2), nn.Linear(2, 2)
    watch = GradientWatch(groups(write_adapter=used, retriever=unused))
    loss = used(torch.ones(2)).sum() + 0 * sum(p.sum() for p in unused.parameters())
    loss.backward()
    with pytest.raises(GuardError, match=r"no gradient reaches retriever \(2 tensors\)") as caught:
        watch.check(ALONE)
    assert "write_adapter" not in caught.value.message


def test_a_gradient_that_is_not_finite_stops_training():
    layer = nn.Linear(2, 2)
    watch = GradientWatch(groups(backbone=layer))
    (layer(torch.ones(2)).sum() * float("inf")).backward()
    with pytest.raises(GuardError, match="the gradient of backbone is not finite"):
        watch.check(ALONE)


def test_gradients_of_all_batches_of_the_step_count():
    layer = nn.Linear(2, 2)
    watch = GradientWatch(groups(backbone=layer))
    for weight in (0.0, 1.0, 0.0):
        (layer(torch.ones(2)).sum() * weight).backward()
    watch.check(ALONE)
    watch.close()
    (layer(torch.ones(2)).sum() * float("nan")).backward()
    watch.check(ALONE)


def test_what_is_not_finite_names_its_documents():
    check_finite(ALONE, True, 3, "loss", ["a"])
    with pytest.raises(GuardError, match=r"The loss of step 3 is not a finite number.*doc-7, doc-9"):
        check_finite(ALONE, False, 3, "loss", ["doc-7", "doc-9"])


def test_a_digest_sees_tensors_and_plain_data():
    state = {"rows": [torch.ones(2), {"seed": 3}], "name": "a"}
    assert digest(state) == digest({"rows": (torch.ones(2), {"seed": 3}), "name": "a"})
    assert digest(state) != digest({"rows": [torch.ones(2), {"seed": 4}], "name": "a"})
    assert digest(state) != digest({"rows": [torch.ones(2) + 1e-7, {"seed": 3}], "name": "a"})
    assert set(digest(state)) == {"/rows/0", "/rows/1/seed", "/name"}
