"""What only a GPU shows. `make test-gpu` runs this, in 8 minutes at most on one; without CUDA it is skipped.

`WSURGERY_GPU=cpu` lets a CPU stand in for the GPU, to try the tests themselves.
"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from wsurgery.devices import arithmetic
from wsurgery.models import create
from wsurgery.training.predictions import read_predictions

DEVICE = os.environ.get("WSURGERY_GPU", "cuda")
REAL = DEVICE == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(REAL and not torch.cuda.is_available(), reason="there is no CUDA device"),
]
real = pytest.mark.skipif(not REAL, reason="a CPU cannot stand in")
STEPS = ["--steps", 40, "--eval-every", 20, "--batch-size", 20, "--lr", 0.001, "--seed", 3]
SMALL_VIT = [
    f"--arg={word}"
    for word in ("img_size=32", "patch_size=8", "embed_dim=32", "depth=2", "num_heads=2", "drop_rate=0.2")
]  # with dropout, which draws on the device


@pytest.fixture(scope="module")
def vit(tmp_path_factory, invoke):
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    invoke("init", "vit_tiny_patch16_224", "--num-classes", 5, "--seed", 1, *SMALL_VIT, "-o", path)
    return path


def losses(run):
    entries = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


def apart(words):
    """Run `wsurgery` in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "wsurgery", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory, invoke, fresh, fundus):
    run = tmp_path_factory.mktemp("cpu") / "run"
    invoke("train", fresh, "--data", fundus, "-o", run, *STEPS, "--device", "cpu", "--precision", "fp32")
    return run


@pytest.mark.parametrize(
    ("more", "most"),
    [
        (["--precision", "fp32"], 2e-3),
        pytest.param(["--precision", "tf32"], 1e-2, marks=real),
        pytest.param([], 3e-2, marks=real),
        pytest.param(["--precision", "fp32", "--compile"], 5e-3, marks=real),
    ],
)
def test_the_losses_are_the_cpus(more, most, on_cpu, invoke, fresh, fundus, tmp_path):
    run = tmp_path / "run"
    invoke("train", fresh, "--data", fundus, "-o", run, *STEPS, "--device", DEVICE, *more)
    assert losses(run) == pytest.approx(losses(on_cpu), rel=most)
    if not more:
        assert json.loads((run / "config.json").read_text())["settings"]["precision"] == "bf16"


@real
def test_fp32_convolutions_are_exact_and_tf32s_are_not():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(8, 64, 32, 32, generator=generator), torch.randn(64, 64, 3, 3, generator=generator)
    whole = torch.nn.functional.conv2d(x.double(), weight.double())
    found = {}
    for precision in ("fp32", "tf32"):
        with arithmetic(precision):
            y = torch.nn.functional.conv2d(x.cuda(), weight.cuda())
        found[precision] = float((y.cpu() - whole).abs().max() / whole.abs().max())
    assert found["fp32"] < 1e-5 < found["tf32"]


def test_deterministic_runs_agree_to_the_last_byte(vit, fresh, fundus, tmp_path):
    for init in (vit, fresh):
        given = [
            "train",
            init,
            "--data",
            fundus,
            "--device",
            DEVICE,
            *STEPS,
            "--deterministic",
            "--threads",
            1,
            "--quiet",
        ]
        content = []
        for run in (tmp_path / f"{init.stem}-{i}" for i in range(2)):
            done = apart([*given, "-o", run])
            assert done.returncode == 0, done.stderr
            content.append((run / "last.safetensors").read_bytes())
        assert content[0] == content[1]


