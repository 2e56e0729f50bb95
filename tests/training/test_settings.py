"""The two presets against appendix A, and the learning rate that training really uses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from wsurgery.data.dataset import Dataset
from wsurgery.errors import UsageError
from wsurgery.models import create
from wsurgery.training.flags import Flags
from wsurgery.training.optimisation import has_fused, make_optimizer
from wsurgery.training.settings import PRESETS, Settings
from wsurgery.training.trainer import Trainer


def dataset(n: int) -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    labels = (rng.random((n, 1)) < 0.5).astype(np.float32)
    names = tuple(map(str, range(n)))
    return Dataset(images, labels, ("ill",), names, names, "")


def loop(settings, n):
    model = create({"name": "cbr_tiny", "num_classes": 1, "args": {"width": 0.02}})
    return Trainer(model, dataset(n), dataset(4), settings, torch.device("cpu"), ())


def test_chexperts_learning_rate_rises_for_5_epochs_and_falls_at_30_60_and_90():
    preset, epoch_steps = PRESETS["chexpert"], 3
    running = loop(replace(preset, eval_every=1), n=32 * epoch_steps + 5)
    used = [entry["lr"] for entry in running.entries() if "lr" in entry]
    peak = 0.1 * 32 / 256
    epochs = np.arange(100 * epoch_steps) / epoch_steps
    expected = np.select(
        [epochs < 5, epochs < 30, epochs < 60, epochs < 90],
        [peak * epochs / 5, peak, peak / 10, peak / 100],
        peak / 1000,
    )
    assert used == pytest.approx(expected, rel=1e-9)


def test_the_rate_falls_at_each_epoch_whatever_order_they_are_named_in():
    settings = Flags(epochs=5, batch_size=4, lr=1.0, decay_epochs="4,1,3", eval_every=1).settings(Settings())
    used = [entry["lr"] for entry in loop(settings, n=8).entries() if "lr" in entry]
    epochs = np.arange(5 * 2) // 2
    assert used == pytest.approx([0.1 ** sum(epoch >= at for at in (4, 1, 3)) for epoch in epochs], rel=1e-9)


def test_chexperts_optimiser_is_sgd_with_momentum():
    optimizer = loop(PRESETS["chexpert"], n=32).optimizer
    assert type(optimizer) is torch.optim.SGD
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["dampening"], group["weight_decay"]) == (0.9, False, 0, 0)
    preset = PRESETS["chexpert"]
    assert (preset.batch_size, preset.image_size) == (32, 224)
    assert not preset.augmentation.flip_horizontal
    assert not preset.augmentation.flip_vertical


def test_retinas_values():
    preset = PRESETS["retina"]
    running = loop(replace(preset, epochs=2, eval_every=1), n=24)
    assert type(running.optimizer) is torch.optim.Adam
    assert [entry["lr"] for entry in running.entries() if "lr" in entry] == [1e-3] * 6  # of 24 / 8 steps an epoch
    assert (preset.batch_size, preset.image_size) == (8, 587)
    assert preset.augmentation.flip_horizontal
    assert preset.augmentation.flip_vertical


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_both_crop_and_recolour_mildly(preset):
    kind = preset.augmentation
    assert 0 < kind.crop <= 0.2
    assert 0 < kind.hue <= 0.05
    assert 0 < kind.contrast <= 0.3


def test_an_epoch_meets_every_image_once():
    running = loop(replace(PRESETS["retina"], epochs=2), n=24)
    first, second = running._order(0), running._order(1)
    assert sorted(first) == sorted(second) == list(range(24))
    assert list(first) != list(second)


@pytest.mark.parametrize(
    "name", ["adam", "adamw", "momentum", "lamb", "lookahead_adam", "lookahead_lamb", "Lookahead_SGD"]
)
def test_fused_kernels_are_asked_of_the_optimiser_that_is_made(name):
    made = make_optimizer([torch.nn.Parameter(torch.ones(1))], Settings(optimizer=name))
    made = getattr(made, "_base_optimizer", made)  # which Lookahead has
    assert has_fused(name) == (made.defaults.get("fused", "none") != "none")


def test_an_optimiser_that_is_unknown_has_no_fused_kernels():
    assert not has_fused("lookahead_none")
    with pytest.raises(UsageError, match="optimizer lookahead_none: "):
        make_optimizer([torch.nn.Parameter(torch.ones(1))], Settings(optimizer="lookahead_none"))
