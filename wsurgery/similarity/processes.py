"""Several processes that share the images of one comparison, as torchrun starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among `count`; what is exchanged goes through gloo, on the CPU."""

    rank: int = 0
    count: int = 1

    def to_first(self, value: T) -> list[T]:
        """Return the values of all processes, by rank, in the first process; nothing in the others."""
        if self.count == 1:
            return [value]
        values: list[T] | None = [value] * self.count if self.rank == 0 else None
        dist.gather_object(value, values)
        return values or []

    def from_next(self, value: T) -> list[T]:
        """Return the values of all processes, from that of the next one round to this one's own."""
        if self.count == 1:
            return [value]
        values = [value] * self.count
        dist.all_gather_object(values, value)
        return values[self.rank + 1 :] + values[: self.rank + 1]

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun started together with this one; without torchrun it is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    dist.init_process_group("gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
