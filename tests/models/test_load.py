import json
import sys

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from wsurgery.checkpoint import open_checkpoint
from wsurgery.checkpoint.provenance import History
from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.models import create, load, load_into, save

SMALL = {"name": "cbr_tiny", "num_classes": 5, "in_chans": 3, "args": {"width": 0.05}}


def assert_same_bits(a, b):
    assert list(a) == list(b)
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert a[name].reshape(-1).view(torch.uint8).equal(b[name].reshape(-1).view(torch.uint8)), name


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "small.safetensors"
    save(create(SMALL, seed=3).state_dict(), History(SMALL), path)
    return path


def test_a_seed_decides_every_weight_and_the_global_generator_stays_where_it_was(saved):
    before = torch.get_rng_state()
    one, same, other = (create(SMALL, seed=seed).state_dict() for seed in (3, 3, 4))
    assert_same_bits(one, same)
    for name in ("block1.conv.weight", "block4.conv.weight", "fc.weight"):
        assert not (one[name] == other[name]).any()
    load(saved)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(("typed", "meant"), [("cbr_tinny", "cbr_tiny"), ("resnet5O", "resnet50"), ("cbr", "cbr_tiny")])
def test_an_unknown_name_lists_similar_ones(typed, meant):
    with pytest.raises(UsageError, match=rf"no model '{typed}'; similar: .*\b{meant}\b"):
        create({"name": typed})


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("cbr_tiny", {"no_such_argument": 1}),
        ("cbr_tiny", {"widths": 3}),
        ("cbr_tiny", {"kernel": -1}),
        ("resnet18", {"output_stride": 3}),
        ("resnet18", {"act_layer": "nope"}),
    ],
)
def test_arguments_that_build_no_network_are_the_users_error(name, args):
    with pytest.raises(UsageError, match=f"{name} cannot be built: .") as caught:
        create({"name": name, "args": args})
    assert "\n" not in str(caught.value)


def test_an_argument_that_is_known_already_is_named():
    with pytest.raises(UsageError, match="cbr_tiny: num_classes is 5 already: leave it out"):
        create({"name": "cbr_tiny", "num_classes": 5, "args": {"num_classes": 2}})


def test_the_architecture_in_the_metadata_builds_the_same_network(saved):
    model = load(saved)
    assert_same_bits(model.state_dict(), create(SMALL, seed=3).state_dict())
    assert not model.training
    grey = {"name": "cbr_small", "num_classes": 0, "in_chans": 1, "args": {"width": 0.05, "kernel": 3}}
    path = saved.with_name("grey.safetensors")
    save(create(grey, seed=0).state_dict(), History(grey), path)
    assert load(path)(torch.zeros(1, 1, 16, 16)).shape == (1, 13)


def test_the_reference_library_reads_what_save_wrote(saved):
    ours, theirs = create(SMALL, seed=3).state_dict(), load_file(saved)
    assert_same_bits(ours, {name: theirs[name] for name in ours})


def test_a_plain_state_dict_needs_arch_and_nothing_else(tmp_path):
    path = tmp_path / "plain.safetensors"
    state = timm.create_model("resnet10t", num_classes=7).state_dict()
    save_file(state, path)
    with pytest.raises(UsageError, match=r"plain\.safetensors does not say its architecture: add --arch"):
        load(path)
    model = load(path, "resnet10t")
    assert model.num_classes == 7
    assert_same_bits(model.state_dict(), state)


def test_the_file_s_name_says_the_architecture_if_all_tensors_fit(tmp_path):
    state = timm.create_model("resnet10t", num_classes=7).state_dict()
    for name in ("resnet10t.a1_in1k.safetensors", "resnet10t.safetensors"):
        save_file(state, tmp_path / name)
        assert_same_bits(load(tmp_path / name).state_dict(), state)
    save_file(state, tmp_path / "resnet18.a1_in1k.safetensors")
    with pytest.raises(UsageError, match=r"has the name of resnet18 but other tensors: add --arch"):
        load(tmp_path / "resnet18.a1_in1k.safetensors")


