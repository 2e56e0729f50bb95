"""A step of training as one CUDA graph: launched at once, where a small network's kernels take less time than their launches."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from wsurgery.devices import on_device

_EAGER = 3  # steps before one is recorded: they make the optimiser's state and what libraries make once
_RATE_ON_DEVICE = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD  # their fused kernels can take it from there


class Graphed:
    """A function of tensors on a CUDA device, taken step by step at first and then recorded and replayed.

    It stays as it is where it cannot be recorded: where something in it waits for the device, as a network does that decides
    by what it computed, or where recording it fails.
    """

    def __init__(
        self,
        step: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        *,
        wanted: bool = True,
    ) -> None:
        """Begin with nothing recorded.

        Args:
            step: takes tensors of the same shapes each time; trains, and returns the loss.
            optimizer: which `step` has take its step. Others than fused Adam, AdamW and SGD are not recorded.
            device: of the tensors.
            wanted: whether to record at all.
        """
        self._step, self._optimizer, self._device = step, optimizer, device
        fused = isinstance(optimizer, _RATE_ON_DEVICE) and all(group.get("fused") for group in optimizer.param_groups)
        self._wanted = wanted and fused and device.type == "cuda"
        self._taken = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *given: Tensor, settle: Callable[[], None]) -> Tensor:
        """Take a step.

        Args:
            given: what `step` takes.
            settle: returns when no other thread uses the device.
        """
        if self._graph is not None:
            return self._replay(given)
        if not self._wanted:
            return self._step(*given)
        if self._taken == 0:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        if self._taken == _EAGER:
            settle()
            with on_device(self._device):
                self._wanted = self._record(given)
            return self(*given, settle=settle)
        self._taken += 1
        return self._aside(given)

    def _aside(self, given: Sequence[Tensor]) -> Tensor:
        """Take a step on the stream that records later, as autograd remembers its streams; look whether anything waits."""
        now = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(now)
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as said, torch.cuda.stream(self._stream):
                warnings.simplefilter("always")
                loss = self._step(*given)
        finally:
            torch.cuda.set_sync_debug_mode(before)
        for each in said:
            if "synchroniz" not in str(each.message):
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
            elif self._taken > 1:  # the first step makes what is made once, and may wait for it
                self._wanted = False
        now.wait_stream(self._stream)
        for tensor in given:
            tensor.record_stream(self._stream)
        loss.record_stream(now)
        return loss

    def _record(self, given: Sequence[Tensor]) -> bool:
        """Record a step, which is not taken by that; return whether it could be."""
        self._given = tuple(tensor.clone() for tensor in given)
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        spare = generator.clone_state()
        torch.cuda.synchronize()
        try:
            with (
                _rates_on_device(self._optimizer, self._device) as self._rates,
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                self._loss = self._step(*self._given)
        except Exception:  # whatever a network does that no graph can hold
            generator.graphsafe_set_state(spare)  # the other one believes that it is being recorded
            self._optimizer.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            return False
        self._graph = graph
        return True

    def _replay(self, given: Sequence[Tensor]) -> Tensor:
        assert self._graph is not None
        for own, tensor in zip(self._given, given, strict=True):
            own.copy_(tensor, non_blocking=True)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self._graph.replay()
        return self._loss.clone()


@contextmanager
def _rates_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[list[Tensor]]:
    """Let the optimiser read its rates from the device while this is open, where a schedule can change them later."""
    kept = "lr", "capturable"
    before = [{key: value for key, value in group.items() if key in kept} for group in optimizer.param_groups]
    rates = [torch.tensor(float(group["lr"]), device=device) for group in optimizer.param_groups]
    try:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True
        yield rates
    finally:
        for group, own in zip(optimizer.param_groups, before, strict=True):
            group.update(own)