def test_a_deterministic_run_that_was_cut_off_ends_with_the_same_bytes(vit, fundus, tmp_path):
    given = ["train", vit, "--data", fundus, "--device", DEVICE, "--deterministic", "--threads", 1, "--quiet"]
    given += ["--steps", 600, "--eval-every", 300, "--batch-size", 20, "--lr", 0.001]
    assert apart([*given, "-o", tmp_path / "whole"]).returncode == 0
    cut = tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, "-m", "wsurgery", *map(str, [*given, "-o", cut])], stderr=subprocess.PIPE
    )
    while process.poll() is None and not (cut / "log.jsonl").exists():
        time.sleep(0.02)
    while process.poll() is None and len((cut / "log.jsonl").read_text().splitlines()) < 10:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert b"stopped by SIGTERM" in process.communicate()[1]
    assert process.returncode == 143
    assert apart([*given, "-o", cut]).returncode == 0
    for name in ("last.safetensors", "best.safetensors"):
        assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_evaluation_is_the_cpus(on_cpu, invoke, fundus, tmp_path):
    found = {}
    for device in ("cpu", DEVICE):
        table = tmp_path / f"{device}.csv"
        invoke("eval", on_cpu, "--data", fundus, "--device", device, "--predictions", table, "--force")
        found[device] = read_predictions(table).scores
    assert np.abs(found["cpu"] - found[DEVICE]).max() < 1e-5


def test_cca_is_the_cpus(on_cpu, invoke, fresh, fundus):
    given = ["cca", on_cpu, fresh, "--data", fundus, "-p", 600, "-d", 8, "--metric", "mean_cca,linear_cka", "--json"]
    values = [
        [layer["value"] for layer in json.loads(invoke(*given, "--device", device).stdout)["layers"]]
        for device in ("cpu", DEVICE)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-4)


@real
def test_making_a_network_leaves_every_devices_generator_alone():
    before = [torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())]
    create({"name": "cbr_tiny", "num_classes": 2}, seed=5)
    assert all(torch.equal(state, torch.cuda.get_rng_state(i)) for i, state in enumerate(before))


@real
def test_memory_that_ends_and_a_device_that_is_not_there_are_one_line(tmp_path, invoke, fundus):
    init = tmp_path / "init.safetensors"
    invoke("init", "resnet18", "--num-classes", 5, "-o", init)
    given = ["train", init, "--data", fundus, "--steps", 1, "--quiet", "-o", tmp_path / "run"]
    done = apart([*given, "--device", "cuda", "--batch-size", 60, "--image-size", 4096])
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "out of memory on cuda" in done.stderr
    done = apart([*given, "--device", "cuda:99"])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def torchrun(count, *words):
    launcher = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(count)]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "wsurgery", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=200,
    )


@real
def test_two_processes_on_one_device_are_refused(fresh, fundus, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0])
        done = torchrun(2, "train", fresh, "--data", fundus, "-o", tmp_path / "run", *STEPS, "--quiet")
    assert done.returncode
    assert done.stderr.count("two processes have the same CUDA device") == 1


@real
@pytest.mark.skipif(REAL and torch.cuda.device_count() < 2, reason="it takes two CUDA devices")
def test_two_devices_do_what_one_does(vit, fundus, tmp_path, invoke):
    plain = [
        "--data",
        fundus,
        "--steps",
        20,
        "--eval-every",
        10,
        "--global-batch",
        20,
        "--precision",
        "fp32",
        "--seed",
        3,
    ]
    init = tmp_path / "init.safetensors"
    invoke("init", "vit_tiny_patch16_224", "--num-classes", 5, *SMALL_VIT[:-1], "-o", init)
    invoke("train", init, *plain, "--device", "cuda", "-o", tmp_path / "one")
    done = torchrun(2, "train", init, *plain, "--device", "cuda", "-o", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / run / "last.safetensors") for run in ("one", "two"))
    assert max(float(np.abs(one[name] - two[name]).max()) for name in one) < 1e-4
    for more in (["--sync-bn"], []):  # the dropout of the second process draws on its own device: the same twice
        runs = [tmp_path / f"{i}{''.join(more)}" for i in range(2)]
        for run in runs:
            assert torchrun(2, "train", vit, *plain, *more, "--deterministic", "-o", run).returncode == 0
        a, b = (load_file(run / "last.safetensors") for run in runs)
        assert max(float(np.abs(a[name] - b[name]).max()) for name in a) < 1e-4
