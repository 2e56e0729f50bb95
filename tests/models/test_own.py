"""Networks that timm does not know: what `--model` names is imported, and nothing that a checkpoint says."""

import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from wsurgery.checkpoint import open_checkpoint
from wsurgery.checkpoint.provenance import History
from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.models import create, load, models_for, save
from wsurgery.models.load import architecture_of
from wsurgery.training.predict import fit_channels, image_statistics

NETWORK = '''
"""A network of two layers. It leaves a mark when it is imported."""
import pathlib
from torch import nn
from beside import features

pathlib.Path(__file__).with_name("imported").touch()

class Small(nn.Module):
    def __init__(self, num_classes=10, in_chans=3, hidden=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_chans, 8, 3, 1, 1), nn.BatchNorm2d(8)
        self.layer1 = features(8, hidden)
        self.layer2 = features(hidden, hidden)
        self.linear = nn.Linear(hidden, num_classes)

    def forward(self, x):
        return self.linear(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())).mean((2, 3)))

def small(num_classes=10, **more):
    return Small(num_classes, **more)

def fails(num_classes):
    raise KeyError("no such thing")

def number(num_classes):
    return num_classes

network = Small()
CHANNELS = 3
'''
BESIDE = """
from torch import nn

def features(inside, outside):
    return nn.Sequential(nn.Conv2d(inside, outside, 3, 2, 1), nn.ReLU())
"""


@pytest.fixture
def own(tmp_path):
    """A module outside the package, and one that it imports from its own folder."""
    folder = tmp_path / "somewhere"
    folder.mkdir()
    (folder / "beside.py").write_text(BESIDE)
    (folder / "own.py").write_text(NETWORK)
    yield folder / "own.py"
    sys.modules.pop("beside", None)


@pytest.fixture
def made(own, invoke, tmp_path):
    """A checkpoint of it, and no trace that it was ever imported."""
    path = tmp_path / "made.safetensors"
    invoke("init", "--model", f"{own}:small", "--num-classes", 5, "--arg", "hidden=6", "--seed", 1, "-o", path)
    (own.parent / "imported").unlink()
    own.write_text(NETWORK + "# changed, so that it would be imported again\n")
    return path


def test_init_draws_as_torch_does_from_the_seed_and_records_no_folder(own, made, invoke):
    model = f"{own}:small"
    expected = {"name": "small", "num_classes": 5, "args": {"hidden": 6}, "model": "own.py:small"}
    assert json.loads(invoke("show", made, "--json").stdout)["architecture"] == expected
    network = create({"name": "small", "num_classes": 5, "args": {"hidden": 6}}, model=model, seed=1)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in load_file(made).items())
    other = create({"name": "small", "num_classes": 5, "args": {"hidden": 6}}, model=model, seed=2)
    assert not torch.equal(other.conv1.weight, network.conv1.weight)
    assert str(own.parent).encode() not in made.read_bytes()
    assert "own.py:small" in invoke("show", made).stdout.splitlines()[0]
    assert invoke("log", made).stdout.split()[:4] == ["wsurgery", "init", "--model", "own.py:small"]


def test_a_checkpoint_imports_nothing(own, made, invoke, fundus, tmp_path, monkeypatch):
    monkeypatch.chdir(own.parent)  # where the recorded name would be found
    monkeypatch.syspath_prepend(own.parent)
    run = ["--data", fundus, "-o", tmp_path / "run", "--steps", 1]
    for words in (
        ["train", made, *run],
        ["eval", made, "--data", fundus],
        ["cca", made, made, "--data", fundus],
    ):
        refused = invoke(*words, check=False)
        assert refused.exit_code == 2
        assert "made.safetensors was made with --model own.py:small: add it" in refused.stderr
        assert refused.stderr.count("\n") == 1
    refused = invoke("replay", made, check=False)
    assert refused.exit_code == 2
    assert "--model own.py:small" in refused.stderr
    with pytest.raises(UsageError, match=r"--model own\.py:small: add it"):
        load(made)
    with open_checkpoint(made) as checkpoint, pytest.raises(UsageError, match=r"--model own\.py:small: add it"):
        create(History.of(checkpoint).architecture)
    invoke("show", made)
    invoke("shuffle", made, "--upto", "block1", "-o", tmp_path / "shuffled")
    assert not (own.parent / "imported").exists()
    load(made, model="own.py:small")
    assert (own.parent / "imported").exists()


