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

from wsurgery.data.augment import Augmentation, augment, draw
from wsurgery.data.dataset import Dataset
from wsurgery.devices import arithmetic
from wsurgery.models import create
from wsurgery.training.feed import Feed
from wsurgery.training.predictions import read_predictions
from wsurgery.training.settings import Settings
from wsurgery.training.trainer import Trainer

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
        (["--precision", "fp32", "--no-cuda-graph"], 2e-3),
    ],
)
def test_the_losses_are_the_cpus(more, most, on_cpu, invoke, fresh, fundus, tmp_path):
    run = tmp_path / "run"
    invoke("train", fresh, "--data", fundus, "-o", run, *STEPS, "--device", DEVICE, *more)
    assert losses(run) == pytest.approx(losses(on_cpu), rel=most)
    if not more:
        assert json.loads((run / "config.json").read_text())["settings"]["precision"] == "bf16"


@pytest.mark.parametrize(
    "more",
    [
        ["--optimizer", "momentum", "--lr", 0.02, "--warmup-epochs", 2, "--decay-epochs", 4],
        ["--optimizer", "adamw", "--weight-decay", 0.1, "--grad-clip", 0.5],
        ["--ema", 0.8],
        ["--optimizer", "lamb"],  # which is not recorded
    ],
)
def test_a_recorded_step_follows_schedule_clip_and_average(more, invoke, fresh, fundus, tmp_path):
    found = {}
    for device in ("cpu", DEVICE):
        run = tmp_path / device
        given = ["--device", device, "--precision", "fp32"]
        invoke("train", fresh, "--data", fundus, "-o", run, *STEPS, *more, *given)
        found[device] = losses(run), load_file(run / "last.safetensors")
    assert found[DEVICE][0] == pytest.approx(found["cpu"][0], rel=1e-2)
    for name, x in found["cpu"][1].items():
        np.testing.assert_allclose(found[DEVICE][1][name], x, rtol=0, atol=2e-2 * max(1e-3, np.abs(x).max()))


@pytest.fixture
def trainer():
    """Make what trains a network that draws, and another that decides by what it has computed."""

    class Drawing(torch.nn.Module):
        def __init__(self, decides):
            super().__init__()
            self.decides, self.seen = decides, []
            self.body = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.LazyLinear(64))
            self.head = torch.nn.Linear(64, 2)
            self.body(torch.zeros(1, 3, 16, 16))

        def forward(self, x):
            hidden = torch.nn.functional.dropout(self.body(x), 0.5, self.training)
            if self.decides and float(hidden.detach().mean()) > 1e6:
                return self.head(-hidden)
            return self.head(hidden)

    def made(decides=False, **settings):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
        labels, names = (rng.random((64, 2)) < 0.5).astype(np.float32), tuple(map(str, range(64)))
        data = Dataset(images, labels, ("a", "b"), names, names, "")
        torch.manual_seed(0)
        settings = Settings(steps=40, epochs=None, batch_size=8, lr=0.0, **settings)
        return Trainer(Drawing(decides), data, data, settings, torch.device(DEVICE), ())

    return made


def test_dropout_in_a_recorded_step_draws_anew_and_by_the_step_alone(trainer):
    one, two, eager = trainer(), trainer(), trainer(no_cuda_graph=True)
    first, second, third = ([float(each._step(i)) for i in range(16)] for each in (one, two, eager))
    assert first == second
    assert first == pytest.approx(third, rel=1e-5)
    assert len(set(first[8:])) == 8  # another batch and another mask each time
    again = trainer()
    assert float(again._step(12)) == pytest.approx(first[12], rel=1e-5)  # as a run that goes on there


@real
def test_a_network_that_decides_by_what_it_computed_is_not_recorded(trainer):
    deciding, plain = trainer(decides=True), trainer()
    losses = [[float(each._step(i)) for i in range(8)] for each in (deciding, plain)]
    assert deciding.graphed._graph is None
    assert plain.graphed._graph is not None
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@real
def test_the_augmentation_of_the_kernels_is_that_of_the_operations():
    rng = np.random.default_rng(0)
    everything = Augmentation(crop=0.3, flip_horizontal=True, flip_vertical=True, hue=0.1, contrast=0.4)
    images = torch.from_numpy(rng.integers(0, 256, (5, 97, 131, 3), dtype=np.uint8))
    drawn = torch.from_numpy(draw(everything, seed=1, epoch=2, indices=np.arange(5)))
    wanted = augment(images, drawn, everything)
    from wsurgery.data.augment_fused import augment as by_kernels

    found = by_kernels(images.cuda(), drawn.cuda(), everything).cpu()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("batches", [12, 200])  # streamed; met often enough to lie on the device
def test_batches_on_the_device_are_those_of_the_file(batches, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    images.tofile(tmp_path / "images.rgb")
    mapped = np.memmap(tmp_path / "images.rgb", np.uint8, mode="r", shape=images.shape)

    def chosen(number):
        return np.random.default_rng(number).integers(0, 50, 4), np.full((3, 4), number, np.float32)

    feed = Feed(mapped, chosen, batches, torch.device(DEVICE))
    taken = [feed.take(number) for number in (*range(10), *range(5, 12))]
    for number, batch in zip((*range(10), *range(5, 12)), taken, strict=True):
        assert batch.images.device.type == DEVICE
        np.testing.assert_array_equal(batch.images.cpu().numpy(), images[chosen(number)[0]])
        np.testing.assert_array_equal(batch.beside.cpu().numpy(), chosen(number)[1])


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
    given = [
        "cca",
        on_cpu,
        fresh,
        "--data",
        fundus,
        "-p",
        600,
        "-d",
        8,
        "--metric",
        "mean_cca,linear_cka,unbiased_cka",
        "--json",
    ]
    values = [
        [
            layer[key]
            for layer in json.loads(invoke(*given, "--device", device).stdout)["layers"]
            for key in ("value", "floor", "ceiling")
        ]
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
