"""The paper's recipes: complete, readable, and run at their smallest, on drawn data and on trees like the real data's."""

import csv
import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

RECIPES = Path(__file__).parents[2] / "recipes"
BEYOND = ["barrier", "effective-rate", "ladder", "lottery", "partial", "rewind", "soup"]
PAPER = sorted({path.parent.name for path in RECIPES.glob("*/paper.md")} - {*BEYOND})
TINY = ["NETS=cbr_tiny", "WIDTH=0.05", "SEEDS=1 2", "IMAGES=64", "STEPS=4", "EVAL_EVERY=4", "PRETRAIN=4"]
DISEASES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")


def test_every_experiment_of_the_paper_has_its_recipe_and_its_result():
    listed = re.search(r"RECIPES := ((?:.*\\\n)*.*)\n", (RECIPES / "Makefile").read_text())
    assert sorted(listed[1].replace("\\\n", " ").split()) == PAPER
    assert len(PAPER) == 16
    for recipe in PAPER:
        assert {"Makefile", "README.md", "RESULTS.md", "paper.md"} <= {
            path.name for path in (RECIPES / recipe).iterdir()
        }


@pytest.mark.parametrize(
    "folder", [".", *(f"recipes/{name}" for name in (*PAPER, *BEYOND, "demo", "imagenet-surgery", "own-network"))]
)
def test_an_old_make_says_what_is_needed_before_it_does_anything(folder):
    old = ["make", "-C", RECIPES.parent / folder, "MAKE_VERSION=3.81"]
    done = subprocess.run(old, capture_output=True, text=True, env={**os.environ, "MAKEFLAGS": ""}, timeout=60)
    assert done.returncode == 2
    assert "need GNU make 4.3 or later, this is 3.81: brew install make, then gmake" in done.stderr
    assert not [line for line in done.stdout.splitlines() if "directory" not in line]


@pytest.mark.parametrize("recipe", [*PAPER, *BEYOND])
def test_every_line_is_a_command_that_a_user_can_type(recipe, make, tmp_path):
    source = tmp_path / "source.safetensors"
    source.touch()
    given = [f"SOURCE_{net}={source}" for net in ("resnet50", "inception_v3")]
    root = tmp_path / "root"
    (root / "malaria").mkdir(parents=True)
    for name in ("resnet20-12fca82f.th", "resnet56-4bfd9763.th"):
        (root / name).touch()
    real = ["SCALE=real", f"DATA_ROOT={root}", f"SOURCE_tf_efficientnet_lite0={source}"]
    scales = (real, [], ["SCALE=paper", "DATA=chexpert:/d", "SOURCE_DATA=folder:/i", *given])
    for variables in scales:
        lines = make(recipe, "-n", f"OUT={tmp_path / 'out'}", *variables).replace("\\\n", " ").splitlines()
        for line in lines:
            line = re.sub(r"\$\(wsurgery data show \S+ --labels \| wc -l\)", "5", line)
            if "/settings/" not in line:  # stamps
                assert all(
                    stage.split()[0] in ("wsurgery", "python", "mkdir", "ln", "touch") for stage in line.split(" | ")
                ), line
    assert "--device" not in " ".join(lines)  # the toy's limits stay in the toy
    assert not (tmp_path / "out").exists()


@pytest.fixture
def planned(make, tmp_path):
    """Return the lines of `make -n` with one seed, of which those that hold `word`."""

    def plan(recipe, word, *variables, scale="paper", data="eyepacs:/d"):
        (source := tmp_path / "source.safetensors").touch()
        given = [f"SOURCE_{net}={source}" for net in ("resnet50", "cifar_resnet20", "cifar_resnet56")]
        given += [f"SCALE={scale}", "SEEDS=1", f"OUT={tmp_path / 'out'}", "SOURCE_DATA=folder:/i", *variables]
        given += [] if scale == "toy" else [f"DATA={data}"]
        lines = make(recipe, "-n", *given).splitlines()
        return [line for line in lines if line.startswith("wsurgery") and word in line]

    return plan


def last(option, line):
    """The value of an option that counts: the last one."""
    return re.findall(rf"{option} (\S+)", line)[-1]


@pytest.mark.parametrize(("data", "every", "threshold"), [("chexpert:/d", 500, "80%"), ("eyepacs:/d", 2000, "0.91")])
def test_the_papers_speeds_are_told_by_more_than_an_evaluation_an_epoch(data, every, threshold, planned):
    lines = [line for line in planned("transfuse", "wsurgery train", data=data) if "/runs/" in line]
    assert len(lines) == 11 + 2 * (data == "chexpert:/d")  # and the twins, whose end the shares are of
    assert {(last("--eval-every", x), last("--eval-subset", x)) for x in lines} == {(f"{every}", "3000")}
    (report,) = planned("transfuse", "wsurgery report", data=data)
    assert last("--threshold", report).split(",")[0] == threshold
    assert ("--plateau random-twin" in report) == (data == "chexpert:/d")


