"""`resume.pt`: where a run stands, and the network and the optimiser there. It may be a stranger's."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import numpy as np
import torch
from torch import nn

from wsurgery.checkpoint.dtypes import numpy_dtype
from wsurgery.checkpoint.sink import write_all
from wsurgery.errors import WsurgeryError, printable
from wsurgery.foreign.pickles import DTYPES, TorchFile
from wsurgery.foreign.stored import StoredTensor
from wsurgery.models.load import as_tensors

_DEPTH = 6  # containers in containers


@dataclass
class Progress:
    """Where a run stands; all of it goes into `resume.pt`."""

    begun: bool = False  # whether step 0 has been evaluated
    step: int = 0
    best_auc: float = -1.0
    best_step: int = 0
    stale: int = 0  # evaluations since the best one
    losses: tuple[float, ...] = ()  # of the steps since the last entry of the log


def write_state(
    stream: BinaryIO,
    *,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    progress: Progress,
    log_bytes: int | None,
) -> None:
    """Write all that a run needs to go on, `log_bytes` of its log among it; None of a run that ended: all of it."""
    state = {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
        "log_bytes": log_bytes,
    }
    if average is not None:
        state["average"] = average.state_dict()
    try:
        torch.save(_plain(state), cast(BinaryIO, _Whole(stream)))
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch ends the archive, which fails likewise
            raise error.__context__ from None
        raise


class _Whole:
    """An unbuffered stream for torch, which does not look how much of a piece was written."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, data: bytes | memoryview) -> int:
        write_all(self._stream, data)
        return memoryview(data).nbytes

    def flush(self) -> None:
        """There is nothing that waits."""


def _plain(value: Any) -> Any:
    """Make what is equal alike, so that a run that was cut off leaves the same bytes: strings, containers, memory layout."""
    if isinstance(value, torch.Tensor):
        return value.detach().contiguous()
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return sys.intern(value) if isinstance(value, str) else value


