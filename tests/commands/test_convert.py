"""`wsurgery convert` as a user runs it."""

import argparse
import json
import os
import re
import tarfile
import warnings
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from timm.layers import GroupNormAct
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.conftest import peak_memory, small_resnet, watching_imports
from wsurgery.models import load


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("resnet10t", num_classes=3).eval()


@pytest.fixture
def saved(tmp_path, network):
    path = tmp_path / "as downloaded.pth"
    wrapped = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 3, "args": argparse.Namespace(lr=0.1), "state_dict": wrapped, "ema": wrapped}, path)
    return path


def history(path):
    with safe_open(path, "numpy") as file:
        assert file.metadata()["format"] == "pt"
        return json.loads(file.metadata()["wsurgery"])


def test_a_wrapped_checkpoint_becomes_the_network_it_was(saved, network, wsurgery, tmp_path):
    done = wsurgery("convert", saved, "--arch", "resnet10t", "-o", tmp_path / "out.safetensors")
    assert done.stdout == b""
    said = done.stderr.decode()
    assert "took state_dict; --key takes another: ema" in said
    assert "stripped the prefix module." in said
    model = load(tmp_path / "out.safetensors")
    for name, value in network.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(images), network(images))


def test_the_history_says_the_architecture_and_the_file(saved, wsurgery, tmp_path):
    wsurgery("convert", saved, "--arch", "resnet10t", "-o", tmp_path / "out.safetensors")
    entry = history(tmp_path / "out.safetensors")
    assert entry["architecture"] == {"name": "resnet10t", "num_classes": 3, "in_chans": 3, "args": {}}
    (record,) = entry["log"]
    assert record["command"] == "convert"
    (given,) = record["inputs"]
    assert given["name"] == "as downloaded.pth"
    assert given["size"] == saved.stat().st_size
    assert len(given["blake3"]) == 64


def test_log_prints_a_line_that_makes_the_same_bytes_again(saved, shell, tmp_path):
    made = shell("wsurgery convert 'as downloaded.pth' --key ema --keep-names --arch resnet10t > made", tmp_path)
    assert made.returncode == 0, made.stderr.decode()
    printed = shell("wsurgery log made", tmp_path).stdout.decode().strip()
    assert "convert 'as downloaded.pth' --key ema --arch resnet10t --keep-names" in printed
    assert shell(f"{printed} > again", tmp_path).returncode == 0
    assert (tmp_path / "again").read_bytes() == (tmp_path / "made").read_bytes()
    assert all(name.startswith("module.") for name in load_file(tmp_path / "made"))


