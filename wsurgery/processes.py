"""Several processes that share the work of one command, as torchrun starts them."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
TIMEOUT = timedelta(hours=12)  # the first process may have to decode all images while the others wait


@dataclass(frozen=True)
class Processes:
    """This process among `count`; what these methods exchange goes through gloo, on the CPU.

    Every process must make the same calls in the same order.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    def to_first(self, value: T) -> list[T]:
        """Return the values of all processes, by rank, in the first process; nothing in the others."""
        if self.count == 1:
            return [value]
        values: list[T] | None = [value] * self.count if self.rank == 0 else None
        dist.gather_object(value, values)
        return values or []

    def to_all(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def from_next(self, value: T) -> list[T]:
        """Return the values of all processes, from that of the next one round to this one's own."""
        values = self.to_all(value)
        return values[self.rank + 1 :] + values[: self.rank + 1]

    def from_first(self, value: T) -> T:
        """Return the first process's value."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def largest(self, value: int) -> int:
        """Return the largest of the processes' values."""
        if self.count == 1:
            return value
        values = torch.tensor([value])
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def means(self, values: Sequence[float]) -> list[float]:
        """Return, for each of the values, its mean over the processes."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        means: list[float] = (sums / self.count).tolist()
        return means

    def in_turn(self, work: Callable[[], T]) -> T:
        """Run `work` in the first process, which may prepare files for the others, and then in the others.

        Raises:
            SystemExit: in the others, with the error's status, where it failed in the first, which says why.
        """
        if self.count == 1:
            return work()
        if self.is_first:
            try:
                result = work()
            except BaseException as error:
                self.from_first(getattr(error, "exit_status", 1))
                raise
            self.from_first(0)
            return result
        if status := self.from_first(0):
            raise SystemExit(status)
        return work()

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun started together with this one; without torchrun it is alone.

    Tensors on the CPU go through gloo, those on CUDA devices through NCCL.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=TIMEOUT)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