def test_a_network_is_trained_evaluated_and_compared(own, made, invoke, fundus, tmp_path):
    run, words = tmp_path / "run", ["--data", fundus, "--model", f"{own}:small", "--device", "cpu", "--threads", 1]
    training = ["train", made, *words, "-o", run, "--steps", 2, "--batch-size", 8, "--eval-every", 1]
    invoke(*training)
    shown = json.loads(invoke("show", run / "last.safetensors", "--json").stdout)
    assert shown["architecture"]["model"] == "own.py:small"
    assert "--model own.py:small" in invoke("log", run / "last.safetensors").stdout
    before = (run / "last.safetensors").read_bytes()
    invoke(*training)  # the same command goes on, which is to say that it ends
    assert (run / "last.safetensors").read_bytes() == before
    other = own.with_name("other.py")
    other.write_text(NETWORK)
    refused = invoke(*[f"{other}:small" if word == f"{own}:small" else word for word in training], check=False)
    assert refused.exit_code == 2
    assert "was begun with other model" in refused.stderr
    found = json.loads(invoke("eval", run / "last.safetensors", *words, "--bootstrap", 0, "--json").stdout)
    assert found["n"] == 42
    for other in ([made], ["--with-init"]):
        out = tmp_path / f"{len(str(other))}.json"
        invoke("cca", run / "last.safetensors", *other, *words, "-p", 200, "-o", out)
        layers = json.loads(out.read_text())["layers"]
        assert [layer["layer"] for layer in layers] == ["conv1", "block1", "block2"]


def test_of_two_networks_the_one_that_timm_knows_needs_no_model(own, made, fresh, invoke, fundus, tmp_path):
    words = ["--data", fundus, "--device", "cpu", "--threads", 1]
    given = [*words, "-p", 200, "--layers", "block1", "--model", f"{own}:small"]
    for sides in ([made, fresh], [fresh, made]):
        invoke("cca", *sides, *given)
    plain = tmp_path / "plain.safetensors"
    save_file(load_file(made), plain)
    models = models_for([made, fresh, plain], f"{own}:small")
    assert [model is not None for model in models] == [True, False, True]
    assert models_for([fresh, fresh], "x:y") == ["x:y", "x:y"]
    refused = invoke("cca", made, fresh, *given, "--arch", "cbr_tiny", check=False)
    assert refused.exit_code == 2
    assert "--arch" in refused.stderr


def test_a_plain_state_dict_says_its_sizes_by_its_tensors(own, tmp_path):
    grey = create({"name": "small", "num_classes": 7, "in_chans": 1}, model=f"{own}:Small", seed=3)
    save_file(grey.state_dict(), tmp_path / "grey.safetensors")
    network = load(tmp_path / "grey.safetensors", model=f"{own}:Small")
    assert (network.num_classes, network.in_chans) == (7, 1)
    assert fit_channels(torch.zeros(2, 3, 8, 8), network).shape == (2, 1, 8, 8)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in grey.state_dict().items())
    with pytest.raises(WsurgeryError, match=r"conv1.weight is \(8, 1, 3, 3\), the network wants \(8, 3, 3, 3\)"):
        load(tmp_path / "grey.safetensors", model=f"{own}:small")  # which does not say that it takes in_chans