def test_a_result_flows_on_in_a_pipe(saved, shell, tmp_path):
    line = "wsurgery convert 'as downloaded.pth' --quiet | wsurgery meanvar | wsurgery reset-bn > out"
    done = shell(line, tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [record["command"] for record in history(tmp_path / "out")["log"]] == ["convert", "meanvar", "reset-bn"]


def test_strided_tensors_of_every_dtype_keep_their_values_and_order(wsurgery, tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"z": base, "t": base.T, "h": base.half()[::2], "n": torch.tensor(7), "b": base > 3}
    torch.save(tensors, tmp_path / "x.pt")
    wsurgery("convert", tmp_path / "x.pt", "-o", tmp_path / "x.safetensors")
    for name, value in load_file(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(value, tensors[name].numpy(), strict=True)
    with safe_open(tmp_path / "x.safetensors", "numpy") as file:
        assert file.offset_keys() == list(tensors)


def test_small_floats_keep_their_bits(invoke, tmp_path):
    numbers = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    tensors = {str(dtype): numbers.to(dtype) for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)}
    torch.save(tensors, tmp_path / "x.pt")
    invoke("convert", tmp_path / "x.pt", "-o", tmp_path / "x.safetensors")
    for name, value in safetensors.torch.load_file(tmp_path / "x.safetensors").items():
        assert value.dtype == tensors[name].dtype
        assert value.view(torch.uint8).equal(tensors[name].view(torch.uint8))


class Tied(nn.Module):
    """Two layers with one weight, as a language model's embedding and head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.embed, self.head, self.norm = nn.Linear(4, 6), nn.Linear(4, 6, bias=False), nn.LayerNorm(4)
        self.load_state_dict({n: torch.full_like(v, seed) + torch.rand(v.shape) for n, v in self.state_dict().items()})
        self.head.weight = self.embed.weight


def test_tied_tensors_are_written_once_as_safetensors_own_save_model_does(invoke, tmp_path):
    network, other = Tied(1), Tied(5)
    torch.save({"model": {f"module.{name}": value for name, value in network.state_dict().items()}}, tmp_path / "x.pth")
    said = invoke("convert", tmp_path / "x.pth", "-o", tmp_path / "x.safetensors").stderr
    assert "head.weight is embed.weight: written once" in said
    safetensors.torch.save_model(network, tmp_path / "theirs.safetensors")
    with (
        safe_open(tmp_path / "x.safetensors", "pt") as ours,
        safe_open(tmp_path / "theirs.safetensors", "pt") as theirs,
    ):
        assert set(ours.keys()) == set(theirs.keys())
        assert ours.metadata().items() >= theirs.metadata().items() == {("head.weight", "embed.weight")}
    safetensors.torch.load_model(other, tmp_path / "x.safetensors")
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in other.state_dict().items())


def test_aliases_follow_the_names_and_outlive_an_edit(invoke, tmp_path):
    network = Tied(1)
    prefixed = nn.ModuleDict({"model": network})
    safetensors.torch.save_model(prefixed, tmp_path / "in.safetensors")
    invoke("convert", tmp_path / "in.safetensors", "-o", tmp_path / "x.safetensors")
    invoke("scale", tmp_path / "x.safetensors", "--by", 2, "-o", tmp_path / "y.safetensors")
    other = Tied(5)
    safetensors.torch.load_model(other, tmp_path / "y.safetensors")
    assert all(torch.equal(value, 2 * network.state_dict()[name]) for name, value in other.state_dict().items())


def test_aliases_are_renamed_and_dropped_with_their_tensor(invoke, tmp_path):
    network, other = Tied(1), nn.ModuleDict({"net": Tied(5)})
    safetensors.torch.save_model(network, tmp_path / "in.safetensors")
    invoke("rename", "^", "net.", tmp_path / "in.safetensors", "-o", tmp_path / "x.safetensors")
    safetensors.torch.load_model(other, tmp_path / "x.safetensors")
    assert all(torch.equal(value, network.state_dict()[name[4:]]) for name, value in other.state_dict().items())
    invoke("drop", tmp_path / "in.safetensors", "--only", "embed.*", "-o", tmp_path / "y.safetensors")
    with safe_open(tmp_path / "y.safetensors", "pt") as file:
        assert "head.weight" not in file.metadata()


@pytest.mark.parametrize("name", ["format", "wsurgery"])
def test_a_tied_tensor_named_as_a_key_of_the_metadata_is_written(name, invoke, tmp_path):
    torch.save(dict.fromkeys(("a", name), torch.ones(3)), tmp_path / "x.pth")
    invoke("convert", tmp_path / "x.pth", "-o", tmp_path / "x.safetensors")
    assert set(load_file(tmp_path / "x.safetensors")) == {"a", name}


def test_npz_becomes_safetensors(wsurgery, tmp_path):
    np.savez(tmp_path / "x.npz", **small_resnet())
    wsurgery("convert", tmp_path / "x.npz", "-o", tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    for name, value in small_resnet().items():
        np.testing.assert_array_equal(found[name], value, strict=True)


def test_safetensors_keep_their_metadata_and_lose_the_prefix(wsurgery, tmp_path):
    prefixed = {f"model.{name}": value for name, value in small_resnet().items()}
    save_file(prefixed, tmp_path / "x.safetensors", metadata={"author": "someone else"})
    named = wsurgery("convert", tmp_path / "x.safetensors").stdout
    (tmp_path / "named").write_bytes(named)
    piped = wsurgery("convert", stdin=(tmp_path / "x.safetensors").read_bytes()).stdout
    (tmp_path / "piped").write_bytes(piped)
    for out in (tmp_path / "named", tmp_path / "piped"):
        with safe_open(out, "numpy") as file:
            assert file.metadata()["author"] == "someone else"
        for name, value in load_file(out).items():
            assert value.tobytes() == small_resnet()[name].tobytes()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["missing.pth"], 1, "missing.pth: No such file"),
        (["evil.pth"], 1, "evil.pth asks for the Python object posix.system"),
        (["cut.pth"], 1, "cut.pth is damaged"),
        (["plain.pkl"], 1, "plain.pkl holds no dict of tensors"),
        (["page.pth"], 1, "page.pth is a web page"),
        (["."], 1, "is a folder"),
        (["as downloaded.pth", "--key", "teacher"], 2, "under 'teacher': state_dict, ema"),
        ([], 2, "no input"),
        (["model.tar"], 1, "model.tar is a tar archive: unpack it"),
        (["model.pth.gz"], 1, "model.pth.gz is compressed with gzip: unpack it"),
        (["model.h5"], 1, "model.h5 is damaged"),
        (["model.bin"], 1, "model.bin is a pointer of Git LFS"),
        (["hub"], 1, "hub lacks pytorch_model-00002-of-00002.bin"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(arguments, status, words, saved, wsurgery, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"state_dict": {"w": torch.ones(2)}, "evil": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "cut.pth").write_bytes(saved.read_bytes()[:-100])
    (tmp_path / "plain.pkl").write_bytes(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.")
    (tmp_path / "page.pth").write_bytes(b"<!doctype html><title>Sign in</title>")
    with tarfile.open(tmp_path / "model.tar", "w") as archive:
        archive.add(saved, "tensors")
    (tmp_path / "model.pth.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + bytes(100))
    (tmp_path / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "model.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "hub").mkdir()
    places = {"weight_map": {"w": "pytorch_model-00002-of-00002.bin"}}
    (tmp_path / "hub" / "pytorch_model.bin.index.json").write_text(json.dumps(places))
    done = wsurgery("convert", *arguments, "-o", "out.safetensors", check=False, cwd=tmp_path)
    assert done.returncode == status
    assert words in done.stderr.decode()
    assert done.stderr.decode().count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()
    assert not (tmp_path / "ran").exists()


def test_convert_imports_no_heavy_library(saved, shell, tmp_path):
    run = watching_imports(tmp_path)
    done = shell(f"{run} convert 'as downloaded.pth' -o out.safetensors", tmp_path)
    assert done.returncode == 0, done.stderr.decode()


def test_memory_is_bounded_by_the_largest_tensor(tmp_path):
    for count in (4, 24):
        torch.save({f"w{i}": torch.zeros(1024, 1024) for i in range(count)}, tmp_path / f"{count}.pth")
    small, large = (peak_memory("convert", tmp_path / f"{count}.pth", "-o", "/dev/null") for count in (4, 24))
    assert large < 1.1 * small


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "nonsense"], "timm has no model 'nonsense'"),
        (["--arch", "resnet18"], "--arch resnet18: conv1.weight is not in the file and (64, 3, 7, 7) in the network"),
        (
            ["--arch", "densenet121"],
            "--arch densenet121: features.conv0.weight is not in the file and (64, 3, 7, 7) in the",
        ),
        (["--arch", "cbr_tiny"], "--arch cbr_tiny: block1.conv.weight is not in the file"),
        (["--arch", "resnet10t", "--arg", "channels"], "--arg channels: write it as KEY=VALUE"),
        (["--arg", "width=2"], "add --arch"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--keep-names"]])
def test_a_network_that_does_not_fit_is_not_recorded(arguments, words, more, saved, invoke, tmp_path):
    done = invoke("convert", saved, *arguments, *more, "-o", tmp_path / "x", check=False)
    assert done.exit_code == 2
    assert words in done.stderr
    assert not (tmp_path / "x").exists()


def test_more_arguments_of_a_network_are_recorded(invoke, tmp_path):
    invoke("init", "cbr_tiny", "--width", "0.125", "--num-classes", 5, "-o", tmp_path / "a")
    save_file(load_file(tmp_path / "a"), tmp_path / "plain")
    invoke("convert", tmp_path / "plain", "--arch", "cbr_tiny", "--arg", "width=0.125", "-o", tmp_path / "b")
    assert history(tmp_path / "b")["architecture"] == history(tmp_path / "a")["architecture"]


@pytest.mark.parametrize(
    ("entries", "name"),
    [
        ({"arch": "resnet10t", "args": argparse.Namespace(model="resnet10t")}, "resnet10t"),
        ({"args": argparse.Namespace(model="resnet10t", lr=0.1)}, "resnet10t"),
        ({"args": {"arch": "resnet10t"}}, "resnet10t"),
        ({"arch": "resnet18"}, None),  # it is not
        ({"arch": "mae_vit_base_patch16"}, None),  # no network of timm's
        ({"arch": 3, "args": None}, None),
    ],
)
def test_the_network_that_a_trainer_names_is_recorded_if_it_is(entries, name, network, invoke, tmp_path):
    torch.save({"state_dict": network.state_dict(), **entries}, tmp_path / "x.pth")
    invoke("convert", tmp_path / "x.pth", "-o", tmp_path / "x")
    assert (history(tmp_path / "x").get("architecture") or {}).get("name") == name


def test_a_densenet_with_dots_and_a_resnet_in_sequential_keep_their_logits(invoke, tmp_path):
    densenet = lively(torchvision.models.DenseNet(32, (6, 12, 24, 16), num_classes=3))
    dotted = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", name): value for name, value in densenet.state_dict().items()}
    torch.save(
        {"state_dict": {f"module.densenet121.{name}": value for name, value in dotted.items()}}, tmp_path / "d.pth"
    )
    invoke("convert", tmp_path / "d.pth", "-o", tmp_path / "d.safetensors")
    assert_same_logits(densenet, load(tmp_path / "d.safetensors"), size=64)
    resnet = lively(torchvision.models.resnet18(num_classes=3))
    trunk = nn.Sequential(*list(resnet.children())[:-1])
    torch.save(nn.ModuleDict({"backbone": trunk, "fc": resnet.fc}).state_dict(), tmp_path / "r.pth")
    invoke("convert", tmp_path / "r.pth", "-o", tmp_path / "r.safetensors")
    assert_same_logits(resnet, load(tmp_path / "r.safetensors"), size=64)


# Networks of other libraries: the converted file gives the same logits in timm.


def lively(network: nn.Module) -> nn.Module:
    """Fill a network with numbers of which none is at its neutral value, so that a wrong name shows in the logits."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            continue
        if value.ndim in (2, 4) and name.endswith("weight"):
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
            value.uniform_(0.5, 1.5, generator=generator)
        else:
            value.normal_(0, 0.3, generator=generator)
    return network.eval()


def assert_same_logits(a, b, *, size: int) -> None:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = a(images), b(images)
    expected = getattr(expected, "logits", expected)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4 * float(expected.std()))
    assert expected.std(0).mean() > 1e-3  # the images matter


