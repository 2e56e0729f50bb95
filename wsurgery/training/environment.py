"""On what and with what a run was made: nothing that decides its result, but what a reader of it wants to know."""

import platform
from pathlib import Path
from typing import Any

import torch

from wsurgery import __version__
from wsurgery.data.dataset import Dataset
from wsurgery.processes import Processes
from wsurgery.statistics.bootstrap import Sample


def environment(
    device: torch.device, processes: Processes, training: Dataset, validation: Dataset, *, batch_size: int
) -> dict[str, Any]:
    """Return versions, machine, the sizes of the splits and the images that a step took, for `metrics.json`."""
    return {
        "wsurgery": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": processes.count,
        "training": _sample(training)._asdict(),
        "validation": _sample(validation)._asdict(),
        "batch_size": batch_size,
    }


def device_name(device: torch.device) -> str:
    """Name the model of a GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or device.type


def _sample(dataset: Dataset) -> Sample:
    return Sample(len(dataset.paths), "patients" if dataset.has_patients else "images", len(set(dataset.patients)))
