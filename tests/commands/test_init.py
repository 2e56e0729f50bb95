import csv
import json

import pytest
import torch
from safetensors.torch import load_file

import wsurgery
from tests.conftest import watching_imports
from wsurgery.data.dataset import load_dataset


def test_the_seed_decides_every_byte(invoke, fresh, tmp_path):
    given = ["init", "cbr_tiny", "--width", 0.05, "--num-classes", 5]
    invoke(*given, "--seed", 1, "-o", tmp_path / "same")
    invoke(*given, "--seed", 2, "-o", tmp_path / "other")
    assert (tmp_path / "same").read_bytes() == fresh.read_bytes()
    assert (tmp_path / "other").read_bytes() != fresh.read_bytes()
    weights, others = load_file(fresh), load_file(tmp_path / "other")
    assert not (weights["block1.conv.weight"] == others["block1.conv.weight"]).any()


def test_a_pipe_carries_the_architecture_on(fresh, shell, invoke, tmp_path):
    line = (
        "wsurgery init cbr_tiny --width 0.05 --num-classes 5 --seed 1 | tee piped"
        f" | wsurgery transfuse {fresh} --upto block1 > transfused"
    )
    done = shell(line, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "piped").read_bytes() == fresh.read_bytes()
    shown = json.loads(invoke("show", tmp_path / "transfused", "--json").stdout)
    expected = {"name": "cbr_tiny", "num_classes": 5, "in_chans": 3, "args": {"width": 0.05}}
    assert shown["architecture"] == expected
    assert [block["name"] for block in shown["blocks"]] == ["block1", "block2", "block3", "block4", "head"]


def test_any_timm_model_with_its_own_arguments(invoke, tmp_path):
    invoke(
        "init",
        "resnet10t",
        "--arg",
        "drop_rate=0.5",
        "--arg",
        "channels=(8, 8, 8, 8)",
        "--in-chans",
        1,
        "-o",
        tmp_path / "x",
    )
    shown = json.loads(invoke("show", tmp_path / "x", "--json").stdout)
    assert shown["architecture"] == {
        "name": "resnet10t",
        "num_classes": 1000,
        "in_chans": 1,
        "args": {"drop_rate": 0.5, "channels": [8, 8, 8, 8]},
    }
    from wsurgery.models import load

    assert load(tmp_path / "x").drop_rate == 0.5