def timm_network(path, name: str, **arguments: object) -> nn.Module:
    network = timm.create_model(name, **arguments)
    network.load_state_dict(safetensors.torch.load_file(path), strict=True)
    return network.eval()


def test_a_torchvision_resnet_is_a_timm_resnet_and_stays_a_torchvision_one(invoke, tmp_path):
    network = lively(torchvision.models.resnet18(num_classes=7))
    torch.save(network.state_dict(), tmp_path / "resnet18-f37072fd.pth")
    invoke("convert", tmp_path / "resnet18-f37072fd.pth", "--arch", "resnet18", "-o", tmp_path / "x.safetensors")
    assert_same_logits(network, load(tmp_path / "x.safetensors"), size=64)
    back = torchvision.models.resnet18(num_classes=7)
    back.load_state_dict(safetensors.torch.load_file(tmp_path / "x.safetensors"), strict=True)
    assert_same_logits(network, back.eval(), size=64)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"])
def test_a_torchvision_network_keeps_its_logits(name, invoke, tmp_path):
    network = lively(torchvision.models.get_model(name, num_classes=5))
    torch.save(network.state_dict(), tmp_path / "x.pth")
    said = invoke("convert", tmp_path / "x.pth", "-o", tmp_path / "x.safetensors").stderr
    assert "renamed from torchvision's" in said
    assert "recorded the architecture" in said
    assert_same_logits(network, load(tmp_path / "x.safetensors"), size=64)


