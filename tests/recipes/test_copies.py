"""A recipe that was copied: it runs where it lies, and what is changed makes again what depends on it, and nothing else."""

import json
import os
import re
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from tests.recipes.conftest import RECIPES
from wsurgery.errors import UsageError
from wsurgery.recipe import copy_recipe, recipes

TINY = [
    "NETS=cbr_tiny",
    "WIDTH=0.05",
    "IMAGES=48",
    "EVAL_EVERY=2",
    "PRETRAIN=2",
    "IMAGE_SIZE=32",
    "DEVICE=cpu",
    "THRESHOLD=0.6",
]
MINE = "ARM_mine = wsurgery scale $(PRETRAINED) --by 0.5 | $(ONTO)\nARMS = random transfer mine\n"


def commands(printed: str) -> Counter:
    """How often which command was run."""
    return Counter(re.findall(r"wsurgery (data make|train|init|scale|eval|report)(?= )", printed))


@pytest.fixture(scope="module")
def study(tmp_path_factory, make):
    """A copy under another name, of two arms, that was run with one seed."""
    folder = tmp_path_factory.mktemp("copy") / "my-study"
    copy_recipe("meanvar", folder)
    makefile = folder / "Makefile"
    makefile.write_text(re.sub("(?m)^ARMS .*", "ARMS = random transfer", makefile.read_text()))
    ran = commands(make(folder, "-j2", *TINY, "SEEDS=1", "STEPS=2"))
    assert ran == {"data make": 2, "init": 2, "train": 3, "eval": 1, "report": 1}
    assert (folder / "out/toy/my-study.html").exists()
    return folder


def test_other_weights_and_other_blocks_are_used_whatever_the_age_of_files(make, invoke, tmp_path):
    copy_recipe("gabor", tmp_path / "study")
    for name in "ab":
        invoke(
            "init", "cbr_tiny", "--width", 0.05, "--num-classes", 3, "-o", tmp_path / "study" / f"{name}.safetensors"
        )
        os.utime(tmp_path / "study" / f"{name}.safetensors", (1, 1))
        torch.save(load_file(tmp_path / "study" / f"{name}.safetensors"), tmp_path / "study" / f"{name}.pth")
        os.utime(tmp_path / "study" / f"{name}.pth", (1, 1))
    arm = "out/toy/cbr_tiny/init/gabor/1.safetensors"

    def made(*given: str, planned: str = "-s") -> str:
        return make(tmp_path / "study", planned, *TINY, "SEEDS=1", *given, arm)

    made("SOURCE_cbr_tiny=a.safetensors")
    assert "wsurgery" not in made("SOURCE_cbr_tiny=a.safetensors", planned="-n")
    assert "b.safetensors --blocks" in made("SOURCE_cbr_tiny=b.safetensors", planned="-n")
    assert "--blocks block3" in made("SOURCE_cbr_tiny=a.safetensors", "BLOCKS_cbr_tiny=block3", planned="-n")
    made("SOURCE_cbr_tiny=a.pth")
    assert "wsurgery convert b.pth" in made("SOURCE_cbr_tiny=b.pth", planned="-n")


def test_other_imagenet_weights_are_used_whatever_the_age_of_files(make, invoke, tmp_path):
    for name in "ab":
        invoke("init", "cbr_tiny", "--width", 0.05, "--num-classes", 3, "-o", tmp_path / f"{name}.safetensors")
        torch.save(load_file(tmp_path / f"{name}.safetensors"), tmp_path / f"{name}.pth")
        os.utime(tmp_path / f"{name}.pth", (1, 1))
    target = f"{tmp_path}/out/lite0.safetensors"

    def made(weights: str, planned: str = "-n") -> str:
        return make("imagenet-surgery", planned, f"OUT={tmp_path}/out", f"WEIGHTS={tmp_path}/{weights}.pth", target)

    made("a", "-s")
    assert "wsurgery" not in made("a")
    assert f'wsurgery convert "{tmp_path}/b.pth"' in made("b")


def test_a_table_with_spaces_in_its_name_is_a_file_that_data_depend_on(make, invoke, tmp_path):
    folder, target = tmp_path / "my images", f"{tmp_path}/out/data/target.csv"
    invoke("data", "make", "synthetic:fundus?n=24&size=32", "-o", folder)
    (folder / "manifest.csv").rename(table := folder / "my table.csv")
    given = [*TINY, "SEEDS=1", f"OUT={tmp_path}/out", f"DATA={table}?split=split", target]
    make("meanvar", "-s", *given)
    make("meanvar", "-q", *given)
    os.utime(table, (2**31, 2**31))
    assert "wsurgery data make" in make("meanvar", "-n", *given)


