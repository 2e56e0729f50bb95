import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from wsurgery.data.dataset import load_dataset
from wsurgery.errors import UsageError
from wsurgery.training.evaluation import loss_of
from wsurgery.training.optimisation import masked_loss, positive_weights, softmax_loss
from wsurgery.training.predictions import from_logits

NAN = float("nan")


def test_the_loss_is_the_mean_over_known_labels():
    logits = torch.tensor([[0.0, 2.0], [-1.0, 5.0]])
    labels = torch.tensor([[1.0, 0.0], [0.0, NAN]])
    by_hand = (math.log(2) + math.log(1 + math.exp(2)) + math.log(1 + math.exp(-1))) / 3
    assert masked_loss(logits, labels).item() == pytest.approx(by_hand, rel=1e-6)


def test_unknown_labels_give_no_gradient_and_known_ones_do():
    logits = torch.tensor([[0.3, -2.0, 1e4], [1.0, 0.5, -1e4]], requires_grad=True)
    labels = torch.tensor([[1.0, NAN, NAN], [NAN, 0.0, NAN]])
    masked_loss(logits, labels).backward()
    expected = (
        torch.tensor([[torch.sigmoid(torch.tensor(0.3)) - 1, 0, 0], [0, torch.sigmoid(torch.tensor(0.5)), 0]]) / 2
    )
    torch.testing.assert_close(logits.grad, expected)


def test_a_batch_of_unknown_labels_is_no_step():
    logits = torch.ones(3, 2, requires_grad=True)
    loss = masked_loss(logits, torch.full((3, 2), NAN))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_a_positive_counts_as_often_as_its_weight_says():
    logits, weights = torch.tensor([[0.3, -2.0], [1.0, 0.5]]), torch.tensor([3.0, 0.5])
    labels = torch.tensor([[1.0, 0.0], [NAN, 1.0]])
    p = torch.sigmoid(logits)
    by_hand = -(3 * p[0, 0].log() + (1 - p[0, 1]).log() + 0.5 * p[1, 1].log()) / 3
    torch.testing.assert_close(masked_loss(logits, labels, weights), by_hand)


def test_automatic_weights_are_negatives_over_positives():
    labels = np.array([[1, 0, 1, 0], [0, 0, 1, NAN], [0, 1, 1, 0], [NAN, 1, 1, 0]], np.float32)
    assert positive_weights("auto", "abcd", labels).tolist() == [2, 1, 1, 1]  # c lacks negatives, d positives
    assert positive_weights([("c", 3), ("a", 0.5)], "abcd", labels).tolist() == [0.5, 1, 3, 1]
    with pytest.raises(UsageError, match="--pos-weight e: no such label; the labels are a, b, c, d"):
        positive_weights([("e", 3)], "abcd", labels)


def test_softmax_is_the_cross_entropy_of_the_one_class():
    logits = torch.tensor([[0.3, -2.0, 1.0], [1.0, 0.5, 4.0]])
    labels = torch.tensor([[0.0, 1.0, 0.0], [NAN, NAN, 1.0]])
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(softmax_loss(logits, labels), -(p[0, 1].log() + p[1, 2].log()) / 2)


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_loss_of_predictions_is_that_of_training(exclusive, fundus):
    data = load_dataset(fundus, split="test")
    logits = np.random.default_rng(0).normal(0, 3, data.labels.shape).astype(np.float32)
    labels = np.eye(data.labels.shape[1], dtype=np.float32)[logits.argmin(1)]
    if not exclusive:
        labels[::3, 0] = np.nan
    found = loss_of(from_logits("x", replace(data, labels=labels), logits, exclusive=exclusive))
    torchs = (softmax_loss if exclusive else masked_loss)(
        torch.from_numpy(logits).double(), torch.from_numpy(labels).double()
    )
    assert found == pytest.approx(torchs.item(), rel=1e-12)
