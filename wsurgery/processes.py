"""Several processes that share the work of one command, as torchrun or srun starts them."""

import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from wsurgery.cores import shared_cores, which_cores
from wsurgery.errors import WsurgeryError, printable
from wsurgery.launch import Launch, launched

if TYPE_CHECKING:
    import torch.distributed as dist  # elsewhere imported where processes meet: one alone does without

T = TypeVar("T")
TIMEOUT = timedelta(hours=12)  # the first process may have to decode all images while the others wait
MEETING = timedelta(minutes=10)  # within which all have to have come

# As gloo, NCCL and the store say that a process is not there any more, most of them without an exception of their own.
_LOST = re.compile(r"gloo|NCCL|Broken pipe|Connection (?:reset|closed|refused)|Socket Timeout|recvValue|sendBytes")


@dataclass(frozen=True)
class Processes:
    """This process among `count`; what these methods exchange goes through gloo, on the CPU.

    Every process must make the same calls in the same order.

    Attributes:
        rank: which it is, from 0.
        count: of all.
        local_rank: which it is of those on its machine.
        local_count: of those on its machine.
        on_cuda: the group in which tensors on CUDA devices are exchanged, for torch's own functions; None without CUDA.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    on_cuda: "dist.ProcessGroup | None" = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    def to_first(self, value: T) -> list[T]:
        """Return the values of all processes, by rank, in the first process; nothing in the others."""
        if self.count == 1:
            return [value]
        from torch.distributed import gather_object

        values: list[T] | None = [value] * self.count if self.rank == 0 else None
        gather_object(value, values)
        return values or []

    def to_all(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        values = [value] * self.count
        if self.count > 1:
            from torch.distributed import all_gather_object

            all_gather_object(values, value)
        return values

    def from_next(self, value: T) -> list[T]:
        """Return the values of all processes, from that of the next one round to this one's own."""
        values = self.to_all(value)
        return values[self.rank + 1 :] + values[: self.rank + 1]

    def from_first(self, value: T) -> T:
        """Return the first process's value."""
        values = [value]
        if self.count > 1:
            from torch.distributed import broadcast_object_list

            broadcast_object_list(values)
        return values[0]

    def largest(self, value: int) -> int:
        """Return the largest of the processes' values."""
        if self.count == 1:
            return value
        import torch
        import torch.distributed as dist

        values = torch.tensor([value])
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def means(self, values: Sequence[float]) -> list[float]:
        """Return, for each of the values, its mean over the processes."""
        if self.count == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        means: list[float] = (sums / self.count).tolist()
        return means

    def in_turn(self, work: Callable[[], T]) -> T:
        """Run `work` in the first process, which may prepare files for the others, and then in the others.

        Raises:
            SystemExit: in the others, with the error's status, where it failed in the first, which says why.
        """
        mine: list[T] = []
        self.in_first(lambda: mine.append(work()))
        return mine[0] if mine else work()

    def in_first(self, work: Callable[[], T]) -> T:
        """Run `work` in the first process while the others wait; return its value in all.

        Raises:
            SystemExit: in the others, with the error's status, where it failed in the first, which says why.
        """
        if self.count == 1:
            return work()
        if not self.is_first:
            status, result = self.from_first((0, None))
            if status:
                raise SystemExit(status)
            return result  # type: ignore[return-value]  # it is the first one's
        try:
            found = work()
        except BaseException as error:
            with suppress(RuntimeError):  # of others that are gone
                self.from_first((getattr(error, "exit_status", None) or getattr(error, "code", None) or 1, None))
            raise
        self.from_first((0, found))
        return found

    def refuse(self, problem: WsurgeryError | None) -> None:
        """Raise what any of the processes found wrong: the first process says it, and all end.

        Raises:
            WsurgeryError: in the first process.
            SystemExit: in the others, with its status.
        """
        found = [each for each in self.to_all(problem) if each is not None]
        if found and self.is_first:
            raise found[0]
        if found:
            raise SystemExit(found[0].exit_status)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            from torch.distributed import barrier

            barrier()


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that were started together with this one, by torchrun, by srun, or as torch's `env://` has it.

    Without any of these it is alone. What they exchange goes through gloo, with 12 hours to wait for each other; tensors on
    CUDA devices through NCCL, whose own limit finds out sooner that a process hangs.

    Raises:
        UsageError: the environment speaks of several processes, and not of all that it takes to meet.
        WsurgeryError: they do not meet, or another one has ended.
    """
    launch = launched()
    if launch is None:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    try:
        _meet(launch)
        processes, sharing = _introduced(launch)
        with shared_cores(sharing):
            yield processes
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise WsurgeryError(f"the other processes are lost, one of which may say why: {_first_line(error)}") from error
    except BaseException:
        if dist.is_initialized() and torch.cuda.is_available():
            raise  # to take leave of NCCL is to wait for those that wait for this one
        _part()
        raise
    _part()


def _meet(launch: Launch) -> None:
    import torch.distributed as dist

    # Before there is a group: its functions keep the one that there is when they are imported, and DistributedDataParallel
    # imports them. A group that is kept has threads, and one that drops a tensor as Python ends aborts the process.
    import torch.distributed.nn.functional  # noqa: F401

    if launch.meeting is None:
        dist.init_process_group("gloo", timeout=TIMEOUT)
        return
    host, port = launch.meeting
    try:
        store = dist.TCPStore(host, port, launch.count, launch.rank == 0, MEETING)  # type: ignore[attr-defined]
    except RuntimeError as error:  # torch's own kinds of it
        raise WsurgeryError(
            f"{launch.count} processes do not meet at {printable(host)} port {port} ({_first_line(error)}): export "
            "MASTER_ADDR, the first one's host, and MASTER_PORT, a port that is free there"
        ) from error
    dist.init_process_group("gloo", store=store, rank=launch.rank, world_size=launch.count, timeout=TIMEOUT)


def _introduced(launch: Launch) -> tuple[Processes, int]:
    """Return this process among those that met, and how many of them share its cores."""
    import torch
    import torch.distributed as dist

    met = Processes(launch.rank, launch.count)
    host, allowed = socket.gethostname(), which_cores()
    neighbours = [cores for name, cores in met.to_all((host, allowed)) if name == host]
    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    group = dist.new_group(backend="nccl") if all(met.to_all(cuda)) else None
    assert not isinstance(group, int)  # what torch returns to who is not in it
    processes = Processes(launch.rank, launch.count, launch.local_rank, launch.local_count or len(neighbours), group)
    return processes, sum(bool(cores & allowed) for cores in neighbours)


def _first_line(error: Exception) -> str:
    line = str(error).partition("\n")[0]
    return printable(re.sub(r"^\[\S*/\S*\] ", "", line), 120)  # without the place in torch's source


def _part() -> None:
    import gc

    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()  # of what still knows the group, so that its threads end here