@pytest.mark.parametrize(
    ("build", "name", "arguments"),
    [
        (
            lambda: torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5),
            "vit_base_patch16_224",
            {"img_size": 32, "patch_size": 8, "depth": 2, "num_heads": 4, "embed_dim": 32, "mlp_ratio": 2},
        ),
        (
            lambda: torchvision.models.SwinTransformer([2, 2], 8, [2, 1], [1, 2], [2, 2], num_classes=5),
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "patch_size": 2, "window_size": 2, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)},
        ),
        (
            lambda: torchvision.models.ConvNeXt(
                [
                    torchvision.models.convnext.CNBlockConfig(*widths, 2)
                    for widths in ((8, 12), (12, 16), (16, 20), (20, None))
                ],
                num_classes=5,
            ),
            "convnext_tiny",
            {"depths": (2, 2, 2, 2), "dims": (8, 12, 16, 20)},
        ),
    ],
    ids=["vit", "swin", "convnext"],
)
def test_a_torchvision_network_of_any_size_keeps_its_logits(build, name, arguments, invoke, tmp_path):
    network = lively(build())
    torch.save(network.state_dict(), tmp_path / "x.pth")
    invoke("convert", tmp_path / "x.pth", "-o", tmp_path / "x.safetensors")
    assert_same_logits(network, timm_network(tmp_path / "x.safetensors", name, num_classes=5, **arguments), size=32)


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():  # of other packages, as it looks which there are
        warnings.simplefilter("ignore")
        module = pytest.importorskip("transformers")
        module.logging.set_verbosity_error()
        module.logging.disable_progress_bar()
        module.ViTForImageClassification, module.ResNetForImageClassification  # noqa: B018  (imported when asked for)
    return module


