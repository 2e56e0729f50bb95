"""`train --keep-zeros`: a pruned network stays pruned, and nothing else stands still."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TRAINING
from tests.training.test_resume import content
from wsurgery.data.dataset import load_dataset
from wsurgery.training.interruption import Interrupted
from wsurgery.training.loop import train
from wsurgery.training.settings import Settings


@pytest.fixture
def ticket(invoke, fresh, tmp_path):
    """A network of which six in ten weights below the head are zero."""
    path = tmp_path / "ticket.safetensors"
    invoke("prune", fresh, "--sparsity", 0.6, "--scope", "all", "-o", path)
    return path


def is_layer(name: str) -> bool:
    return name.endswith("conv.weight") or name == "fc.weight"


@pytest.mark.parametrize(
    "more",
    [
        ["--optimizer", "adamw", "--weight-decay", 0.1],
        ["--optimizer", "momentum", "--ema", 0.5, "--grad-clip", 0.1],
        ["--optimizer", "lamb"],
    ],
    ids=lambda more: more[1],
)
def test_zeros_stay_and_all_other_weights_move(more, ticket, invoke, fundus, tmp_path):
    invoke("train", ticket, "--data", fundus, "-o", tmp_path / "run", "--keep-zeros", *TRAINING, *more)
    before = load_file(ticket)
    for name in ("last", "best"):
        after = load_file(tmp_path / "run" / f"{name}.safetensors")
        for key, x in before.items():
            if is_layer(key):
                assert ((after[key] == 0) == (x == 0)).all(), key
    last = load_file(tmp_path / "run" / "last.safetensors")
    for key in ("block1.bn.bias", "block4.bn.bias"):  # they begin at zero
        assert (last[key] != 0).any()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["keep_zeros"] is True
    assert "--keep-zeros" in invoke("log", tmp_path / "run" / "last.safetensors").stdout


def test_without_it_zeros_move(ticket, invoke, fundus, tmp_path):
    invoke("train", ticket, "--data", fundus, "-o", tmp_path / "run", *TRAINING)
    last = load_file(tmp_path / "run" / "last.safetensors")
    assert not any((x == 0).any() for name, x in last.items() if is_layer(name))


def test_the_step_is_that_of_the_network_without_the_weights(ticket, invoke, fundus, tmp_path):
    one = ["--steps", 1, "--batch-size", 8, "--optimizer", "momentum", "--lr", 0.1, "--threads", 1, "--data", fundus]
    for run, more in (("kept", ["--keep-zeros"]), ("free", [])):
        invoke("train", ticket, "-o", tmp_path / run, *one, *more)
    kept, free = (load_file(tmp_path / run / "last.safetensors") for run in ("kept", "free"))
    for name, x in load_file(ticket).items():
        expected = torch.where(x == 0, x, free[name]) if is_layer(name) else free[name]
        assert kept[name].equal(expected), name


def test_zeros_are_those_of_the_start_when_a_run_goes_on(ticket, fundus, tmp_path):
    settings = Settings(
        steps=9, epochs=None, batch_size=8, lr=0.01, eval_every=4, keep_zeros=True, ema=0.5, grad_clip=0.1
    )
    data = [load_dataset(fundus, split=split) for split in ("train", "valid")]

    def run(folder, signalled):
        device = torch.device("cpu")
        train(ticket, folder, *data, settings, data=fundus, arguments=[], device=device, signalled=signalled)

    run(tmp_path / "unbroken", lambda: 0)
    for _ in range(2):
        with pytest.raises(Interrupted):
            run(tmp_path / "stopped", iter([0, 0, 15]).__next__)
    run(tmp_path / "stopped", lambda: 0)
    assert content(tmp_path / "stopped") == content(tmp_path / "unbroken")
    before, after = (load_file(path) for path in (ticket, tmp_path / "stopped" / "last.safetensors"))
    assert all(((after[name] == 0) == (x == 0)).all() for name, x in before.items() if is_layer(name))
