"""Where networks compute: which device, in which arithmetic, and what is said when its memory ends."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from wsurgery.cores import cores
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.processes import ALONE, Processes

# As CUDA, cuBLAS, MPS and the allocators of Linux and Windows say it, not all of them by an exception of its own.
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|STATUS_ALLOC_FAILED")


def choose_device(name: str, processes: Processes = ALONE) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda`, `cuda:N` or `mps` means here; of several processes each has a CUDA device.

    `auto` is a CUDA device or the CPU.

    Raises:
        UsageError: there is no such device, or fewer than processes.
    """
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if n else "cpu"
    there = ["cpu", *(["cuda"] if n else []), *(f"cuda:{i}" for i in range(n))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if name not in there:
        raise UsageError(f"--device {printable(name, 40)}: this machine has {', '.join(there)} (or say auto)")
    if processes.count > 1 and name.startswith("cuda"):
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        if ":" in name or here > n:
            raise UsageError(f"--device {name}: {here} processes need as many CUDA devices of {n}: use --device cuda")
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if processes.count > 1 and name == "mps":
        raise UsageError("--device mps: it is for one process: use --device cpu, or start it without torchrun")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """Return what `auto`, `fp32` or `bf16` means on a device: `fp32` or `bf16`.

    Raises:
        UsageError: the device has no arithmetic in bfloat16; emulated, it is many times slower than float32.
    """
    has_bf16 = supports_bf16(device)
    if name == "bf16" and not has_bf16:
        raise UsageError(f"--precision bf16: this {device.type} computes in bfloat16 only by emulation; use fp32")
    return "bf16" if name == "bf16" or (name == "auto" and device.type == "cuda" and has_bf16) else "fp32"


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
    """Let torch compute in `count` threads while this is open; None is all cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or cores())
    try:
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
