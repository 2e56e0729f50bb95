"""The moving average of `--ema`: timm's, but of tied tensors, which are averaged once a step."""

import torch
from timm.utils import ModelEmaV3
from torch import nn

from wsurgery.models import create
from wsurgery.training.moving_average import MovingAverage


def stepped(network, step):
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for x in dict.fromkeys(network.state_dict(keep_vars=True).values()):
            x.copy_(torch.randn(x.shape, generator=generator) if x.is_floating_point() else x + 1)


def test_without_tied_tensors_it_is_timms_to_the_last_bit():
    network = create({"name": "cbr_tiny", "num_classes": 3, "args": {"width": 0.05}})
    own, timms = MovingAverage(network, 0.9), ModelEmaV3(network, decay=0.9)
    assert not any(module.training for module in own.network.modules())
    for step in range(5):
        stepped(network, step)
        own.update(network, is_first=step == 0)
        timms.update(network, step=step + 1)
        expected = timms.module.state_dict()
        assert all(x.equal(expected[name]) for name, x in own.network.state_dict().items())


def test_a_tied_tensor_is_averaged_as_any_other():
    network = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("one", "two", "three", "alone")})
    for name in ("two", "three"):
        network[name].weight = network["one"].weight
    average, expected = MovingAverage(network, 0.75), None
    for step in range(4):
        stepped(network, step)
        average.update(network, is_first=step == 0)
        now = {name: x.double() for name, x in network.state_dict().items()}
        expected = {name: x if expected is None else 0.75 * expected[name] + 0.25 * x for name, x in now.items()}
        for name, x in average.network.state_dict().items():
            torch.testing.assert_close(x.double(), expected[name], rtol=1e-6, atol=1e-6)