class Bare(nn.Module):
    """A network that takes no argument and whose layers have names that say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Linear(4, 6)


def test_a_callable_that_takes_nothing_is_given_nothing(tmp_path):
    save_file(Bare().state_dict(), tmp_path / "x")
    network = load(tmp_path / "x", model=Bare)
    assert isinstance(network, Bare)
    assert network.num_classes == 6
    with open_checkpoint(tmp_path / "x") as checkpoint:
        found = architecture_of(checkpoint, model=Bare)
    assert found == {"name": "Bare", "args": {}, "model": f"{__name__}:Bare"}


def test_images_are_normalised_as_the_metadata_says_and_else_as_imagenets(own, tmp_path):
    architecture = {"name": "small", "num_classes": 5, "model": "own.py:small"}
    state = create(architecture, model=f"{own}:small").state_dict()
    for i, more in enumerate(({}, {"pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}})):
        save(state, History({**architecture, **more}), tmp_path / str(i))
    said = [image_statistics(load(tmp_path / str(i), model=f"{own}:small")) for i in range(2)]
    assert said == [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))]
    assert image_statistics(Bare()) == said[0]


def test_an_entry_point_of_another_package(own, invoke, tmp_path, monkeypatch):
    about = tmp_path / "site" / "other-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[wsurgery.models]\nsmall-net = own:small\n")
    monkeypatch.syspath_prepend(about.parent)
    monkeypatch.syspath_prepend(own.parent)
    out = tmp_path / "x"
    invoke("init", "--model", "small-net", "--num-classes", 3, "-o", out)
    shown = json.loads(invoke("show", out, "--json").stdout)
    assert shown["architecture"] == {"name": "small", "num_classes": 3, "args": {}, "model": "small-net"}
    assert load(out, model="small-net").num_classes == 3
    assert load(out, model="own:small").num_classes == 3
    unknown = invoke("init", "--model", "smal", "-o", tmp_path / "y", check=False)
    assert unknown.exit_code == 2
    assert "there are: small-net" in unknown.stderr
    sys.modules.pop("own", None)


ERRORS = [
    ("{folder}/missing.py:small", "there is no file"),
    ("{folder}/own.py:smal", "'smal' is no callable|smal is no callable in .*own.py; it has .*Small, small"),
    ("{folder}/own.py:CHANNELS", "CHANNELS is a int, not what makes a network"),
    ("{folder}/own.py:network", "network is a Small, not what makes a network"),
    ("{folder}/own.py", "write it as FILE.py:CALLABLE"),
    ("{folder}/own.py:", "write it as FILE.py:CALLABLE"),
    ("no.such.module:x", "cannot be imported: ModuleNotFoundError: No module named 'no'"),
    ("{folder}/broken.py:x", "broken.py, line 3: ZeroDivisionError: division by zero"),
    ("{folder}/malformed.py:x", "malformed.py, line 2: SyntaxError"),
    ("{folder}/script.py:x", "script.py, line 2: SystemExit: 3"),
    ("{folder}/own.py:Small", "TypeError: .*argument 'depth'; it takes .num_classes=10, in_chans=3, hidden=4"),
    ("{folder}/own.py:fails", "TypeError: .*'depth'; it takes .num_classes"),
    ("{folder}/own.py:number", "TypeError"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "words"), ERRORS)
def test_what_is_wrong_with_it_is_one_line(model, words, own, invoke, tmp_path):
    (own.parent / "broken.py").write_text("import torch\n\n1 / 0\n")
    (own.parent / "malformed.py").write_text("import torch\ndef f(:\n")
    (own.parent / "script.py").write_text("import sys\nsys.exit(3)\n")
    given = ["--model", model.format(folder=own.parent), "--num-classes", 5, "--arg", "depth=3", "-o", tmp_path / "x"]
    refused = invoke("init", *given, check=False)
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert re.search(words, refused.stderr), refused.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fails", r"own.py, line \d+: KeyError: 'no such thing'"),
        ("number", "returned a int: a torch.nn.Module is needed"),
    ],
)
def test_what_the_callable_does_wrong_is_said(name, words, own):
    with pytest.raises(UsageError, match=words):
        create({"name": name, "num_classes": 5}, model=f"{own}:{name}")


GOES_WRONG = """
import torch
from torch import nn

