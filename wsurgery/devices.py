"""Where networks compute: which device, in which arithmetic, and what is said when its memory ends."""

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from wsurgery.cores import asked_cores, workers
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.processes import ALONE, Processes

# As CUDA, cuBLAS, MPS and the allocators of Linux and Windows say it, not all of them by an exception of its own.
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|STATUS_ALLOC_FAILED")

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def choose_device(name: str, processes: Processes = ALONE) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda`, `cuda:N` or `mps` means here; of several processes each has its own GPU.

    `auto` is a CUDA device or the CPU. Of several processes on a machine, each takes the device of its number among them, or
    the one that is visible to it, where its launcher shows it one.

    Raises:
        UsageError: there is no such device, fewer than processes, or for some of the processes only.
    """
    if processes.count == 1:
        return _device(name, processes)
    device, problem = torch.device("cpu"), None
    try:
        device = _device(name, processes)
    except UsageError as error:
        problem = error
    processes.refuse(problem)
    found = processes.to_all((device.type, _identity(device)))
    if len({kind for kind, _ in found}) > 1:
        problem = UsageError(
            f"--device {name}: some of the processes have a CUDA device and others none: use --device cpu"
        )
    known = [which for _, which in found if which is not None]
    if len(known) > len(set(known)):
        problem = UsageError(
            f"--device {name}: two processes have the same CUDA device: start as many as there are devices, or give each its "
            "own, as srun --gpus-per-task=1 does"
        )
    processes.refuse(problem)
    return device


def _device(name: str, processes: Processes) -> torch.device:
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if n else "cpu"
    there = ["cpu", *(["cuda"] if n else []), *(f"cuda:{i}" for i in range(n))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if name not in there:
        raise UsageError(f"--device {printable(name, 40)}: this machine has {', '.join(there)} (or say auto)")
    if processes.count > 1 and name.startswith("cuda"):
        if ":" in name or 1 < n <= processes.local_rank:
            here = processes.local_count
            raise UsageError(f"--device {name}: {here} processes need as many CUDA devices of {n}: use --device cuda")
        return torch.device("cuda", 0 if n == 1 else processes.local_rank)
    if processes.count > 1 and name == "mps":
        raise UsageError("--device mps: it is for one process: use --device cpu, or start it without torchrun")
    return torch.device(name)


def _identity(device: torch.device) -> tuple[str, str] | None:
    """Say which of all CUDA devices this is, whatever its number is here; None where torch does not know, and of others."""
    if device.type != "cuda":
        return None
    number = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if number is None else (socket.gethostname(), str(number))


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one, so that what names none, seeds and exchanges among it, does not take GPU 0."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def choose_precision(name: str, device: torch.device) -> str:
    """Return what `auto`, `fp32`, `tf32` or `bf16` means on a device: any but `auto`.

    Raises:
        UsageError: the device has no such arithmetic; bfloat16 emulated is many times slower than float32.
    """
    has_bf16 = supports_bf16(device)
    if name == "bf16" and not has_bf16:
        raise UsageError(f"--precision bf16: this {device.type} computes in bfloat16 only by emulation; use fp32")
    if name == "tf32" and (device.type != "cuda" or not has_bf16):  # Ampere brought both
        raise UsageError(f"--precision tf32: this {device.type} has no such arithmetic; use fp32")
    return ("bf16" if device.type == "cuda" and has_bf16 else "fp32") if name == "auto" else name


@contextmanager
def arithmetic(precision: str = "fp32") -> Iterator[None]:
    """Let CUDA devices multiply float32 as it is while this is open, or with `tf32` rounded to ten bits, many times faster.

    PyTorch's own default rounds so in convolutions and not in other products. What was set before is put back.
    """
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def deterministic(wanted: bool = True) -> Iterator[None]:
    """Have torch take only operations that give the same bits each time, on CUDA devices too, if that is wanted.

    What was set before is put back. cuBLAS reads its setting when it begins: a process that has multiplied on a CUDA device
    before has to have been started with `CUBLAS_WORKSPACE_CONFIG=:4096:8`.

    Raises:
        WsurgeryError: an operation that the network needs is not among them.
    """
    if not wanted:
        yield
        return
    strict, only_warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    tries, fixed = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    workspace = os.environ.get(_WORKSPACE)
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "not deterministic because it uses CuBLAS" in text:
            raise WsurgeryError(f"--deterministic: start it with {_WORKSPACE}=:4096:8 in the environment") from error
        operation, found, _ = text.partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise WsurgeryError(
            f"--deterministic: torch has {printable(operation, 80)} in no such form on this device: leave it out, or --device cpu"
        ) from error
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=only_warned)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = tries, fixed
        if workspace is None:
            del os.environ[_WORKSPACE]


def supports_bf16(device: torch.device) -> bool:
    """Return whether a device has arithmetic in bfloat16. Apple's MPS counts as one without: not every generation has it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    try:
        features = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux
        known: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # an older PyTorch cannot tell
        features = {name for name, here in known.items() if here is True}
    return not features.isdisjoint(("avx512_bf16", "amx_bf16", "bf16"))


def memory_format(device: torch.device) -> torch.memory_format:
    """Return how images lie in memory on a device: channels last, which is faster on CPU and CUDA; MPS wants its own."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


@contextmanager
def threads_used(count: int | None) -> Iterator[None]:
    """Let torch compute in `count` threads while this is open, and what draws or decodes images, too; None is all cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(workers(count))
    try:
        with asked_cores(count):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def memory_errors(device: torch.device, remedy: str) -> Iterator[None]:
    """Say in one line that a device's memory ended, and what to do.

    Raises:
        WsurgeryError: torch could not allocate memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        elsewhere = ", or --device cpu" if device.type != "cpu" else ""
        raise WsurgeryError(f"out of memory on {device}: {remedy}{elsewhere}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch raised `error` for want of memory."""
    return isinstance(error, torch.OutOfMemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))