def test_twins_are_told_apart_by_what_is_said_and_never_guessed(tmp_path):
    # The same names and shapes: resnetblur18 blurs before it strides.
    state = timm.create_model("resnetblur18", num_classes=2).state_dict()
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in timm.create_model("resnet18", num_classes=2).state_dict().items()
    }
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="add --arch"):
        load(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnetblur18", "model_args": {}}))
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        configured, folder, other = (load(tmp_path / "model.safetensors"), load(tmp_path), load(tmp_path, "resnet18"))
        assert torch.equal(configured(images), folder(images))
        assert not torch.allclose(configured(images), other(images))


def test_a_batch_norm_of_an_old_file_has_no_counter(tmp_path):
    state = create(SMALL, seed=3).state_dict()
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    save_file(old, tmp_path / "x")
    other = create(SMALL, seed=4)
    with open_checkpoint(tmp_path / "x") as checkpoint:
        load_into(other, checkpoint)
    assert_same_bits(other.state_dict(), state)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 6), nn.Linear(4, 6)
        self.head.weight = self.embed.weight


def test_tied_tensors_that_safetensors_wrote_once_are_found(tmp_path):
    network, other = Tied(), Tied()
    save_model(network, tmp_path / "x.safetensors")
    with open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        assert "head.weight" not in checkpoint.tensors
        load_into(other, checkpoint)
    assert_same_bits(other.state_dict(), network.state_dict())
    assert other.head.weight is other.embed.weight