def test_small_training_sets_are_evaluated_once_an_epoch_at_least(planned):
    lines = planned("small-data", "--subset", "NETS=resnet50@5000 resnet50@100000 resnet50@1000@7", "ARMS=random")
    found = [[last(f"--{key}", x) for key in ("subset", "eval-every", "eval-subset")] for x in lines]
    assert found == [["5000", "625", "3000"], ["100000", "2000", "3000"], ["1000", "125", "1000"]]  # batches of 8
    assert [re.findall(r"--epochs (\d+)", line) for line in lines] == [[], [], ["7"]]


def test_the_papers_sources_are_pretrained_as_imagenets(planned):
    from wsurgery.training.flags import Flags
    from wsurgery.training.optimisation import make_optimizer, make_scheduler
    from wsurgery.training.settings import Settings

    (line,) = (x for x in planned("filters", "wsurgery train") if "/sources/" in x)
    words = dict(re.findall(r"--([\w-]+) (\w[\w.,]*)", line))
    assert (words["loss"], words["batch-size"], words["optimizer"]) == ("softmax", "256", "momentum")
    flags = Flags(epochs=int(words["epochs"]), lr=float(words["lr"]), decay_epochs=words["decay-epochs"])
    settings = flags.settings(Settings(optimizer="momentum", warmup_epochs=int(words["warmup-epochs"])))
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], settings)
    schedule = make_scheduler(optimizer, settings, epoch_steps=10)
    rates = {}
    for step in range(900):
        schedule.step_update(step)
        rates[step / 10] = optimizer.param_groups[0]["lr"]
    assert rates[2.5] == pytest.approx(0.05)
    assert [rates[epoch] for epoch in (5, 29, 31, 59, 61, 79, 81, 89)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001]
    )


def test_all_networks_of_the_paper_see_images_as_imagenets(planned):
    lines = planned("cca-to-init", "wsurgery init")
    with_own = [line for line in lines if "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225" in line]
    assert len(with_own) == 2  # the source, and random
    assert with_own == [line for line in lines if "inception_v3" in line]
    cca = planned("cca-to-init", "wsurgery cca")
    assert cca
    assert all("--rows whole" in line for line in cca)
    assert not any("--rows" in line for line in planned("cca-to-init", "wsurgery cca", scale="toy"))


@pytest.mark.parametrize("recipe", ["batch-norm", "sample-shuffle"])
def test_dashed_lines_of_the_paper_are_arms_but_in_the_toy(recipe, planned):
    arms = {
        s: set(last("--arms", planned(recipe, " report ", scale=s)[0]).split(",")) for s in ("toy", "real", "paper")
    }
    assert arms["real"] == arms["paper"] >= {"random", "transfer"}
    assert arms["toy"] == arms["paper"] - ({"random", "transfer"} if recipe == "batch-norm" else {"transfer"})


def test_the_papers_figure_by_disease_is_drawn(planned):
    (line,) = planned("meanvar", "--by label", "NETS=resnet50", data="chexpert:/d")
    assert last("-o", line).endswith("/labels-meanvar-resnet50.png")
    (mean,) = (x for x in planned("meanvar", "wsurgery curves", "NETS=resnet50", data="chexpert:/d") if x != line)
    assert re.findall(r"\S+/runs/\S+", line) == re.findall(r"\S+/runs/\S+", mean)
    assert planned("meanvar", "--by label", scale="toy") == []


@pytest.mark.slow
def test_a_recipe_runs_through_and_shares_its_runs_with_the_next(make, tmp_path):
    out = f"OUT={tmp_path / 'out'}"
    make("meanvar", "-j2", out, *TINY)
    page = (tmp_path / "out" / "meanvar.html").read_text()
    for arm in ("random", "transfer", "meanvar"):
        assert arm in page
        assert json.loads((tmp_path / "out/cbr_tiny/runs" / arm / "2" / "metrics.json").read_text())["steps"] == 4
    make("meanvar", "-q", out, *TINY)  # fails if anything would be made again
    planned = make("cca-seeds", "-n", out, *TINY)
    assert set(re.findall(r"wsurgery train \S+/init/([\w-]+)/", planned)) == {"transfer-twin"}
    make("cca-seeds", "-j2", out, *TINY, "ITSELF=cbr_tiny --width 0.05")
    pair = json.loads((tmp_path / "out/cbr_tiny/cca/pretrained-pair/1.json").read_text())
    assert [layer["layer"] for layer in pair["layers"]] == ["block1", "block2", "block3", "block4"]
    assert "pretrained-pair" in (tmp_path / "out" / "cca-seeds.html").read_text()


