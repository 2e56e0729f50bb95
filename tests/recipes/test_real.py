"""The recipes at real scale: on a tree and weights like the real ones, and on tables and networks of anybody's."""

import csv
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from wsurgery.models import create
from wsurgery.recipe import copy_recipe

CIFAR = Path(__file__).parents[2] / "recipes" / "cifar_resnet.py"
SMALL = ["STEPS=2", "EVAL_EVERY=1", "EVAL_SUBSET=20", "THRESHOLD=0.5"]
NETWORK = """
from torch import nn

class Odd(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.patchify = nn.Sequential(nn.Conv2d(3, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.layers = nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(6)))
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.fc(self.layers(self.patchify(x)).mean((2, 3)))
"""


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    """Cells of 16 patients and a ResNet-20, as they are downloaded: an archive, and a .th file."""
    root, rng = tmp_path_factory.mktemp("downloads"), np.random.default_rng(0)
    cells = root / "unpacked" / "cell_images"
    for i in range(192):
        kind = ("Parasitized", "Uninfected")[i % 2]
        (cells / kind).mkdir(parents=True, exist_ok=True)
        name = f"C{i // 12 + 1}P{i // 12 + 1}ThinF_IMG_2015_cell_{i}.png"
        Image.fromarray(rng.integers(0, 128 + 120 * (i % 2), (24, 24), np.uint8)).save(cells / kind / name)
    with tarfile.open(root / "malaria.tar.gz", "w:gz") as archive:
        archive.add(cells, "cell_images")
    network = create({"name": "resnet20", "num_classes": 10}, model=f"{CIFAR}:resnet20")
    state = {f"module.{name}": value for name, value in network.state_dict().items() if not name.endswith("tracked")}
    torch.save({"state_dict": state, "best_prec1": 91.7}, root / "resnet20-12fca82f.th")
    return root


