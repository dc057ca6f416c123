"""The fused kernel against scores in torch, run by Triton's interpreter where there is no GPU, and its absence."""

from __future__ import annotations

import importlib

import pytest
import torch

from mplus_cli.core import retriever as module
from mplus_cli.core.retriever import Retriever

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def kernel():
    pytest.importorskip("triton")
    return importlib.import_module("mplus_cli.core.scoring_kernel")


# The interpreter's products are wrong for bfloat16 alone; `_fused` tries it on the GPU itself.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("score", ["mean_sigmoid", "log_sum_exp"])
@pytest.mark.parametrize(("tokens", "width", "sizes"), [(1, 16, [1]), (70, 48, [97, 1, 64]), (130, 128, [65, 200])])
def test_it_gives_the_scores_of_torch(kernel, dtype, score, tokens, width, sizes):
    torch.manual_seed(0)
    queries = (torch.randn(tokens, width) / width**0.25).to(DEVICE, dtype)
    keys = (torch.randn(3 + sum(sizes), width) / width**0.25).to(DEVICE, dtype)[
        3:
    ]  # a block that does not begin at its start
    blocks = list(keys.split(sizes))
    assert kernel.can_score(queries, blocks)
    found = kernel.fused_scores(score, queries, blocks)
    expected = Retriever(width, width, 1, score, False).scores(queries, keys)
    close = 1e-5 if DEVICE.type == "cpu" else 2e-3
    torch.testing.assert_close(found, expected, atol=close, rtol=close)


def test_what_it_cannot_score_is_left_to_torch(kernel):
    queries, keys = torch.randn(5, 32), torch.randn(9, 32)
    assert kernel.can_score(queries, [keys])
    assert not kernel.can_score(queries[:, :8], [keys[:, :8]])  # narrow, and not contiguous
    assert not kernel.can_score(queries.double(), [keys.double()])
    assert not kernel.can_score(queries, [keys.half()])
    assert not kernel.can_score(queries[:0], [keys])
    assert not kernel.can_score(torch.randn(5, 256), [torch.randn(9, 256)])  # more than fits beside each other
    assert kernel.can_score(torch.randn(5, 256).half(), [torch.randn(9, 256).half()])


def test_it_is_tried_before_it_is_trusted(kernel, monkeypatch):
    module._fused.cache_clear()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    assert module._fused(DEVICE, torch.float32, "log_sum_exp", 32) is kernel
    module._fused.cache_clear()


@pytest.mark.parametrize("found", [None, object()])
def test_without_triton_or_with_one_that_fails_torch_scores(found, monkeypatch):
    class Wrong:
        @staticmethod
        def fused_scores(score, queries, blocks):
            return torch.zeros(sum(map(len, blocks)))

    module._fused.cache_clear()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(module.importlib, "import_module", lambda name: Wrong)
    if found is None:
        assert module._fused(torch.device("cpu"), torch.float32, "mean_sigmoid", 32) is None
    else:
        with pytest.warns(UserWarning, match="made without Triton, which fails here"):
            assert module._fused(torch.device("cpu"), torch.float32, "mean_sigmoid", 32) is None
    module._fused.cache_clear()