class Wrong(nn.Module):
    def __init__(self, num_classes=5, how="key"):
        super().__init__()
        self.conv1, self.fc, self.how = nn.Conv2d(3, 4, 3), nn.Linear(4, num_classes), how

    def forward(self, x):
        y = self.conv1(x).mean((2, 3))
        return {"key": lambda: {}["x"], "attribute": lambda: self.nothing, "exit": exit, "grid": lambda: self.conv1(x),
                "sizes": lambda: self.fc(torch.cat([y, y], 1)), "two": lambda: (self.fc(y), y)}[self.how]()
"""
LINES = GOES_WRONG.splitlines()
AT, SIZES = (next(i for i, line in enumerate(LINES, 1) if word in line) for word in ("nothing", "cat"))
FAILED = r"the network of --model .*wrong\.py:Wrong failed: "
TAKES = r"the network does not take images of 32 × 32 with 3 channels: "


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("key", rf"{TAKES}wrong\.py, line {AT}: KeyError: 'x'; --image-size changes their size, --debug shows the traceback"),
        ("sizes", rf"{TAKES}wrong\.py, line {SIZES}: RuntimeError: mat1 and mat2 .*\(\d+x8 and 4x5\); --image-size .*"),
        ("attribute", rf"{FAILED}wrong\.py, line {AT}: AttributeError: .*; --debug shows the traceback"),
        ("exit", rf"{FAILED}wrong\.py, line \d+: SystemExit: .*; --debug shows the traceback"),
        ("grid", r"the network gives \(\d+, 4, 30, 30\) for \d+ images, and a tensor of \(\d+, labels\) is due: .*"),
        ("two", r"the network gives a tuple for \d+ images, and a tensor of \(\d+, labels\) is due: .*"),
    ],
)  # fmt: skip
def test_a_network_that_raises_while_it_runs_is_one_line_that_names_the_file(how, said, fundus, invoke, tmp_path):
    (tmp_path / "wrong.py").write_text(GOES_WRONG)
    start, words = tmp_path / "start", ["--model", f"{tmp_path / 'wrong.py'}:Wrong", "--device", "cpu"]
    invoke("init", *words[:2], "--num-classes", 5, "--arg", f"how={how}", "-o", start)
    for command, more in (("train", ["-o", tmp_path / "run"]), ("eval", [])):
        refused = invoke(command, start, *words, "--data", fundus, *more, check=False)
        assert refused.exit_code == 1
        assert re.fullmatch(rf"(labels: .*\nimages: .*\n)?wsurgery {command}: {said}\n", refused.stderr), refused.stderr
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_tensors_of_another_network_name_the_first(own, fresh):
    with pytest.raises(WsurgeryError, match="is in the network and not in the file"):
        load(fresh, model=f"{own}:small")


def test_a_file_that_was_changed_is_imported_anew(own):
    assert create({"name": "small"}, model=f"{own}:small").conv1.out_channels == 8
    own.write_text(NETWORK.replace("in_chans, 8", "in_chans, 16"))
    assert create({"name": "small"}, model=f"{own}:small").conv1.out_channels == 16


@pytest.mark.parametrize("words", [[], ["cbr_tiny", "--model", "x:y"], ["--model", "x:y", "--width", 0.5]])
def test_init_makes_one_network_of_one_kind(words, invoke, tmp_path):
    refused = invoke("init", *words, "-o", tmp_path / "x", check=False)
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1


TWO_OUTPUTS = """
from torch import nn

