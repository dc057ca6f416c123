"""Losses against plain references, one number at a time."""

from __future__ import annotations

import math

import pytest
import torch

from mplus_cli.training.losses import (
    ContrastiveRetrieverLoss,
    MaskedBatchError,
    PublishedRetrieverLoss,
    next_token_losses,
    precision_at_positives,
)
from tests.training.helpers import mean_loss, tiny_memory_model, tiny_recipe


@pytest.fixture(scope="module")
def model():
    return tiny_memory_model(tiny_recipe(1))


@pytest.mark.parametrize("recompute", [False, True])
def test_cross_entropy_of_each_text(model, recompute, monkeypatch):
    monkeypatch.setattr("mplus_cli.training.losses.LOGIT_ROWS", 3)
    torch.manual_seed(0)
    hidden = torch.randn(3, 7, 32, requires_grad=True)
    labels = torch.randint(0, 259, (3, 7))
    labels[0, :4], labels[1, 3:], labels[2, 1::2] = -100, -100, -100
    found = next_token_losses(model, hidden, labels, list("abc"), recompute)
    logits = model.lm_head(model.model.norm(hidden))
    expected = torch.stack([mean_loss(logits[row], labels[row].tolist()) for row in range(3)])
    torch.testing.assert_close(found.double(), expected)
    (gradient,) = torch.autograd.grad(found.sum(), hidden, retain_graph=True)
    (reference,) = torch.autograd.grad(expected.sum(), hidden)
    torch.testing.assert_close(gradient, reference.float())


def test_texts_without_labels_are_refused_by_name(model):
    hidden, labels = torch.randn(4, 5, 32), torch.full((4, 5), -100)
    labels[1, 2] = labels[2, 0] = 7  # the first token is never predicted
    with pytest.raises(MaskedBatchError, match="masked in a, c, d:") as error:
        next_token_losses(model, hidden, labels, list("abcd"))
    assert error.value.ids == ["a", "c", "d"]


def layers_of_scores(low, high):
    torch.manual_seed(3)
    layers = [torch.rand(2, 6) * (high - low) + low for _ in range(3)]
    positive = [torch.rand(2, 6) < 0.4 for _ in range(3)]
    valid = [torch.rand(2, 6) < 0.8 for _ in range(3)]
    return layers, positive, valid


def test_published_retriever_loss_pools_all_layers():
    layers, positive, valid = layers_of_scores(0.05, 0.95)
    loss = PublishedRetrieverLoss(negative_weight=0.7)
    for column in zip(layers, positive, valid, strict=True):
        loss.add(*column)
    for text in range(2):
        right, wrong = [], []
        for scores, is_positive, exists in zip(layers, positive, valid, strict=True):
            for j in range(6):
                if exists[text, j] and is_positive[text, j]:
                    right.append(-math.log(scores[text, j].item() + 1e-5))
                elif exists[text, j]:
                    wrong.append(-math.log(1 - scores[text, j].item() + 1e-5))
        expected = (sum(right) / len(right) + 0.7 * sum(wrong) / len(wrong)) / 2
        assert loss.losses()[text].item() == pytest.approx(expected, rel=1e-5)


def test_an_empty_side_adds_nothing():
    scores, everything = torch.tensor([[0.25, 0.5]]), torch.ones(1, 2, dtype=torch.bool)
    loss = PublishedRetrieverLoss(1.0)
    loss.add(scores, everything, everything)
    assert loss.losses().item() == pytest.approx(-(math.log(0.25001) + math.log(0.50001)) / 4)


def test_contrastive_retriever_loss():
    layers, positive, valid = layers_of_scores(-3, 3)
    positive[0][0], valid[0][0] = torch.tensor([True, True, False, False, False, False]), True
    loss = ContrastiveRetrieverLoss()
    for column in zip(layers, positive, valid, strict=True):
        loss.add(*column)
    for text in range(2):
        each = []
        for scores, is_positive, exists in zip(layers, positive, valid, strict=True):
            there = [j for j in range(6) if exists[text, j]]
            total = sum(math.exp(scores[text, j]) for j in there)
            shares = [math.exp(scores[text, j]) / total for j in there if is_positive[text, j]]
            each.append(
                sum(-math.log(p) for p in shares) / len(shares) / 2 - math.log(sum(shares)) / 2 if shares else 0.0
            )
        assert loss.losses()[text].item() == pytest.approx(sum(each) / 3, rel=1e-5)


def test_texts_without_positives_get_no_gradient_and_no_nan():
    scores = torch.randn(2, 4, requires_grad=True)
    positive, valid = torch.zeros(2, 4, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    positive[0, 1] = True
    loss = ContrastiveRetrieverLoss()
    loss.add(scores, positive, valid)
    values = loss.losses()
    values.sum().backward()
    assert values[1].item() == 0 and scores.grad is not None
    assert scores.grad.isfinite().all() and scores.grad[0].abs().sum() > 0 and scores.grad[1].abs().sum() == 0


def test_precision_at_positives():
    scores = torch.tensor([[5.0, 4.0, 3.0, 9.0], [1.0, 2.0, 3.0, 4.0]])
    positive = torch.tensor([[True, False, True, False], [False] * 4])
    valid = torch.tensor([[True, True, True, False], [True] * 4])
    found = precision_at_positives(scores, positive, valid)
    assert found[0].item() == 0.5 and found[1].isnan()
