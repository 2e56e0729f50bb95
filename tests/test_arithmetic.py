"""What is set in torch while networks compute, for CUDA devices, and that it is put back. No test here has a GPU."""

import os
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import TRAINING
from wsurgery.devices import arithmetic, choose_device, choose_precision, deterministic
from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.models import create
from wsurgery.models.cbr import CBR
from wsurgery.processes import Processes

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def flags():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


def strict():
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.benchmark, cudnn.deterministic, os.environ.get(WORKSPACE)


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_float32_is_exact_or_tf32_in_products_and_convolutions_and_put_back(before, monkeypatch):
    whole = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before)
    try:
        own = flags()
        with arithmetic():
            assert flags() == (False, False, "highest")
            with arithmetic("tf32"):
                assert flags() == (True, True, "high")
            with arithmetic("bf16"):
                assert flags() == (False, False, "highest")
        with pytest.raises(KeyError), arithmetic("tf32"):
            raise KeyError
        assert flags() == own
    finally:
        torch.set_float32_matmul_precision(whole)


@pytest.mark.parametrize("command", [["eval", "A"], ["cca", "A", "A"], ["train", "A"]])
def test_every_network_computes_exactly(command, invoke, fresh, fundus, tmp_path, monkeypatch):
    whole, seen = CBR.forward, set()

    def watched(self, x):
        seen.add(flags())
        return whole(self, x)

    monkeypatch.setattr(CBR, "forward", watched)
    own = flags()
    more = [*TRAINING, "-o", tmp_path / "run"] if command[0] == "train" else ["--device", "cpu", "--threads", 1]
    invoke(*[fresh if word == "A" else word for word in command], "--data", fundus, *more)
    assert seen == {(False, False, "highest")}
    assert flags() == own


def test_deterministic_is_set_for_a_run_recorded_and_put_back(invoke, fresh, fundus, finished, tmp_path, monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    whole, seen = CBR.forward, set()

    def watched(self, x):
        seen.add(strict())
        return whole(self, x)

    monkeypatch.setattr(CBR, "forward", watched)
    before = strict()
    run = tmp_path / "run"
    invoke("train", fresh, "--data", fundus, "-o", run, *TRAINING, "--deterministic")
    assert seen == {(True, False, True, ":4096:8")}
    assert strict() == before
    assert '"deterministic": true' in (run / "config.json").read_text()
    assert "--deterministic" in invoke("log", run / "last.safetensors").stdout
    a, b = (torch.load(folder / "resume.pt", weights_only=True)["model"] for folder in (run, finished))
    assert all(torch.equal(a[name], b[name]) for name in a)  # a CPU gives the same bits anyway


def test_what_torch_cannot_do_so_is_one_line(invoke, fresh, fundus, tmp_path, monkeypatch):
    def refused(self, x):
        raise RuntimeError("grid_sampler_2d_backward_cuda does not have a deterministic implementation, but you set …")

    monkeypatch.setattr(CBR, "forward", refused)
    with pytest.raises(WsurgeryError, match="torch has grid_sampler_2d_backward_cuda in no such form"), deterministic():
        refused(None, None)
    with pytest.raises(RuntimeError, match="something else"), deterministic():
        raise RuntimeError("something else")
    with pytest.raises(WsurgeryError, match=f"start it with {WORKSPACE}=:4096:8"), deterministic():
        raise RuntimeError("this operation is not deterministic because it uses CuBLAS and you have CUDA >= 10.2")


@pytest.fixture
def gpus(monkeypatch):
    """So many CUDA devices as a test says, which nothing computes on."""

    def have(n, capability=(9, 0), uuid=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: SimpleNamespace(uuid=uuid))

    return have


class Alike(Processes):
    """Several processes, all of which say what this one says."""

    def to_all(self, value):
        return [value] * self.count


@pytest.mark.parametrize(
    ("visible", "local", "here", "device"),
    [(8, 3, 8, "cuda:3"), (1, 1, 2, "cuda:0"), (1, 0, 1, "cuda:0"), (2, 1, 2, "cuda:1")],
)
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_has_the_device_of_its_number_or_the_one_that_it_sees(name, visible, local, here, device, gpus):
    gpus(visible)
    assert choose_device(name, Alike(local, 16, local, here)) == torch.device(device)


def test_devices_that_are_too_few_shared_or_unlike_are_refused(gpus):
    gpus(2)
    with pytest.raises(UsageError, match="4 processes need as many CUDA devices of 2"):
        choose_device("auto", Alike(0, 4, 2, 4))
    with pytest.raises(UsageError, match="use --device cuda"):
        choose_device("cuda:1", Alike(0, 2, 0, 2))
    gpus(1, uuid="GPU-1")
    with pytest.raises(UsageError, match="two processes have the same CUDA device"):
        choose_device("auto", Alike(0, 2, 0, 2))

    class Unlike(Processes):
        def to_all(self, value):
            return [value, ("cpu", None) if value is not None else None]

    with pytest.raises(UsageError, match="some of the processes have a CUDA device and others none"):
        choose_device("auto", Unlike(0, 2, 0, 1))
    assert choose_device("cpu", Unlike(0, 2, 0, 1)) == torch.device("cpu")


def test_precisions_of_a_device(gpus):
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    with pytest.raises(UsageError, match="--precision tf32: this cpu has no such arithmetic; use fp32"):
        choose_precision("tf32", cpu)
    assert choose_precision("auto", cpu) == choose_precision("fp32", cpu) == "fp32"
    gpus(1)
    assert [choose_precision(name, cuda) for name in ("auto", "fp32", "tf32", "bf16")] == [
        "bf16",
        "fp32",
        "tf32",
        "bf16",
    ]
    gpus(1, (7, 5))
    assert choose_precision("auto", cuda) == "fp32"
    for name in ("tf32", "bf16"):
        with pytest.raises(UsageError, match=f"--precision {name}"):
            choose_precision(name, cuda)


def test_a_network_is_made_without_seeding_any_device(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeded.append)
    monkeypatch.setattr(torch, "manual_seed", seeded.append)
    for model in (None, lambda num_classes=2: torch.nn.Linear(3, num_classes)):
        a, b = (create({"name": "cbr_tiny", "num_classes": 2}, model=model, seed=4).state_dict() for _ in range(2))
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert not seeded
