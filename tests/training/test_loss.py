import math

import pytest
import torch

from wsurgery.training.optimisation import masked_loss

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