@pytest.mark.parametrize(
    "path", ["OUT=a b", "SOURCE_cbr_tiny=my net.pth", "MODEL_cbr_tiny=my net.py:make", "SCALE=real DATA_ROOT=a b"]
)
def test_another_path_with_spaces_is_refused_in_a_line_before_anything_runs(path, make, tmp_path):
    given = path.split(" ", 1) if path.startswith("SCALE") else [path]
    with pytest.raises(AssertionError) as refused:
        make("meanvar", *TINY, f"OUT={tmp_path}/out", "SEEDS=1 2 3 4 5", *given)
    (line,) = str(refused.value).split("\nassert")[0].strip().splitlines()
    assert f"{given[-1]}: make takes no path with spaces here" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["none.py:make", "net.py:other"])
def test_a_model_that_is_none_ends_in_the_line_of_init(model, make, tmp_path):
    (tmp_path / "net.py").write_text("def make():\n    pass\n")
    with pytest.raises(AssertionError) as refused:
        make("meanvar", f"OUT={tmp_path}/out", "NETS=mine", f"MODEL_mine={tmp_path}/{model}")
    said = str(refused.value)
    assert said.count("wsurgery init: --model") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "data").exists()
    make("meanvar", "clean", f"OUT={tmp_path}/out", "NETS=mine", f"MODEL_mine={tmp_path}/{model}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["SEEDS=1", "STEPS=2"], {}),
        (
            ["SEEDS=1 2", "STEPS=2"],
            {"init": 2, "train": 3, "eval": 1, "report": 1},
        ),  # the second seed has its own source
        (["SEEDS=1 2", "SOURCES=1", "STEPS=2"], {"init": 1, "train": 2, "eval": 1, "report": 1}),
        (["SEEDS=1", "STEPS=2", "SOURCES=7"], {"init": 1, "train": 2, "report": 1}),
        (["SEEDS=1", "STEPS=4"], {"train": 2, "report": 1}),
        (["SEEDS=1", "STEPS=2", "LR=0.1"], {"train": 3, "report": 1}),
        (["SEEDS=1", "STEPS=2", "CLASSES=6"], {"init": 1, "train": 2, "report": 1}),
        (["SEEDS=1", "STEPS=2", "WIDTH=0.06"], {"init": 2, "train": 3, "report": 1}),
        (["SEEDS=1", "STEPS=2", "PRETRAIN=4"], {"train": 2, "report": 1}),
        (["SEEDS=1", "STEPS=2", "SOURCE_DATA=synthetic:textures?n=32"], {"data make": 1, "train": 2, "report": 1}),
        (["SEEDS=1", "STEPS=2", "DATA=synthetic:fundus?n=32"], {"data make": 1, "train": 2, "report": 1}),
        (["SEEDS=1", "STEPS=2", "IMAGE_SIZE=48"], {"train": 2, "report": 1}),
        (["SEEDS=1", "STEPS=2", "THRESHOLD=0.7"], {"report": 1}),
        (
            ["SEEDS=1", "STEPS=2", "THRESHOLD=90%"],
            {"init": 1, "train": 1, "report": 1},
        ),  # a twin of random, to be 90% of
        (["SEEDS=1", "STEPS=2", "ARMS=random"], {"report": 1}),
        (["SEEDS=1", "STEPS=2", "BASELINE=--baseline thumbnail"], {"report": 1}),  # and what -n cannot know
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_changed_setting_makes_again_what_depends_on_it(changed, expected, study, make):
    assert commands(make(study, "-n", *TINY, *changed)) == expected


@pytest.mark.slow
def test_what_is_said_is_what_is_done(study, make, tmp_path):
    copy = shutil.copytree(study, tmp_path / study.name)
    ran = commands(make(copy, "-j2", *TINY, "SEEDS=1", "STEPS=4"))
    assert ran == {"train": 2, "eval": 1, "report": 1}  # -n cannot know of what will have been evaluated
    run = copy / "out/toy/cbr_tiny/runs/transfer/1"
    assert json.loads((run / "metrics.json").read_text())["steps"] == 4
    make(copy, "-q", *TINY, "SEEDS=1", "STEPS=4")
    (copy / "out/toy/sources/cbr_tiny/1.safetensors").touch()  # newer, and the same
    ran = commands(make(copy, *TINY, "SEEDS=1", "STEPS=4"))
    assert ran == {"train": 1, "eval": 1, "report": 1}
    make(copy, "-q", *TINY, "SEEDS=1", "STEPS=4")


@pytest.mark.slow
def test_an_arm_of_ones_own_is_a_line(study, make, tmp_path):
    copy = shutil.copytree(study, tmp_path / study.name)
    makefile = copy / "Makefile"
    makefile.write_text(makefile.read_text().replace("ARMS = random transfer\n", MINE))
    planned = make(copy, "-n", *TINY, "SEEDS=1", "STEPS=2")
    assert re.findall(r"wsurgery train .*/runs/(\w+)/1 ", planned) == ["mine"]
    assert re.search(
        r"^wsurgery scale .*cbr_tiny/1.safetensors --by 0.5 \| wsurgery transfuse - ", planned, re.MULTILINE
    )


@pytest.mark.slow
def test_an_arm_a_seed_and_a_length_are_run_and_no_more(study, make, tmp_path):
    copy = tmp_path / "mine"
    copy_recipe("meanvar", copy)
    makefile = copy / "Makefile"
    makefile.write_text(re.sub("(?m)^ARMS .*", "ARMS = random transfer", makefile.read_text()))
    trained = [commands(make(copy, "-j2", *TINY, "SEEDS=1", "STEPS=2"))["train"]]
    makefile.write_text(makefile.read_text().replace("ARMS = random transfer\n", MINE))
    trained.append(commands(make(copy, "-j2", *TINY, "SEEDS=1", "STEPS=2"))["train"])
    trained.append(commands(make(copy, "-j2", *TINY, "SEEDS=1 2", "STEPS=2"))["train"])
    trained.append(commands(make(copy, "-j2", *TINY, "SEEDS=1 2", "STEPS=4"))["train"])
    trained.append(commands(make(copy, "-j2", *TINY, "SEEDS=1 2", "STEPS=4"))["train"])
    trained.append(commands(make(copy, "-j2", *TINY, "SEEDS=1 2", "STEPS=4", "LR=0.01"))["train"])  # evaluated runs go
    assert trained == [3, 1, 4, 6, 0, 8]
    page = (copy / "out/toy/mine.html").read_text()
    assert all(arm in page for arm in ("random", "transfer", "mine"))


def test_pairs_share_no_network_and_a_twin_has_its_seeds_source(make, tmp_path):
    copy_recipe("cca-seeds", tmp_path / "pairs")
    planned = make(tmp_path / "pairs", "-n", *TINY, "SEEDS=1 2 3", "SOURCES=4 5", "FIGURES=")
    pairs = re.findall(r"wsurgery cca (\S+) (\S+) .*/cca/(\S+)/(\d).json", planned)
    assert len(pairs) == 6
    networks = [network for a, b, *_ in pairs for network in (a, b)]
    assert len(set(networks)) == len(networks)
    seeds = dict(re.findall(r"wsurgery train \S+/init/(\S+).safetensors .* --seed (\$\(\(.*?\)\)|\S+) ", planned))
    assert (seeds["transfer/2"], seeds["transfer-twin/2"]) == ("2", "$((1000 + 2))")
    started = re.findall(
        r"wsurgery transfuse \S+/sources/cbr_tiny/(\d).safetensors .* -o \S+/init/(\S+).safetensors", planned
    )
    expected = {
        f"transfer{twin}/{seed}": source for seed, source in zip("123", "454", strict=True) for twin in ("", "-twin")
    }
    assert {arm: source for source, arm in started} == expected


@pytest.mark.slow
def test_an_arm_that_nobody_described_is_named(study, make):
    with pytest.raises(AssertionError, match="ARM_nothing is not set"):
        make(study, "-n", *TINY, "SEEDS=1", "ARMS=random nothing")


@pytest.mark.parametrize("name", [each.name for each in recipes()])
def test_every_recipe_can_be_planned_from_a_copy_and_for_any_network(name, make, tmp_path):
    copy_recipe(name, tmp_path / "other name".replace(" ", "-"))
    given = ["WEIGHTS=w.pth"] if name in ("own-network", "imagenet-surgery") else []
    (tmp_path / "other-name" / "w.pth").touch()
    assert not list((tmp_path / "other-name").glob("RESULTS*"))
    assert "wsurgery" in make(tmp_path / "other-name", "-n", *given)
    if name not in ("demo", "own-network", "imagenet-surgery", "slim"):
        assert "wsurgery" in make(tmp_path / "other-name", "-n", "NETS=cbr_tiny")


def test_the_list_has_every_recipe_with_the_first_sentence_of_its_makefile(invoke):
    listed = json.loads(invoke("recipe", "list", "--json").stdout)
    assert [each["name"] for each in listed] == sorted(path.parent.name for path in RECIPES.glob("*/README.md"))
    for name, about in (each.values() for each in listed):
        said = " ".join((RECIPES / name / "Makefile").read_text().replace("\n#", " ").split())
        assert said.startswith(f"# {about}")
        assert about.count("(") == about.count(")"), about  # not cut at "et al."


def test_a_copy_replaces_nothing(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        copy_recipe("meanvar", tmp_path)
    with pytest.raises(UsageError, match="meanvar is"):
        copy_recipe("meanvr", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_copy_runs_on_a_table_of_ones_own(tmp_path, make, invoke):
    invoke("data", "make", "synthetic:fundus?n=48&size=32", "-o", tmp_path / "images")
    table = (tmp_path / "images" / "manifest.csv").read_text().splitlines()
    assert table[0].startswith("path,patient,split,")
    rows = [line.split(",") for line in table]
    (tmp_path / "images" / "my.csv").write_text("\n".join(",".join(row[:5]) for row in rows) + "\n")  # two labels
    copy_recipe("performance-retina", tmp_path / "study")
    data = f"DATA={tmp_path / 'images' / 'my.csv'}"
    make(tmp_path / "study", "-j2", *TINY, data, "SEEDS=1", "STEPS=2", "ARMS=random")
    found = json.loads((tmp_path / "study/out/toy/cbr_tiny/runs/random/1/eval.json").read_text())
    assert list(found["labels"]) == rows[0][3:5]
    given = [*TINY, data, "SEEDS=1", "STEPS=2", "ARMS=random", "BASELINE=--baseline thumbnail"]
    assert commands(make(tmp_path / "study", *given)) == {"eval": 1, "report": 1}
    found = json.loads((tmp_path / "study/out/toy/cbr_tiny/runs/random/1/eval.json").read_text())
    assert found["baseline"]["name"] == "thumbnail"
    make(tmp_path / "study", "-q", *given)


@pytest.mark.parametrize(
    "recipe",
    [
        "meanvar",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("transfuse", "freeze", "cca-to-init", "cca-seeds")),
    ],
)
def test_a_network_and_weights_of_ones_own_are_three_variables(recipe, tmp_path, make, invoke):
    """A ResNet-20 that timm does not know, its weights as PyTorch writes them, and a table."""
    copy_recipe("own-network", tmp_path / "other")
    copy_recipe(recipe, tmp_path / "study")
    model = f"{tmp_path / 'other' / 'cifar_resnet.py'}:resnet20"
    invoke("init", "--model", model, "--num-classes", 10, "--seed", 3, "-o", tmp_path / "w.safetensors")
    torch.save({"state_dict": load_file(tmp_path / "w.safetensors")}, tmp_path / "w.pth")
    given = ["NETS=mine", f"MODEL_mine={model}", f"SOURCE_mine={tmp_path / 'w.pth'}", "FIGURES="]
    if recipe == "freeze":
        make(tmp_path / "study", "-j2", *TINY, *given, "SEEDS=1", "STEPS=2")
        page = (tmp_path / "study/out/toy/study.html").read_text()
        assert "freeze-random-block3" in page
    planned = make(tmp_path / "study", "-n", *TINY, *given, "SEEDS=1", "STEPS=4")
    for line in planned.splitlines():
        if line.startswith(("wsurgery init", "wsurgery train", "wsurgery eval", "wsurgery cca")):
            assert f"--model {model}" in line
    assert "sources/mine/1.safetensors" not in planned  # they are trained already
    if recipe == "transfuse":
        assert "runs/transfuse-block2/1" in planned
        assert "block3/1" not in planned  # which is all but the head


@pytest.mark.parametrize("recipe", [each.name for each in recipes()])
def test_a_copy_has_what_its_makefile_runs(recipe, tmp_path):
    copy_recipe(recipe, tmp_path / "copy")
    scripts = re.findall(r"python (?:\$\(COMMON\))?(\S+\.py)", (tmp_path / "copy" / "Makefile").read_text())
    assert [script for script in scripts if not (tmp_path / "copy" / script).exists()] == []
