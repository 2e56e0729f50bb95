import fnmatch

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TRAINING
from wsurgery.errors import WsurgeryError
from wsurgery.models import create
from wsurgery.training.optimisation import freeze


def network():
    return create({"name": "cbr_tiny", "num_classes": 5, "args": {"width": 0.05}})


@pytest.mark.parametrize("weight_decay", [0, 0.1])
def test_frozen_tensors_stay_bit_for_bit_and_all_others_move(weight_decay, invoke, fresh, fundus, tmp_path):
    invoke("freeze-spec", fresh, "--upto", "block2", "-o", tmp_path / "frozen")
    more = ["--weight-decay", weight_decay, "--optimizer", "momentum"]
    invoke("train", tmp_path / "frozen", "--data", fundus, "-o", tmp_path / "run", *TRAINING, *more)
    before, after = load_file(tmp_path / "frozen"), load_file(tmp_path / "run" / "last.safetensors")
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert value.equal(before[name]) == name.startswith(("block1.", "block2.")), name
    spec = invoke("freeze-spec", tmp_path / "run" / "last.safetensors", "--upto", "block2", "--json").stdout
    assert spec == invoke("freeze-spec", tmp_path / "frozen", "--upto", "block2", "--json").stdout


def test_only_batch_norms_whose_statistics_are_frozen_stand_still():
    model = network()
    still = freeze(model, ("block1.*", "block2.conv.weight"))
    assert still == [model.get_submodule("block1.bn")]
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"block1.conv.weight", "block1.bn.weight", "block1.bn.bias", "block2.conv.weight"}


def test_what_the_network_itself_has_frozen_stays_so():
    class Fixed(torch.nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.position = torch.nn.Parameter(torch.ones(2), requires_grad=False)
            self.index = torch.nn.Parameter(torch.arange(3), requires_grad=False)

    model = Fixed()
    assert freeze(model, ()) == []
    assert [name for name, x in model.named_parameters() if x.requires_grad] == ["weight", "bias"]


class Odd(torch.nn.Module):
    """Batch norm, both of torch's spectral norms, one layer by two names, and a buffer above modules that train."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(1))
        self.conv = torch.nn.utils.spectral_norm(torch.nn.Conv2d(3, 4, 1))
        self.bn = torch.nn.BatchNorm2d(4)
        self.square = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Conv2d(4, 4, 1))
        self.first = self.second = torch.nn.Conv2d(4, 4, 1)
        self.fc = torch.nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.second(self.first(self.square(self.bn(self.conv(x)))))
        return self.fc(x * self.scale)


@pytest.mark.parametrize(
    ("glob", "moved"),
    [
        ("bn.running_var", {"conv.weight_u", "square.parametrizations.weight.0._u"}),
        ("bn.num_batches_tracked", {"conv.weight_u", "square.parametrizations.weight.0._u"}),
        ("conv.weight_u", {"bn.running_mean", "square.parametrizations.weight.0._u"}),
        ("square.*", {"bn.running_mean", "bn.running_var", "bn.num_batches_tracked", "conv.weight_u", "bn.weight"}),
        ("first.*", {"bn.running_mean", "conv.weight_u", "conv.weight_orig", "square.bias"}),
        ("second.weight", {"first.bias", "bn.running_mean", "conv.weight_u"}),
        ("scale", {"bn.running_mean", "conv.weight_u", "first.weight"}),
    ],
)
def test_all_that_a_specification_names_stays_whatever_module_holds_it(glob, moved):
    torch.manual_seed(0)
    model = Odd()
    for module in freeze(model.train(), (glob,)):
        module.training = False
    before = {name: x.detach().clone() for name, x in model.state_dict().items()}
    optimizer = torch.optim.SGD([x for x in model.parameters() if x.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 2, 2)).square().sum().backward()
        optimizer.step()
    after = model.state_dict()
    assert all(after[name].equal(before[name]) for name in fnmatch.filter(before, glob))
    assert not [name for name in moved if after[name].equal(before[name])]
    assert glob != "first.*" or after["second.weight"].equal(before["second.weight"])


def test_no_specification_freezes_nothing():
    model = network()
    assert freeze(model, ()) == []
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("globs", "words"),
    [
        (("block1.*", "block9.*"), r"'block9\.\*', which matches no tensor"),
        (("*",), "leaves nothing to train"),
        (("block?.*", "fc.*"), "leaves nothing to train"),
    ],
)
def test_a_specification_that_cannot_be_meant_is_an_error(globs, words):
    with pytest.raises(WsurgeryError, match=words):
        freeze(network(), globs)


def test_a_mistaken_specification_claims_no_folder(invoke, fresh, fundus, tmp_path):
    invoke("freeze-spec", fresh, "--upto", "head", "-o", tmp_path / "frozen")
    given = ["--data", fundus, "-o", tmp_path / "run", *TRAINING]
    refused = invoke("train", tmp_path / "frozen", *given, check=False)
    assert refused.exit_code == 1
    assert "leaves nothing to train" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_frozen_batch_norm_uses_its_running_statistics_in_training():
    model = network()
    with torch.no_grad():
        model.block1.bn.running_mean.fill_(0.5)
    still = freeze(model, ("block1.*",))
    model.train()
    for module in still:
        module.eval()
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batch, one = model.block1(x), model.block1(x[:1])
    torch.testing.assert_close(batch[:1], one)  # another image in the batch changes nothing