def test_what_stands_before_a_job_runs_it(make, tmp_path):
    planned = make("meanvar", "-n", f"OUT={tmp_path}", *TINY, "RUN=srun -n1")
    jobs = [line for line in planned.splitlines() if re.search(r"wsurgery (train|eval|cca)", line)]
    assert jobs
    assert all(line.startswith("srun -n1 wsurgery ") for line in jobs)
    assert len(re.findall("srun", planned)) == len(jobs)


@pytest.mark.parametrize(
    ("recipe", "alone"), [("barrier", "wsurgery path"), ("soup", "(python soup.py|wsurgery path)")]
)
def test_what_is_for_one_process_is_run_without_torchrun(recipe, alone, make, tmp_path):
    def planned(*given: str) -> list[str]:
        return make(recipe, "-n", f"OUT={tmp_path}", *TINY, "NETS=resnet18", *given).splitlines()

    lines = planned("RUN=torchrun --nproc-per-node 2 -m")
    assert all(line.startswith("torchrun") for line in lines if " train " in line)
    assert sum(bool(re.match(alone, line)) for line in lines) >= 2
    assert not [
        line for line in lines if line.startswith("torchrun") and not re.search("wsurgery (train|eval|cca)", line)
    ]
    for given in (["RUN=srun -n1"], ["RUN=torchrun -m", "RUN_ALONE=srun -n1"]):
        lines = [line for line in planned(*given) if re.search(alone, line)]
        assert lines
        assert all(line.startswith("srun -n1 ") for line in lines)


def chexpert_tree(folder: Path) -> None:
    """200 X-rays of 64 pixels as CheXpert lays them out: 160 to train on, 40 to test on."""
    rng = np.random.default_rng(0)
    for part, patients in (("train", range(80)), ("valid", range(80, 100))):
        rows = []
        for number in (p for p in patients for _ in range(2)):
            path = f"{part}/patient{number:05}/study1/view{len(rows) % 2 + 1}_frontal.jpg"
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(file)
            states = rng.choice(["1.0", "0.0"] if part == "valid" else ["1.0", "0.0", "-1.0", ""], 5)
            rows.append([f"{folder.name}/{path}", "Female", "60", "Frontal", "AP", *states])
        with (folder / f"{part}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *DISEASES], *rows])


def eyepacs_tree(folder: Path) -> None:
    """200 eyes of 100 patients as Kaggle's EyePACS lays them out."""
    rng = np.random.default_rng(0)
    (folder / "train").mkdir(parents=True)
    rows = []
    for eye in (f"{patient}_{side}" for patient in range(100) for side in ("left", "right")):
        Image.fromarray(rng.integers(0, 256, (64, 80, 3), np.uint8)).save(folder / "train" / f"{eye}.jpeg")
        rows.append([eye, rng.choice(5)])
    with (folder / "trainLabels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["image", "level"], *rows])


@pytest.mark.parametrize(
    ("recipe", "scheme", "tree", "preset"),
    [
        pytest.param("performance-chexpert", "chexpert", chexpert_tree, "chexpert", marks=pytest.mark.slow),
        pytest.param("performance-retina", "eyepacs", eyepacs_tree, "retina", marks=pytest.mark.slow),
    ],
)
def test_at_the_papers_scale_on_a_tree_like_the_real_one(recipe, scheme, tree, preset, make, tmp_path, invoke):
    (tmp_path / "data").mkdir()
    tree(tmp_path / "data")
    source, out = tmp_path / "source.safetensors", tmp_path / "out"
    invoke("init", "cbr_tiny", "--num-classes", 10, "--seed", 1, "-o", source)
    given = ["SCALE=paper", f"DATA={scheme}:{tmp_path / 'data'}", f"SOURCE_cbr_tiny={source}", f"OUT={out}"]
    small = ["NETS=cbr_tiny", "SEEDS=1", "IMAGE_SIZE=32", f"TRAIN=--preset {preset} --steps 2", "THRESHOLD=0.5"]
    assert f"--preset {preset} " in make(recipe, "-n", *given, *small[:-2])  # as a user has it
    make(recipe, "-j2", *given, *small)
    for arm in ("random", "transfer"):
        run = out / "cbr_tiny" / "runs" / arm / "1"
        settings = json.loads((run / "config.json").read_text())["settings"]
        assert (settings["optimizer"], settings["steps"]) == ({"chexpert": "momentum", "retina": "adam"}[preset], 2)
        assert len(json.loads((run / "eval.json").read_text())["labels"]) == 5
    assert "steps to AUC 0.5, by seed" in (out / f"{recipe}.html").read_text()