class Everything(nn.Module):
    """A tensor of each dtype that torch and the format share, and the shapes that are easily got wrong."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            self.register_buffer(f"a_{dtype}".replace(".", "_"), torch.from_numpy(rng.normal(size=(3, 5))).to(dtype))
        for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
            self.register_buffer(f"a_{dtype}".replace(".", "_"), torch.from_numpy(rng.integers(0, 128, 7)).to(dtype))
        self.register_buffer("boolean", torch.from_numpy(rng.random((4, 3)) < 0.5))
        self.register_buffer("scalar", torch.tensor(rng.normal()))
        self.register_buffer("counter", torch.tensor(int(rng.integers(1 << 40))))
        self.register_buffer("empty", torch.zeros(0, 4))
        self.register_buffer("transposed", torch.from_numpy(rng.normal(size=(4, 6))).T)
        self.register_buffer("unusual", torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]))


def test_save_and_load_keep_every_bit_of_every_dtype(tmp_path):
    one, other = Everything(1), Everything(2)
    save(one.state_dict(), History(), tmp_path / "x")
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert list(checkpoint.tensors) == list(one.state_dict())
        load_into(other, checkpoint)
    contiguous = {name: value.contiguous() for name, value in other.state_dict().items()}
    assert_same_bits({name: value.contiguous() for name, value in one.state_dict().items()}, contiguous)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("block2.bn.bias"), r"block2\.bn\.bias is in the network and not in the file"),
        (lambda state: state.update({"extra\x1b": torch.zeros(1)}), r"extra\\x1b is in the file and not in the netw"),
        (lambda state: state.update({"fc.weight": torch.zeros(7, 26)}), r"fc\.weight is \(7, 26\).*wants \(5, 26\)"),
        (lambda state: state.update({"fc.bias": torch.zeros(5).to(torch.float8_e5m2)}), r"fc\.bias is F8_E5M2.*cast"),
    ],
    ids=["missing", "extra", "shape", "dtype"],
)
def test_loading_is_strict_and_names_the_tensor(change, words, tmp_path):
    state = create(SMALL, seed=0).state_dict()
    change(state)
    save_file(state, tmp_path / "x")
    model = create(SMALL, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with open_checkpoint(tmp_path / "x") as checkpoint, pytest.raises(WsurgeryError, match=words):
        load_into(model, checkpoint)
    assert_same_bits(model.state_dict(), before)


@pytest.mark.parametrize("key", ["pretrained", "checkpoint_path", "pretrained_cfg"])
def test_metadata_cannot_make_timm_load_another_file(key):
    with pytest.raises(UsageError, match=key):
        create({"name": "cbr_tiny", "args": {key: "x"}})


LARGE = {
    "depth": ("vit_tiny_patch16_224", {"depth": 10**8}),
    "depth, within an image's side": ("vit_tiny_patch16_224", {"depth": 9_999}),
    "classes": ("resnet18", {}),
    "width as a number with a point": ("cbr_tiny", {"width": 1e6}),
    "width as a number that is hardly one": ("cbr_tiny", {"width": 1e308}),
    "an image": ("swin_tiny_patch4_window7_224", {"img_size": 9_996}),
    "in a list": ("resnet18", {"channels": [64, 128, 256, 10**9]}),
    "in a dictionary": ("vit_tiny_patch16_224", {"norm_layer": {"x": [10**9]}}),
    "a size of hundreds of digits": ("resnet18", {"output_stride": 10**200}),
}


@pytest.mark.parametrize(("name", "args"), LARGE.values(), ids=LARGE)
def test_metadata_that_asks_for_more_than_the_file_holds_takes_no_memory(name, args, tmp_path):
    architecture = {"name": name, "num_classes": 5 if args else 10**6, "args": args}
    state = {"fc.weight": torch.zeros(5, 7), "empty": torch.zeros(0, 10**9)}  # empty, for that dimension bears nothing
    save(state, History(architecture), tmp_path / "x")
    resource = pytest.importorskip("resource")
    load(saved_small(tmp_path))  # so that only what comes now is measured
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WsurgeryError, match=r".") as caught:
        load(tmp_path / "x")
    assert "\n" not in str(caught.value)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 << (10 if sys.platform == "linux" else 20)  # kilobytes, or bytes


def saved_small(folder):
    save(create(SMALL).state_dict(), History(SMALL), folder / "small")
    return folder / "small"


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet18", {"layers": 5}),
        ("resnet18", {"layers": None}),
        ("vit_tiny_patch16_224", {"img_size": "x"}),
        ("vit_tiny_patch16_224", {"num_heads": 0}),
        ("vit_tiny_patch16_224", {"mlp_ratio": 1e308}),
        ("vit_tiny_patch16_224", {"norm_layer": {}}),
        ("resnet18", {"drop_path_rate": "x"}),
        ("efficientnet_b0", {"act_layer": []}),
        ("swin_tiny_patch4_window7_224", {"window_size": 0}),
        ("cbr_tiny", {"model_name": "x"}),
        ("cbr_tiny", {"width": None}),
        ("cbr_tiny", {"width": float("inf")}),
    ],
)
def test_whatever_timm_raises_on_arguments_of_the_metadata_is_one_line(name, args, tmp_path):
    save({"fc.weight": torch.zeros(5, 7)}, History({"name": name, "num_classes": 5, "args": args}), tmp_path / "x")
    with pytest.raises(WsurgeryError, match=r".") as caught:
        load(tmp_path / "x")
    assert "\n" not in str(caught.value)


def test_what_metadata_gives_an_own_callable_is_bounded_too(tmp_path):
    def own(num_classes, depth=1, width=1.0):
        return nn.Sequential(*(nn.Linear(int(4 * width), num_classes) for _ in range(depth)))

    made = {"name": own.__qualname__, "num_classes": 5, "model": "x"}
    save(own(5).state_dict(), History(made), tmp_path / "x")
    assert load(tmp_path / "x", model=own)[0].weight.shape == (5, 4)
    for args in ({"depth": 10**7}, {"depth": 9_999}, {"width": 1e8}):
        save(own(5).state_dict(), History({**made, "args": args}), tmp_path / "x", force=True)
        with pytest.raises(WsurgeryError, match="is the architecture right"):
            load(tmp_path / "x", model=own)