class Two(nn.Module):
    \"\"\"Its names say nothing; the output that is defined last does not run, and has a row.\"\"\"

    def __init__(self, num_classes=3):
        super().__init__()
        self.down = nn.ModuleDict({"s1": nn.Conv2d(8, 8, 3, 2), "s2": nn.Conv2d(8, 16, 3, 2)})
        self.entry = nn.Conv2d(3, 8, 5, 2)
        self.finding = nn.Linear(16, num_classes)
        self.age = nn.Linear(16, 1)

    def forward(self, x):
        x = self.down["s2"](self.down["s1"](self.entry(x)).relu()).relu()
        return self.finding(x.mean((2, 3)))
"""


def test_of_two_outputs_the_one_that_runs_has_the_classes(invoke, fundus, tmp_path):
    (tmp_path / "two.py").write_text(TWO_OUTPUTS)
    model, fresh = ["--model", f"{tmp_path / 'two.py'}:Two"], tmp_path / "fresh"
    invoke("init", *model, "--num-classes", 5, "-o", fresh)
    blocks = {row["name"]: row["block"] for row in json.loads(invoke("show", fresh, "--json").stdout)["tensors"]}
    assert blocks["entry.weight"] == "block1"
    assert {name for name, block in blocks.items() if block == "head"} == {
        f"{module}.{part}" for module in ("finding", "age") for part in ("weight", "bias")
    }
    said = invoke("new-head", fresh, "--num-classes", 7, "-o", tmp_path / "seven").stderr
    assert "kept the other outputs: age.weight (1, 16)" in said
    shapes = {name: tuple(x.shape) for name, x in load_file(tmp_path / "seven").items()}
    assert (shapes["finding.weight"], shapes["finding.bias"], shapes["age.weight"]) == ((7, 16), (7,), (1, 16))
    short = ["--data", fundus, "--steps", 1, "--batch-size", 4, "--device", "cpu", "--threads", 1, "--quiet"]
    invoke("train", fresh, *model, *short, "-o", tmp_path / "run")
    # The convolution that meets the image is that of the recorded map.
    for command in ("filters", "histogram"):
        invoke(command, fresh, "-o", tmp_path / f"{command}.svg")
    invoke("gabor", fresh, "-o", tmp_path / "gabor")
    assert not torch.equal(load_file(tmp_path / "gabor")["entry.weight"], load_file(fresh)["entry.weight"])


def test_the_head_that_a_map_names_has_the_classes(invoke, fundus, tmp_path):
    (tmp_path / "two.py").write_text(TWO_OUTPUTS)
    model = ["--model", f"{tmp_path / 'two.py'}:Two"]
    plain = create({"name": "Two", "args": {}}, model=f"{tmp_path / 'two.py'}:Two").state_dict()
    save_file(plain, tmp_path / "plain")  # as of another tool, without a history
    given = json.dumps({"low": ["entry.*", "down.*", "age.*"], "head": ["finding.*"]})
    invoke("meanvar", tmp_path / "plain", "--block-map", given, "-o", tmp_path / "mapped")
    invoke("new-head", tmp_path / "mapped", "--num-classes", 5, "-o", tmp_path / "five")
    short = ["--data", fundus, "--steps", 1, "--batch-size", 4, "--device", "cpu", "--threads", 1, "--quiet"]
    invoke("train", tmp_path / "five", *model, *short, "-o", tmp_path / "run")
    assert load_file(tmp_path / "run" / "last.safetensors")["finding.weight"].shape == (5, 16)


def test_without_a_history_the_output_called_classifier_has_the_classes(invoke, tmp_path):
    tensors = {"layer1.0.weight": torch.ones(4, 3, 3, 3), "classifier.weight": torch.ones(7, 4)}
    save_file({**tensors, "head_age.weight": torch.ones(1, 4)}, tmp_path / "x")
    invoke("new-head", tmp_path / "x", "--num-classes", 5, "-o", tmp_path / "y")
    made = load_file(tmp_path / "y")
    assert (made["classifier.weight"].shape, made["head_age.weight"].shape) == ((5, 4), (1, 4))