TINY = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "num_labels": 5}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings", "name"),
    [
        ("ViT", TINY, "vit_base_patch16_224"),
        ("ResNet", {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}, "resnet18"),
    ],
)
def test_a_hugging_face_folder_keeps_its_logits_and_says_its_architecture(
    kind, settings, name, transformers, invoke, tmp_path
):
    config = getattr(transformers, f"{kind}Config")(**settings)
    network = lively(getattr(transformers, f"{kind}ForImageClassification")(config))
    network.save_pretrained(tmp_path / "hub")
    said = invoke("convert", tmp_path / "hub", "-o", tmp_path / "x.safetensors").stderr
    assert f"renamed from Hugging Face's {kind} to timm's names" in said
    assert f"recorded the architecture {name}" in said
    assert_same_logits(network, load(tmp_path / "x.safetensors"), size=32)


@pytest.mark.parametrize("kind", ["ViT", "ResNet"])
def test_what_keeps_its_names_goes_back_into_transformers(kind, transformers, invoke, tmp_path):
    settings = TINY if kind == "ViT" else {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8], "embedding_size": 8}
    network = getattr(transformers, f"{kind}ForImageClassification")(getattr(transformers, f"{kind}Config")(**settings))
    (tmp_path / "hub").mkdir()
    torch.save(network.state_dict(), tmp_path / "hub" / "pytorch_model.bin")
    invoke("convert", tmp_path / "hub", "--keep-names", "-o", tmp_path / "kept")
    invoke(
        "transfuse", tmp_path / "kept", "--upto", "block1", "--rest", "meanvar", "-o", tmp_path / "model.safetensors"
    )
    network.config.save_pretrained(tmp_path)
    again, report = type(network).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = network.state_dict(), again.state_dict()
    blocks = {
        row["name"]: row["block"] for row in json.loads(invoke("show", tmp_path / "kept", "--json").stdout)["tensors"]
    }
    assert {"stem", "block1", "block2", "head"} <= set(blocks.values())
    for name, value in after.items():
        constant = before[name].double().var(correction=0) == 0  # a fresh norm, or the identity that it becomes
        assert value.equal(before[name]) == bool(blocks[name] in ("stem", "block1") or constant), name


@pytest.mark.parametrize(
    ("kind", "settings", "name", "arguments"),
    [
        (
            "Swin",
            {
                "image_size": 32,
                "patch_size": 2,
                "window_size": 2,
                "embed_dim": 8,
                "depths": [2, 1],
                "num_heads": [1, 2],
            },
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "patch_size": 2, "window_size": 2, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)},
        ),
        (
            "ConvNext",
            {"depths": [1, 2, 1, 1], "hidden_sizes": [8, 12, 16, 20]},
            "convnext_tiny",
            {"depths": (1, 2, 1, 1), "dims": (8, 12, 16, 20)},
        ),
        (
            "ConvNextV2",
            {"depths": [1, 2, 1, 1], "hidden_sizes": [8, 12, 16, 20]},
            "convnextv2_tiny",
            {"depths": (1, 2, 1, 1), "dims": (8, 12, 16, 20)},
        ),
        (
            "Beit",
            {**TINY, "use_relative_position_bias": True},
            "beit_base_patch16_224",
            {"img_size": 32, "patch_size": 8, "depth": 2, "num_heads": 4, "embed_dim": 32, "mlp_ratio": 2},
        ),
    ],
)
def test_other_names_of_hugging_face_keep_their_logits(kind, settings, name, arguments, transformers, invoke, tmp_path):
    config = getattr(transformers, f"{kind}Config")(**{**settings, "num_labels": 5})
    network = lively(getattr(transformers, f"{kind}ForImageClassification")(config))
    torch.save(network.state_dict(), tmp_path / "live.pth")  # named as the modules are, not as save_pretrained writes
    network.save_pretrained(tmp_path / "hub")
    for source in ("hub", "live.pth"):
        invoke("convert", tmp_path / source, "--force", "-o", tmp_path / "x.safetensors")
        assert_same_logits(network, timm_network(tmp_path / "x.safetensors", name, num_classes=5, **arguments), size=32)


