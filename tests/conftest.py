"""Real processes, small checkpoints that the reference library wrote, and a small training run."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file
from typer.testing import CliRunner

from wsurgery.command_line import build_app

for number in (
    signal.SIGINT,
    *(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)),
):
    if signal.getsignal(number) is signal.SIG_IGN:  # as nohup, or a shell's background, hands it down
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

Run = Callable[..., subprocess.CompletedProcess[bytes]]

FUNDUS = "synthetic:fundus?n=120&size=32"  # 60 images to train on, 18 to validate, 42 to test
TRAINING = ("--steps", 12, "--eval-every", 4, "--batch-size", 8, "--lr", 0.01, "--device", "cpu", "--threads", 1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """No test reads or writes the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSURGERY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def invoke():
    """Run `wsurgery ARGUMENTS` in this process, which has torch in it; checkpoints need -o."""

    def run(*arguments: object, check: bool = True):
        done = CliRunner(env={"COLUMNS": "200"}).invoke(build_app(), list(map(str, arguments)))
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        if check:
            assert done.exit_code == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def fundus(cache) -> str:
    """The specification of a small data set that is drawn already."""
    from wsurgery.data.sources import open_data

    open_data(FUNDUS, threads=1)
    return FUNDUS


@pytest.fixture(scope="session")
def fresh(tmp_path_factory, invoke) -> Path:
    """A small network as `init` leaves it."""
    path = tmp_path_factory.mktemp("init") / "fresh.safetensors"
    invoke("init", "cbr_tiny", "--width", 0.05, "--num-classes", 5, "--seed", 1, "-o", path)
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, invoke, fundus, fresh) -> Path:
    """The folder of a run that went through: `fresh` trained on `fundus`. Tests only read it."""
    run = tmp_path_factory.mktemp("training") / "run"
    invoke("train", fresh, "--data", fundus, "-o", run, *TRAINING)
    return run


@pytest.fixture(scope="session")
def wsurgery() -> Run:
    """Run `wsurgery ARGUMENTS` in a process of its own: real pipes, real exit status."""

    def run(*arguments: object, stdin: bytes | None = None, check: bool = True, cwd: Path | None = None):
        done = subprocess.run(
            [sys.executable, "-m", "wsurgery", *map(str, arguments)],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            cwd=cwd,
            env={**os.environ, "COLUMNS": "200"},
            timeout=120,
        )
        if check:
            assert done.returncode == 0, done.stderr.decode()
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done

    return run


@pytest.fixture(scope="session")
def torchrun() -> Run:
    """Run `wsurgery ARGUMENTS` in two processes that share the work, as torchrun starts them."""

    def run(*arguments: object, check: bool = True):
        # Whatever this machine's host name resolves to, if anything: they meet on the loopback interface.
        together = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *together, "-m", "wsurgery", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=240,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        )
        if check:
            assert done.returncode == 0, done.stderr.decode()
        return done

    return run


@pytest.fixture(scope="session")
def shell() -> Callable[[str, Path], subprocess.CompletedProcess[bytes]]:
    """Run a line of bash in a folder, with `wsurgery` on the path and `pipefail` set."""

    def run(line: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=cwd,
            env={**os.environ, "PATH": path},
            timeout=120,
        )

    return run


def small_resnet(seed: int = 0, classes: int = 10) -> dict[str, np.ndarray]:
    """The tensors of a two-block ResNet-like network, one of them larger than a chunk of random numbers."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0.1, 0.3, shape).astype(np.float32)

    tensors = {"conv1.weight": normal(16, 3, 7, 7)}
    for prefix, channels in (("bn1", 16), ("layer1.0.bn1", 16), ("layer2.0.bn1", 32)):
        tensors |= {f"{prefix}.{part}": normal(channels) for part in ("weight", "bias", "running_mean")}
        tensors[f"{prefix}.running_var"] = np.abs(normal(channels)) + 0.1
        tensors[f"{prefix}.num_batches_tracked"] = np.array(7, np.int64)
    tensors["layer1.0.conv1.weight"] = normal(16, 16, 3, 3)
    tensors["layer2.0.conv1.weight"] = normal(32, 16, 3, 3)
    tensors["layer2.0.conv2.weight"] = normal(600, 512, 1, 1)
    tensors["fc.weight"] = normal(classes, 32)
    tensors["fc.bias"] = normal(classes)
    return tensors


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    """A checkpoint as another tool would leave it: metadata of its own, no history."""
    path = tmp_path / "resnet.safetensors"
    save_file(small_resnet(), path, metadata={"format": "pt", "author": "someone else"})
    return path


def said_on(terminal: int) -> bytes:
    """Read what is written to a pseudo-terminal until nobody writes to it any more, and close it."""
    said = b""
    try:
        while some := os.read(terminal, 4096):
            said += some
    except OSError:  # how Linux says that it was the last
        os.close(terminal)
    return said


def reference_accepts(content: bytes) -> bool:
    """Whether the safetensors library takes `content` for a file of its format."""
    try:
        safetensors.deserialize(content)
    except Exception:
        return False
    return True


_MEASURE = """import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "wsurgery", *sys.argv[1:]], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def held(folder: Path) -> list[str]:
    """Name the folder's files that this process has open; where the system does not tell, none."""
    names = []
    for descriptor in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):  # the one that lists them is gone
            names.append(os.readlink(descriptor))
    return [name for name in names if name.startswith(str(folder.resolve()))]


def peak_memory(*arguments: object) -> int:
    """Run `wsurgery ARGUMENTS` and return its peak resident memory in KiB."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, *map(str, arguments)], capture_output=True, check=True)
    return int(done.stdout)


HEAVY = ("torch", "timm", "torchvision", "scipy", "matplotlib", "sklearn", "pandas")


def watching_imports(folder: Path, forbidden: Sequence[str] = HEAVY) -> str:
    """Write `run.py` in a folder; return the start of a line of bash there that runs wsurgery, and fails on these imports."""
    (folder / "run.py").write_text(
        "import sys, runpy\ntry:\n    runpy.run_module('wsurgery', run_name='__main__')\nexcept SystemExit as end:\n"
        f"    found = {set(forbidden)} & set(sys.modules)\n"
        "    sys.exit(f'imports {found}' if found else end.code)"
    )
    return f"{sys.executable} run.py"