def read_state(
    path: Path,
    *,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    steps: int,
    log_bytes: int,
) -> tuple[Progress, int | None]:
    """Put a network, its moving average and an optimiser in the state that a file holds.

    Args:
        path: the file.
        network, optimizer, average: what takes up the state; untouched where it does not fit.
        steps: of the whole run.
        log_bytes: of the log that is there.

    Returns:
        Where the run stood, and how many bytes its log had; None of a run that ended.

    Raises:
        WsurgeryError: it is damaged, or of another run.
    """
    with TorchFile(path) as file:
        try:
            state = _tensors(file, file.content, [4 * path.stat().st_size], _DEPTH)
            progress, kept = _progress(state, steps), state.get("log_bytes")
            ended = kept is None and "log_bytes" in state
            if not ended and (type(kept) is not int or not 0 <= kept <= log_bytes):
                raise WsurgeryError(f"the log had {printable(repr(kept))} bytes and has {log_bytes}")
            for module, name in ((network, "model"), (average, "average")):
                if module is not None:
                    _require_alike(module.state_dict(), state.get(name), name)
            _require_optimizer(optimizer.state_dict(), state.get("optimizer"))
        except WsurgeryError as error:
            raise WsurgeryError(
                f"{file.label} is not of this run, or damaged ({error}): remove it to begin again"
            ) from None
    network.load_state_dict(state["model"])
    if average is not None:
        average.load_state_dict(state["average"])
    for group, before in zip(state["optimizer"]["param_groups"], optimizer.param_groups, strict=True):
        group.update({key: value for key, value in before.items() if isinstance(value, torch.dtype)})
    optimizer.load_state_dict(state["optimizer"])
    for parameter, own in optimizer.state.items():
        for key, value in own.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                # In the parameter's own order of dimensions, without which fused kernels on CUDA refuse it.
                own[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return progress, kept


def _tensors(file: TorchFile, value: Any, left: list[int], depth: int) -> Any:
    """Read all tensors in what was saved; together they take no more than `left` bytes."""
    if isinstance(value, StoredTensor):
        info = value.info("a tensor")
        left[0] -= info.nbytes
        if left[0] < 0:
            raise WsurgeryError("its tensors are larger than the file")
        array = np.frombuffer(file.read(value, "a tensor"), numpy_dtype(value.dtype)).reshape(value.shape)
        return as_tensors({"a tensor": array.copy()})["a tensor"]
    if depth and isinstance(value, dict):
        return {key: _tensors(file, each, left, depth - 1) for key, each in value.items()}
    if depth and isinstance(value, (list, tuple)):
        return type(value)(_tensors(file, each, left, depth - 1) for each in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise WsurgeryError(f"it holds a {type(value).__name__}")


def _progress(state: Any, steps: int) -> Progress:
    try:
        progress = msgspec.convert(state["progress"], Progress, strict=True)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise WsurgeryError(f"its progress: {printable(str(error))}") from None
    p = progress
    if not (
        0 <= p.best_step <= p.step <= steps
        and 0 <= p.stale <= p.step + 1
        and len(p.losses) <= p.step
        and -1 <= p.best_auc <= 1
        and (p.begun or not p.step)
        and all(map(isfinite, p.losses))
    ):
        raise WsurgeryError(f"its progress is none of a run of {steps} steps")
    return progress


def _require_alike(own: Mapping[str, torch.Tensor], given: Any, what: str) -> None:
    if not isinstance(given, dict) or given.keys() != own.keys():
        raise WsurgeryError(f"its {what} has other tensors than the network")
    for name, x in own.items():
        y = given[name]
        if not isinstance(y, torch.Tensor) or (y.shape, y.dtype) != (x.shape, x.dtype):
            raise WsurgeryError(f"its {what} has another {printable(name)} than the network")


def _require_optimizer(own: dict[str, Any], given: Any) -> None:
    """Hold the settings against those that the optimiser began with, and its tensors against the parameters they are for."""
    groups = given.get("param_groups") if isinstance(given, dict) else None
    if not isinstance(groups, list) or not isinstance(given.get("state"), dict):
        raise WsurgeryError("its optimizer is none")
    if len(groups) != len(own["param_groups"]) or not all(
        isinstance(group, dict)
        and group.keys() >= before.keys()
        and all(_of_a_kind(before[key], group[key]) if key in before else _is_count(group[key]) for key in group)
        for group, before in zip(groups, own["param_groups"], strict=False)
    ):
        raise WsurgeryError("its optimizer has other settings")
    known = {index for group in own["param_groups"] for index in group["params"]}
    for index, entries in given["state"].items():
        if index not in known or not isinstance(entries, dict):
            raise WsurgeryError("its optimizer has a state of parameters that the network has not")
    if [group["params"] for group in groups] != [group["params"] for group in own["param_groups"]]:
        raise WsurgeryError("its optimizer is of other parameters")


def _of_a_kind(own: Any, given: Any) -> bool:
    """Whether a setting may have become another: numbers change in training, and what is none yet may become one."""
    if isinstance(own, (list, tuple)):
        return isinstance(given, (list, tuple)) and len(own) == len(given) and all(map(_of_a_kind, own, given))
    if isinstance(own, torch.Tensor):
        return isinstance(given, torch.Tensor) and own.shape == given.shape
    if isinstance(own, torch.dtype):  # which the file's reader gives by its name in a header
        return type(given) is str and given == DTYPES.get(str(own).removeprefix("torch."))
    if isinstance(own, (str, bool)):
        return type(given) is type(own) and given == own
    number = type(given) in (int, float)
    return number if isinstance(own, (int, float)) else given is None or number


def _is_count(given: Any) -> bool:
    """Whether it may be what an optimiser adds to its settings in its first step: Lamb and Adan count their steps there."""
    if isinstance(given, torch.Tensor):
        return given.shape == () and given.dtype == torch.float32
    return type(given) in (int, float)