def test_a_distilled_deit_and_a_dinov2_keep_their_outputs(transformers, invoke, tmp_path):
    deit = lively(transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**TINY)))
    deit.save_pretrained(tmp_path / "deit")
    invoke("convert", tmp_path / "deit", "-o", tmp_path / "deit.safetensors")
    assert_same_logits(deit, load(tmp_path / "deit.safetensors"), size=32)
    dino = lively(transformers.Dinov2Model(transformers.Dinov2Config(**{**TINY, "mlp_ratio": 2})))
    dino.save_pretrained(tmp_path / "dino")
    said = invoke("convert", tmp_path / "dino", "-o", tmp_path / "dino.safetensors").stderr
    assert "left out what timm's network has not: embeddings.mask_token" in said
    sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "num_heads": 4, "embed_dim": 32, "mlp_ratio": 2}
    network = timm_network(tmp_path / "dino.safetensors", "vit_small_patch14_dinov2", **sizes)
    assert_same_logits(lambda images: dino(images).pooler_output, network, size=32)


def vit_as_transformers_names_it(width: int = 16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"vit.encoder.layer.{i}.attention.attention.{part}.{leaf}": torch.randn(shape, generator=generator)
        for i in range(2)
        for part in ("key", "query", "value")
        for leaf, shape in (("bias", (width,)), ("weight", (width, width)))
    }