@pytest.mark.parametrize("arch", ["resnet50_slim", "cbr_tiny"])
def test_plain_resnets_and_the_cbr_family_are_made_without_torch(arch, shell, tmp_path):
    run = watching_imports(tmp_path)
    done = shell(f"{run} init {arch} --num-classes 5 --width 0.5 -o x", tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    from wsurgery.models import load

    model = load(tmp_path / "x")
    assert model.num_classes == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resnet5O"], "resnet50"),
        (["cbr_tiny", "--arg", "kernel"], "--arg kernel: write it as KEY=VALUE"),
        (["cbr_tiny", "--arg", "a b=1"], "KEY=VALUE"),
        (["cbr_tiny", "--arg", "colour=red"], "'colour'"),
        (["resnet18", "--arg", "output_stride=3"], "resnet18 cannot be built"),
        (["convnext_atto", "--width", "0.5"], "--width is for the CBR networks"),
        (["resnet18", "--width", "inf"], "--width inf"),
        (["resnet18", "--width", "0.5", "--arg", "channels=(8, 8, 8, 8)"], "--width and --arg channels"),
        (["resnext50_32x4d", "--width", "0.1"], "leaves resnext50_32x4d no channels"),
        (["cbr_tiny", "--mean", "0.5,0.5"], "--mean 0.5,0.5: write it as R,G,B, three numbers, or one for all three"),
        (["cbr_tiny", "--mean", "0.5,,0.5"], "--mean 0.5,,0.5"),
        (["resnet10t", "--mean", "0.5,0.5,inf"], "--mean 0.5,0.5,inf"),
        (["cbr_tiny", "--std", "0.2,0.2,0"], "--std 0.2,0.2,0: write it as R,G,B, three numbers above 0"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(arguments, words, invoke, tmp_path):
    done = invoke("init", *arguments, "-o", tmp_path / "x", check=False)
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_the_bytes_of_a_seed_are_fixed(invoke, tmp_path):
    # A promise: another machine or version of numpy draws the same.
    invoke("init", "resnet18", "--width", 0.1, "--num-classes", 3, "--seed", 7, "-o", tmp_path / "x")
    weights = load_file(tmp_path / "x")
    assert weights["conv1.weight"].flatten()[:3].tolist() == [
        -0.04523762688040733,
        0.030482910573482513,
        0.004462632350623608,
    ]
    assert weights["fc.bias"].tolist() == [-0.03671123832464218, 0.07463309168815613, -0.12689702212810516]


def test_an_existing_file_is_replaced_by_force_only(invoke, fresh, tmp_path):
    (tmp_path / "x").write_bytes(b"something")
    given = ["init", "cbr_tiny", "--width", 0.05, "--num-classes", 5, "--seed", 1, "-o", tmp_path / "x"]
    assert invoke(*given, check=False).exit_code == 2
    assert (tmp_path / "x").read_bytes() == b"something"
    invoke(*given, "--force")
    assert (tmp_path / "x").read_bytes() == fresh.read_bytes()


@pytest.mark.parametrize(
    "arch", ["resnet18", "resnet26", "resnetv2_50", "efficientnet_lite0"]
)  # ours, and three of timm's
def test_open_branches_are_the_same_draws_with_norms_at_the_identity(arch, invoke, tmp_path):
    opened, reset = tmp_path / "opened.safetensors", tmp_path / "reset.safetensors"
    invoke("init", arch, "--num-classes", 3, "--seed", 5, "--no-zero-init-last", "-o", opened)
    invoke("init", arch, "--num-classes", 3, "--seed", 5, "-o", tmp_path / "own.safetensors")
    invoke("reset-bn", tmp_path / "own.safetensors", "-o", reset)
    a, b, own = load_file(opened), load_file(reset), load_file(tmp_path / "own.safetensors")
    assert list(a) == list(b)
    assert all((a[name] == b[name]).all() for name in a)
    closed = [name for name in own if name.endswith("weight") and not own[name].any()]
    assert len(closed) == {"resnet18": 8, "resnet26": 8, "resnetv2_50": 0, "efficientnet_lite0": 0}[arch]


def test_open_branches_leave_response_norms_alone(invoke, tmp_path):
    """ConvNeXt V2's, whose weights of 0 let all through: they close nothing."""
    given = ["init", "convnextv2_atto", "--num-classes", 3]
    invoke(*given, "-o", tmp_path / "own")
    invoke(*given, "--no-zero-init-last", "-o", tmp_path / "opened")
    own, opened = load_file(tmp_path / "own"), load_file(tmp_path / "opened")
    assert any(name.endswith("grn.weight") and not own[name].any() for name in own)
    assert all((own[name] == opened[name]).all() for name in own)


RED, SMALL = ("--mean", "0.7,0.2,0.1", "--std", "0.1,0.3,0.9"), ("--threads", 1, "--device", "cpu")


@pytest.mark.parametrize("arch", ["cbr_tiny", "resnet10t", "own"])  # ours, timm's, and what neither knows
def test_images_are_normalised_as_init_says_by_hand(arch, invoke, fundus, tmp_path):
    (tmp_path / "net.py").write_text(
        "from wsurgery.models.cbr import cbr_tiny\ndef own(**more):\n    return cbr_tiny(**more)\n"
    )
    model = ["--model", f"{tmp_path / 'net.py'}:own"] if arch == "own" else []
    size = ["--arg", "channels=(8, 8, 8, 8)"] if arch == "resnet10t" else ["--arg", "width=0.05"]
    invoke("init", *(model or [arch]), *size, "--num-classes", 5, "--seed", 1, *RED, "-o", tmp_path / "x")
    assert json.loads(invoke("show", tmp_path / "x", "--json").stdout)["architecture"]["pretrained_cfg"] == {
        "mean": [0.7, 0.2, 0.1],
        "std": [0.1, 0.3, 0.9],
    }
    invoke("eval", tmp_path / "x", *model, "--data", fundus, "--predictions", tmp_path / "p.csv", *SMALL)
    with (tmp_path / "p.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    data = load_dataset(fundus, split="test")
    found = [[float(row[f"logit_{name}"]) for name in data.label_names] for row in rows]
    by_hand = torch.tensor((data.images / 255 - [0.7, 0.2, 0.1]) / [0.1, 0.3, 0.9]).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        network = wsurgery.open(tmp_path / "x").load(**({"model": model[1]} if model else {}))
        torch.testing.assert_close(torch.tensor(found), network(by_hand), rtol=1e-4, atol=1e-5)


def test_half_the_deviation_is_twice_the_first_weights_to_train_and_to_cca(invoke, fundus, tmp_path):
    given = ["cbr_tiny", "--width", 0.05, "--num-classes", 5, "--seed", 1]
    for name, mean, std in (("half", 0.5, 0.5), ("once", 0.5, 1), ("bare", 0, 1)):
        invoke("init", *given, "--mean", mean, "--std", std, "-o", tmp_path / name)
    invoke("scale", tmp_path / "once", "--by", 2, "--only", "block1.conv.weight", "-o", tmp_path / "twice")
    found = {}
    for name in ("half", "twice", "bare"):
        one = ["--steps", 1, "--lr", 0, "--eval-every", 1, "--crop", 0, "--hue", 0, "--contrast", 0]
        invoke("train", tmp_path / name, "--data", fundus, "-o", tmp_path / f"run-{name}", *one, *SMALL)
        entry = json.loads((tmp_path / f"run-{name}" / "log.jsonl").read_text().splitlines()[-1])
        pair = [tmp_path / name, tmp_path / "bare", "--data", fundus, "-d", 2, "-p", 500, "--repeats", 2, "--json"]
        layers = json.loads(invoke("cca", *pair, *SMALL).stdout)["layers"]
        found[name] = (entry["auc"], [layer["value"] for layer in layers])
    assert found["half"] == found["twice"]
    assert found["half"][0] != found["bare"][0]
    assert found["half"][1] != found["bare"][1]
    assert wsurgery.open(tmp_path / "run-half" / "best.safetensors").load().trained_on.std == (0.5,) * 3


def test_python_takes_the_numbers_themselves():
    made = wsurgery.init("cbr_tiny", arg=["width=0.05"], mean=(0.7, 0.2, 0.1)).load()
    assert made.pretrained_cfg["mean"] == (0.7, 0.2, 0.1)
