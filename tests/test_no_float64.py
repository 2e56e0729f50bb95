"""What computes on a device makes and takes no float64, which MPS lacks: held on the CPU, where any float64 would pass."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.conftest import TRAINING
from wsurgery.similarity import compare


class NoFloat64(TorchDispatchMode):
    """Let no operation of torch take or give a float64 tensor; they are counted."""

    operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run one operation."""
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, torch.Tensor) and value.dtype in (torch.float64, torch.complex128):
                raise AssertionError(f"{function} in float64")
        self.operations += 1
        return result


def within(mode, function):
    def call(*given):
        with mode:
            return function(*given)

    return call


def test_the_mode_sees_float64():
    with pytest.raises(AssertionError, match="in float64"), NoFloat64():
        torch.ones(3).sum(dtype=torch.float64)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_needs_no_float64(optimizer, invoke, fresh, fundus, tmp_path):
    words = ["--device", "cpu", "--ema", 0.9, "--grad-clip", 1, "--optimizer", optimizer, "--debug"]
    with NoFloat64() as mode:
        invoke("train", fresh, "--data", fundus, "-o", tmp_path / "run", *TRAINING, *words)
    assert mode.operations > 100


def test_eval_needs_no_float64(invoke, fresh, fundus):
    with NoFloat64() as mode:
        invoke("eval", fresh, "--data", fundus, "--device", "cpu", "--debug")
    assert mode.operations > 10


def test_the_networks_of_cca_need_no_float64(invoke, fresh, fundus, monkeypatch):
    mode = NoFloat64()
    for name in ("probe", "sample"):  # what they give is on the CPU, where float64 moments are made of it
        monkeypatch.setattr(compare, name, within(mode, getattr(compare, name)))
    invoke("cca", fresh, fresh, "--data", fundus, "--device", "cpu", "--debug")
    assert mode.operations > 10