def test_tensors_that_timm_joins_are_joined_in_a_pipe_and_from_shards(invoke, wsurgery, tmp_path):
    tensors = vit_as_transformers_names_it()
    safetensors.torch.save_file(tensors, tmp_path / "whole.safetensors")
    (tmp_path / "hub").mkdir()
    halves = list(tensors.items())[::2], list(tensors.items())[1::2]  # of every layer a part in each
    for i, half in enumerate(halves):
        torch.save(dict(half), tmp_path / "hub" / f"shard{i}.bin")
    places = {name: f"shard{i}.bin" for i, half in enumerate(halves) for name, _ in half}
    (tmp_path / "hub" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    piped = wsurgery("convert", stdin=(tmp_path / "whole.safetensors").read_bytes()).stdout
    wsurgery("convert", "hub", "-o", "sharded.safetensors", cwd=tmp_path)
    for found in (safetensors.torch.load(piped), safetensors.torch.load_file(tmp_path / "sharded.safetensors")):
        assert len(found) == 4
        for name, value in found.items():
            _, block, *_, leaf = name.split(".")
            parts = [
                tensors[f"vit.encoder.layer.{block}.attention.attention.{p}.{leaf}"] for p in ("query", "key", "value")
            ]
            assert torch.equal(value, torch.cat(parts)), name


def test_tensors_of_several_dtypes_are_not_joined(invoke, tmp_path):
    tensors = vit_as_transformers_names_it()
    odd = "vit.encoder.layer.1.attention.attention.key.weight"
    torch.save(tensors | {odd: tensors[odd].half()}, tmp_path / "x.pth")
    done = invoke("convert", tmp_path / "x.pth", "-o", tmp_path / "x.safetensors", check=False)
    assert done.exit_code == 1
    assert "blocks.1.attn.qkv.weight, but they are F16, F32" in done.stderr


def google_vit() -> dict[str, np.ndarray]:
    """Arrays as Google's ViT in Flax has them: width 32, 4 heads, two blocks, patches of 8, 5 classes."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, 32), "embedding/kernel": (8, 8, 3, 32), "embedding/bias": (32,), "head/kernel": (32, 5),
        "head/bias": (5,), "Transformer/posembed_input/pos_embedding": (1, 17, 32), "pre_logits/kernel": (32, 32),
        "Transformer/encoder_norm/scale": (32,), "Transformer/encoder_norm/bias": (32,), "pre_logits/bias": (32,),
    }  # fmt: skip
    attention, mlp = "MultiHeadDotProductAttention_1", "MlpBlock_3"
    for i in range(2):
        block = f"Transformer/encoderblock_{i}"
        for part in ("query", "key", "value"):
            shapes |= {f"{block}/{attention}/{part}/kernel": (32, 4, 8), f"{block}/{attention}/{part}/bias": (4, 8)}
        shapes |= {f"{block}/{attention}/out/kernel": (4, 8, 32), f"{block}/{attention}/out/bias": (32,)}
        shapes |= {
            f"{block}/{norm}/{leaf}": (32,) for norm in ("LayerNorm_0", "LayerNorm_2") for leaf in ("scale", "bias")
        }
        shapes |= {f"{block}/{mlp}/Dense_0/kernel": (32, 64), f"{block}/{mlp}/Dense_0/bias": (64,)}
        shapes |= {f"{block}/{mlp}/Dense_1/kernel": (64, 32), f"{block}/{mlp}/Dense_1/bias": (32,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def google_bit() -> dict[str, np.ndarray]:
    """Arrays as Google's BiT has them: two stages of one unit."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"root_block/standardized_conv2d/kernel": (7, 7, 3, 16)}
    width = 16
    for i, out in enumerate((32, 64), 1):
        unit, mid = f"block{i}/unit01", out // 4
        sizes = {"a": (1, 1, width, mid), "b": (3, 3, mid, mid), "c": (1, 1, mid, out), "a/proj": (1, 1, width, out)}
        shapes |= {f"{unit}/{part}/standardized_conv2d/kernel": size for part, size in sizes.items()}
        for part, channels in (("a", width), ("b", mid), ("c", mid)):
            shapes |= {f"{unit}/{part}/group_norm/{leaf}": (channels,) for leaf in ("gamma", "beta")}
        width = out
    shapes |= {"group_norm/gamma": (64,), "group_norm/beta": (64,), "head/conv2d/kernel": (1, 1, 64, 5)}
    shapes["head/conv2d/bias"] = (5,)
    return {f"resnet/{name}": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("arrays", "build"),
    [
        (
            google_vit(),
            lambda: VisionTransformer(32, 8, num_classes=5, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2),
        ),
        (
            google_bit(),
            lambda: ResNetV2(
                [1, 1], (32, 64), num_classes=5, stem_chs=16, norm_layer=partial(GroupNormAct, num_groups=2)
            ),
        ),
    ],
    ids=["vit", "bit"],
)
def test_google_s_npz_is_what_timm_reads_from_it(arrays, build, invoke, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    invoke("convert", tmp_path / "x.npz", "-o", tmp_path / "x.safetensors")
    network, reference = build(), build()
    network.load_state_dict(safetensors.torch.load_file(tmp_path / "x.safetensors"), strict=True)
    reference.load_pretrained(str(tmp_path / "x.npz"))
    for key, value in reference.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key


def test_timm_s_config_json_says_the_architecture(network, invoke, tmp_path):
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    config = {"architecture": "resnet10t", "num_classes": 1000, "model_args": {"drop_rate": 0.1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    invoke("convert", tmp_path, "-o", tmp_path / "x.safetensors")
    found = history(tmp_path / "x.safetensors")["architecture"]
    assert found == {"name": "resnet10t", "num_classes": 3, "in_chans": 3, "args": {"drop_rate": 0.1}}


@pytest.mark.parametrize(
    ("config", "name", "wrong"),
    [
        ({"architecture": "resnet18"}, "resnet18", "conv1.weight is not in the file and (64, 3, 7, 7) in the network"),
        ({"architecture": "resnet10t", "model_args": {"stem_width": 16}}, "resnet10t", "conv1.0.weight is (24,"),
        ({"architecture": "nonsense"}, "nonsense", "timm has no model 'nonsense'"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--keep-names"]])
def test_a_config_json_of_another_network_is_not_believed(config, name, wrong, more, network, invoke, tmp_path):
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = invoke("convert", tmp_path, *more, "-o", tmp_path / "x.safetensors").stderr
    assert f"not recorded as {name}, which it is by config.json: {wrong}" in said
    assert "architecture" not in history(tmp_path / "x.safetensors")


def test_the_auxiliary_classifier_that_timm_does_not_have_is_left_out_aloud(invoke, tmp_path):
    shapes = {"Conv2d_1a_3x3.conv.weight": (2, 3, 3, 3), "fc.weight": (5, 2), "AuxLogits.fc.weight": (5, 2)}
    torch.save({name: torch.rand(shape) for name, shape in shapes.items()}, tmp_path / "x.pth")
    said = invoke("convert", tmp_path / "x.pth", "-o", tmp_path / "x.safetensors").stderr
    assert "left out what timm's network has not: AuxLogits.fc.weight; --keep-names keeps it" in said
    assert (
        "not recorded as inception_v3, which it is by its names and sizes: Conv2d_1a_3x3.conv.weight is (2, 3, 3, 3)"
        in said
    )
    assert "architecture" not in history(tmp_path / "x.safetensors")
    assert set(load_file(tmp_path / "x.safetensors")) == {"Conv2d_1a_3x3.conv.weight", "fc.weight"}
    invoke("convert", tmp_path / "x.pth", "--keep-names", "-o", tmp_path / "y.safetensors")
    assert set(load_file(tmp_path / "y.safetensors")) == set(shapes)


@pytest.mark.parametrize(
    ("names", "lost"),
    [
        (["odd.w1", "odd.w2", "thing"], "3 of 3 tensors have no known block, odd.w1 first: "),
        (
            ["conv1.weight", "layer1.0.conv1.weight", "thing", "fc.weight"],
            "1 of 4 tensors have no known block, thing first: ",
        ),
        (["conv1.weight", "layer1.0.conv1.weight", "fc.weight"], None),
    ],
)
def test_tensors_whose_names_tell_no_block_are_said(names, lost, invoke, tmp_path):
    save_file({name: np.ones((4, 4), np.float32) for name in names}, tmp_path / "x.safetensors")
    said = invoke("convert", tmp_path / "x.safetensors", "-o", tmp_path / "y.safetensors").stderr
    line = next((line for line in said.splitlines() if "no known block" in line), None)
    assert (line is None) == (lost is None)
    if lost:
        assert line.startswith(lost)
        assert "--block-map FILE" in line
        assert "--into" in line


def test_what_is_frozen_stays_so_under_its_new_name(invoke, tmp_path):
    invoke("init", "cbr_tiny", "--width", 0.05, "-o", tmp_path / "a")
    invoke("rename", "^", "module.", tmp_path / "a", "-o", tmp_path / "b")
    invoke("freeze-spec", tmp_path / "b", "--only", "module.*1.*", "-o", tmp_path / "c")
    invoke("convert", tmp_path / "c", "-o", tmp_path / "d")
    frozen = {
        name: {
            row["name"]
            for row in json.loads(invoke("show", tmp_path / name, "--json").stdout)["tensors"]
            if row["frozen"]
        }
        for name in "cd"
    }
    assert frozen["d"] == {name.removeprefix("module.") for name in frozen["c"]} != set()


def test_a_trainer_s_name_for_the_network_keeps_what_was_found_out_about_it(invoke, tmp_path):
    """torchvision's training script writes it beside an EfficientNet-B5, whose batch norms have another epsilon than timm's."""
    network = torchvision.models.efficientnet_b5(num_classes=3)
    for name, more in (("plain", {}), ("said", {"args": {"model": "efficientnet_b5"}, "arch": "efficientnet_b5"})):
        torch.save({"model": network.state_dict(), **more}, tmp_path / f"{name}.pth")
        invoke("convert", tmp_path / f"{name}.pth", "-o", tmp_path / name)
    plain, said = (
        json.loads(invoke("show", tmp_path / name, "--json").stdout)["architecture"] for name in ("plain", "said")
    )
    assert said == plain
    assert plain["args"]


def test_a_name_of_another_network_far_larger_is_no_name(invoke, tmp_path):
    weights = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}
    torch.save({"arch": "vit_giant_patch14_dinov2", "state_dict": weights}, tmp_path / "x.pth")
    done = invoke("convert", tmp_path / "x.pth", "-o", tmp_path / "x")
    assert "the architecture is not known" in done.stderr
