"""Batches on the device that computes, made ahead of who takes them."""

import mmap
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsurgery.devices import is_out_of_memory
from wsurgery.errors import WsurgeryError, printable

AHEAD = 4  # batches that are being made, each by a thread of its own
_UPLOADED_AT_ONCE = 1 << 26  # bytes

Indices = NDArray[np.int64]
Chosen = Callable[[int], tuple[Indices, NDArray[np.float32]]]


class Batch(NamedTuple):
    """What a step takes, on its device.

    Attributes:
        images: uint8 (b, h, w, 3).
        beside: float32 (k, b), numbers that go with each image.
    """

    images: Tensor
    beside: Tensor


class Feed:
    """Batches of images, each a function of its number alone, for who takes one after the other.

    On a CUDA device threads make the next few meanwhile: they read into pinned memory, and copy on a stream of their own, once a
    batch. Where images are met twice or more and all fit in half of the device's free memory they are uploaded once, and a
    batch is gathered there. Elsewhere a batch is made when it is asked for.
    """

    def __init__(
        self, images: NDArray[np.uint8], chosen: Chosen, n: int, device: torch.device, *, ahead: int | None = None
    ) -> None:
        """Begin with nothing made.

        Args:
            images: uint8 (m, h, w, 3), in memory or mapped from a file.
            chosen: number of a batch → indices of its images, int64 (b,), and what goes beside them, float32 (k, b). Called in
                any thread, in any order.
            n: how many batches there are.
            device: where they are wanted.
            ahead: batches that are made before they are asked for. Default: 4 on a CUDA device, else none.
        """
        self._images, self._chosen, self._n, self._device = images, chosen, n, device
        self._ahead = AHEAD if ahead is None and device.type == "cuda" else ahead or 0
        self._threads = ThreadPoolExecutor(self._ahead) if self._ahead else None
        self._making: deque[Future[tuple[Batch, torch.cuda.Event | None]]] = deque()
        self._next = 0  # the first that nobody makes yet
        self._file = _file_of(images)
        if self._file is not None:
            weakref.finalize(self, os.close, self._file.descriptor)
        self._resident: Tensor | None = None
        self._stream: torch.cuda.Stream | None = None

    @classmethod
    def in_order(cls, images: NDArray[np.uint8], starts: Sequence[int], size: int, device: torch.device) -> "Feed":
        """Give the batches of at most `size` images that begin at `starts`, with nothing beside them."""
        nothing = np.zeros((0, size), np.float32)
        return cls(
            images, lambda i: (np.arange(starts[i], min(starts[i] + size, len(images))), nothing), len(starts), device
        )

    def take(self, number: int) -> Batch:
        """Return a batch. Those that follow are made meanwhile; any other has to be waited for.

        Raises:
            Exception: whatever went wrong in the thread that made it.
        """
        if self._threads is None:
            return self._make(number)[0]
        if self._device.type == "cuda" and self._stream is None:
            self._begin()
        if number != self._next - len(self._making):  # not the one that follows: a run goes on, or an evaluation begins
            self.settle()
            self._making.clear()
            self._next = number
        while len(self._making) < self._ahead and self._next < self._n:
            self._making.append(self._threads.submit(self._make, self._next))
            self._next += 1
        batch, copied = self._making.popleft().result()
        if copied is not None:
            now = torch.cuda.current_stream(self._device)
            now.wait_event(copied)
            for tensor in batch:
                tensor.record_stream(now)  # the memory is not given to the next batch before this one was used
        return batch

    def settle(self) -> None:
        """Wait for what the threads are making: while a CUDA graph is recorded, nothing else may touch the device."""
        for batch in self._making:
            batch.exception()

    def _begin(self) -> None:
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        free, _ = torch.cuda.mem_get_info(self._device)
        met = self._n * len(self._chosen(0)[0])
        if met < 2 * len(self._images) or self._images.nbytes > free // 2:
            return
        try:
            self._resident = self._uploaded()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise

    def _uploaded(self) -> Tensor:
        resident = torch.empty(self._images.shape, dtype=torch.uint8, device=self._device)
        step = max(1, _UPLOADED_AT_ONCE // max(1, self._images[:1].nbytes))

        def upload(start: int) -> None:
            some = np.arange(start, min(start + step, len(self._images)))
            pinned = torch.empty(len(some), *self._images.shape[1:], dtype=torch.uint8, pin_memory=True)
            self._read(some, pinned.numpy())
            with torch.cuda.stream(self._stream):
                resident[start : start + len(some)].copy_(pinned, non_blocking=True)

        assert self._threads is not None
        list(self._threads.map(upload, range(0, len(self._images), step)))
        return resident

    def _make(self, number: int) -> tuple[Batch, torch.cuda.Event | None]:
        indices, beside = self._chosen(number)
        if self._device.type != "cuda":
            images = np.empty((len(indices), *self._images.shape[1:]), np.uint8)
            self._read(indices, images)
            on_device = (torch.from_numpy(array).to(self._device) for array in (images, beside))
            return Batch(*on_device), None
        head = indices.tobytes() + beside.tobytes()
        shape = (len(indices), *self._images.shape[1:])
        own = 0 if self._resident is not None else int(np.prod(shape))
        pinned = torch.empty(len(head) + own, dtype=torch.uint8, pin_memory=True)
        pinned.numpy()[: len(head)] = np.frombuffer(head, np.uint8)
        if own:
            self._read(indices, pinned.numpy()[len(head) :].reshape(shape))
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            there = pinned.to(self._device, non_blocking=True)
            numbers = there[indices.nbytes : len(head)].view(torch.float32).view(beside.shape)
            if self._resident is None:
                images_there = there[len(head) :].view(shape)
            else:
                images_there = self._resident.index_select(0, there[: indices.nbytes].view(torch.int64))
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        return Batch(images_there, numbers), copied

    def _read(self, indices: Indices, into: NDArray[np.uint8]) -> None:
        """Copy images into an array; from the file itself, where they are mapped from one, for a page fault costs more."""
        if self._file is None:
            np.take(self._images, indices, axis=0, out=into, mode="clip")  # "raise" would copy twice
            return
        size = self._images[:1].nbytes
        for place, index in zip(into, indices.tolist(), strict=True):
            _read_into(memoryview(place).cast("B"), self._file, index * size)


class _File(NamedTuple):
    descriptor: int
    offset: int  # of the first image, in bytes
    name: str


def _file_of(images: NDArray[np.uint8]) -> _File | None:
    """Open the file that an array is mapped from as a whole, to be read; None if it is none, or has no name any more."""
    mapped: object = images
    if sys.platform == "linux" and isinstance(mapped, np.memmap) and mapped.filename is not None:
        base: object = mapped.base  # of a part of a mapped array the whole, whose offset the part has, too
        if isinstance(base, mmap.mmap) and mapped.flags.c_contiguous:
            with suppress(OSError):
                return _File(os.open(mapped.filename, os.O_RDONLY | os.O_CLOEXEC), mapped.offset, str(mapped.filename))
    return None


def _read_into(left: memoryview, file: _File, start: int) -> None:
    if sys.platform == "linux":
        while left:
            got = os.preadv(file.descriptor, [left], file.offset + start)
            if not got:
                raise WsurgeryError(f"{printable(file.name)} has become shorter: wsurgery data cache makes it anew")
            left, start = left[got:], start + got