@pytest.mark.slow
def test_the_folds_of_the_seeds_test_each_patient_once(downloads, make, tmp_path, invoke):
    study, given = (
        tmp_path / "study",
        ["SCALE=real", f"DATA_ROOT={downloads}", "NETS=cifar_resnet20", "SEEDS=1 2", "FOLDS=4"],
    )
    copy_recipe("meanvar", study)
    make(study, "-j2", *given, *SMALL, "results")
    out = study / "out" / "real" / "malaria"
    tested = []
    for fold in (1, 2):
        with (out / "data" / f"target-{fold}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 192
        tested.append({row["patient"] for row in rows if row["split"] == "test"})
        config = json.loads((out / f"cifar_resnet20/runs/transfer/{fold}/config.json").read_text())
        assert config["data"]["spec"].endswith(f"target-{fold}.csv")
        result = json.loads((out / f"cifar_resnet20/runs/transfer/{fold}/eval.json").read_text())
        assert (result["n"], result["units"], result["image_size"]) == (48, 4, 32)
    assert len(tested[0] | tested[1]) == 8
    assert not tested[0] & tested[1]
    start = load_file(out / "cifar_resnet20/init/transfer/1.safetensors")
    source = torch.load(downloads / "resnet20-12fca82f.th")["state_dict"]
    assert torch.equal(start["layer3.2.conv2.weight"], source["module.layer3.2.conv2.weight"])
    found = (study / "RESULTS-real.md").read_text()
    assert found.startswith("# study, on real images\n\n## The paper\n")
    assert "# malaria\n" in found
    assert all(f"| {arm} | 2 |" in found for arm in ("random", "transfer", "meanvar"))
    make(study, "-q", *given, *SMALL)
    runs = out / "cifar_resnet20"
    words = f"report {runs} --arms random,transfer,meanvar --cca none --seeds 1,2 --threshold 0.5"
    judged = json.loads(
        invoke(*words.split(), "--claims", study / "claims.txt", "--json", "-o", tmp_path / "x.md").stdout
    )["claims"]
    done = subprocess.run(
        [sys.executable, CIFAR.parent / "findings.py", study / "out" / "real", study / "RESULTS-real.md"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert judged
    for claim in judged:
        (row,) = [line for line in done.stdout.splitlines() if claim["claim"].rstrip(".") in line]
        assert claim["verdict"].partition(":")[0].rstrip(".") in row
        assert claim["effect"] in row
        assert row.endswith(" of 1 |")
    others = ["# first\n\nof another set\n", "# last\n\nof a third\n"]
    own = found[found.index("# malaria\n") :]
    head = found[: -len(own)]
    (study / "RESULTS-real.md").write_text("\n".join([head + others[0], own.replace("random", "old"), others[1]]))
    make(study, *given, *SMALL, "results")
    assert (study / "RESULTS-real.md").read_text() == "\n".join([head + others[0], own, others[1]])


def test_the_findings_are_those_of_the_pages():
    """Each claim that a page of real results judges is a cell, with its p, and counts for its set."""
    pages = sorted(CIFAR.parent.glob("*/RESULTS-real.md"))
    assert len(pages) >= 16
    done = subprocess.run(
        [sys.executable, CIFAR.parent / "findings.py", CIFAR.parent / "out" / "real", *pages],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    for page in pages:
        rows = [line for line in done.stdout.splitlines() if line.startswith(f"| [{page.parent.name}](")]
        judged = [line for line in page.read_text().splitlines() if line.startswith("- **")]
        counted = [re.search(r"(\d+) of (\d+) \|$", row).groups() for row in rows]
        assert sum(int(tested) for _, tested in counted) == len(judged)
        shown = [line for line in judged if re.search(r"\*shown here[^(]*\(p", line)]
        assert sum(int(held) for held, _ in counted) == len(shown)
        for line in judged:
            if p := re.search(r"\(p = [^,)]+", line):
                sentence = re.match(r"- \*\*(.+?)\.(?: \([\w, ]+\))?\*\*", line)[1]
                assert any(p[0] in row and sentence in row for row in rows), line


def test_small_data_shrinks_validation_and_keeps_epochs_equal(downloads, make, tmp_path):
    copy_recipe("small-data", tmp_path / "study")
    nets = "NETS=cifar_resnet20@20 cifar_resnet20@60 cifar_resnet20@60@7"
    given = ["SCALE=real", f"DATA_ROOT={downloads}", nets, "SEEDS=3", "EVAL_SUBSET=50"]
    planned = make(tmp_path / "study", "-n", *given)
    trained = dict(re.findall(r"wsurgery train \S+/malaria/(\S+?)/init/random/3.safetensors (.*)", planned))
    assert {net: re.findall(r"--(?:steps|epochs|subset|eval-subset) \d+", line) for net, line in trained.items()} == {
        "cifar_resnet20@20": ["--steps 300", "--eval-subset 50", "--subset 20", "--eval-subset 20"],
        "cifar_resnet20@60": ["--steps 300", "--eval-subset 50", "--subset 60", "--eval-subset 50"],
        "cifar_resnet20@60@7": ["--epochs 7", "--eval-subset 50", "--subset 60", "--eval-subset 50"],
    }


def test_an_arm_has_the_rate_that_its_name_says(downloads, make, tmp_path):
    planned = make("learning-rate", "-n", "SCALE=real", f"DATA_ROOT={downloads}", f"OUT={tmp_path}", "RATES=0.02 0.5")
    rates = re.findall(
        r"wsurgery train \S+/init/(\S+)/101.safetensors .* --lr 0.001 .* --lr (\S+) --seed 101 ", planned
    )
    assert sorted(rates) == [
        (f"{arm}-lr{rate}", rate) for arm in ("meanvar", "random", "transfer") for rate in ("0.02", "0.5")
    ]
    assert "wsurgery eval" not in planned


def test_a_specification_with_commas_goes_through_whole(make, tmp_path):
    """make's functions end an argument at a comma; the value of a variable, expanded inside one, they do not."""
    (tmp_path / "my.csv").touch()
    data = f"{tmp_path}/my.csv?labels=a,b"
    target = tmp_path / "data" / "target-1.csv"
    planned = make(
        "meanvar", "-n", target, "SCALE=real", "SOURCE_NET=x", f"DATA={data}", f"OUT={tmp_path}", "SEEDS=1", "FOLDS=5"
    )
    assert f'wsurgery data make "{data}&fold=1/5"' in planned


def test_where_all_networks_of_one_maker_are_evaluated_only_the_others_are(downloads, make, tmp_path):
    """In slim two makers share a fold: the whole network's runs are those of other recipes, and evaluated already."""
    runs = tmp_path / "cifar_resnet20" / "runs"
    for arm in ("random", "transfer", "slim-random", "slim-transfuse-block2"):
        (runs / arm / "1").mkdir(parents=True)
        (runs / arm / "1" / "metrics.json").touch()
        os.utime(runs / arm / "1" / "metrics.json", (1, 1))
    for arm in ("random", "transfer"):
        (runs / arm / "1" / "eval.json").touch()
    planned = make("slim", "-n", "SCALE=real", f"DATA_ROOT={downloads}", f"OUT={tmp_path}", "SEEDS=1", "FOLDS=1")
    evaluated = [line.partition(" --data")[0] for line in planned.splitlines() if line.startswith("wsurgery eval")]
    assert [re.findall(r"runs/(\S+)/1", line) for line in evaluated] == [["slim-random", "slim-transfuse-block2"]]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "made"), [("transfuse", 3), ("freeze", 8)])
def test_any_table_and_any_network_by_two_variables(recipe, made, make, tmp_path, invoke):
    """A network whose blocks have other names than ours, a table with other columns, and folds of its patients."""
    (tmp_path / "net.py").write_text(NETWORK)
    rng = np.random.default_rng(1)
    rows = ["picture,who,ill"]
    for i in range(120):
        Image.fromarray(rng.integers(0, 128 + 120 * (i % 2), (24, 24), np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,p{i // 4},{i % 2}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    invoke("init", "--model", f"{tmp_path / 'net.py'}:Odd", "--num-classes", 7, "-o", tmp_path / "w.safetensors")
    copy_recipe(recipe, tmp_path / "study")
    data = f"DATA={tmp_path / 'table.csv'}?path=picture&patient=who&labels=ill"
    given = ["NETS=odd", f"MODEL_odd={tmp_path / 'net.py'}:Odd", f"SOURCE_odd={tmp_path / 'w.safetensors'}", "FIGURES="]
    given += [data, "SCALE=real", "FOLDS=3", "SEEDS=2", "IMAGE_SIZE=24"]
    make(tmp_path / "study", "-j2", *given, *SMALL)
    runs = tmp_path / "study" / "out" / "real" / "own" / "odd" / "runs"
    arms = {path.name for path in runs.iterdir()} - {"random", "transfer"}
    assert len(arms) == made
    assert all((runs / arm / "2" / "eval.json").exists() for arm in arms)
    shown = json.loads(invoke("show", tmp_path / "w.safetensors", "--json").stdout)
    blocks = [block["name"] for block in shown["blocks"]]
    assert {re.sub("^(transfuse|freeze-hybrid|freeze-random|freeze)-", "", arm) for arm in arms} <= {*blocks} - {"head"}
    assert f"freeze-{blocks[-2]}" in arms or recipe == "transfuse"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["DATA_ROOT=/nowhere"], "DATA_ROOT=FOLDER with malaria/ or malaria.tar.gz in it"),
        (["DATA_ROOT=/nowhere", "SET=odir"], "with odir/ or odir.tar.gz in it"),
        (["DATA=folder:/x", "SOURCE_cifar_resnet20="], "needs SOURCE_NET=FILE"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(given, words, tmp_path):
    line = [
        "make",
        "-n",
        "-C",
        str(CIFAR.parent / "meanvar"),
        "SCALE=real",
        "NETS=cifar_resnet20",
        f"OUT={tmp_path / 'out'}",
    ]
    done = subprocess.run([*line, *given], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert words in done.stderr
