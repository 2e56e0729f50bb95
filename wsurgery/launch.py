"""Which of several processes this one is, as torchrun, Slurm's srun or a launcher of one's own says in the environment."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from wsurgery.errors import UsageError, printable

_PORTS = 10_000, 20_000  # the first and how many: below those that Linux gives away by itself


@dataclass(frozen=True)
class Launch:
    """One of several processes.

    Attributes:
        rank: which it is of all, from 0.
        count: of all.
        local_rank: which it is of those on its machine.
        local_count: of those on its machine; None where the launcher does not say it.
        meeting: host and port where they meet; None where torchrun has arranged that.
    """

    rank: int
    count: int
    local_rank: int
    local_count: int | None
    meeting: tuple[str, int] | None


def launched(environment: Mapping[str, str] | None = None) -> Launch | None:
    """Return which process this is of several that were started together; None of one that is alone.

    Raises:
        UsageError: the environment speaks of several, and not of all that it takes to meet.
    """
    given = os.environ if environment is None else environment
    if "RANK" in given and "WORLD_SIZE" in given:
        return _told(given)
    tasks = _number(given, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in given else "SLURM_NTASKS", 1)
    # A batch script is one process, however many tasks it may start: only srun starts them, and says which step that is.
    is_script = given.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in given
    if "SLURM_PROCID" not in given or tasks == 1 or is_script:
        return None
    if "SLURM_LOCALID" not in given:
        raise UsageError(
            "SLURM_PROCID is set and SLURM_LOCALID is not: start the processes with srun, or for one process type srun -n 1"
        )
    meeting = given.get("MASTER_ADDR") or _first_node(given), _number(given, "MASTER_PORT", _port(given))
    return _checked(_number(given, "SLURM_PROCID"), tasks, _number(given, "SLURM_LOCALID"), None, meeting)


def _told(given: Mapping[str, str]) -> Launch | None:
    count = _number(given, "WORLD_SIZE")
    if count == 1:
        return None
    missing = [name for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in given]
    if missing:
        raise UsageError(
            f"RANK and WORLD_SIZE are set and {missing[0]} is not: start the processes with torchrun or srun, or set it, too "
            "(for one process: unset RANK WORLD_SIZE)"
        )
    local = _number(given, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in given else None
    # torchrun has a store of its own, which torch finds by itself.
    meeting = None if "TORCHELASTIC_RUN_ID" in given else (given["MASTER_ADDR"], _number(given, "MASTER_PORT"))
    return _checked(_number(given, "RANK"), count, _number(given, "LOCAL_RANK"), local, meeting)


def _checked(
    rank: int, count: int, local_rank: int, local_count: int | None, meeting: tuple[str, int] | None
) -> Launch:
    if rank >= count or local_rank >= (local_count or count):
        raise UsageError(f"process {rank} ({local_rank} on its machine) of {count}: the environment contradicts itself")
    return Launch(rank, count, local_rank, local_count, meeting)


def _number(given: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = given.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        raise UsageError(f"the environment variable {name} is not set, nor what it would follow from: export it")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UsageError(f"the environment variable {name} is no number: {printable(repr(text), 40)}")
    return int(text)


def _first_node(given: Mapping[str, str]) -> str:
    """Return the host of Slurm's first task, `gpu[007-009,12],cpu1` → `gpu007`."""
    if given.get("SLURM_STEP_NUM_NODES", given.get("SLURM_NNODES")) == "1":
        return "127.0.0.1"
    nodes = given.get("SLURM_STEP_NODELIST") or given.get("SLURM_JOB_NODELIST") or ""
    found = re.match(r"([\w.-]+)(?:\[(\d+)[\d,-]*\]([\w.-]*))?(?:,|$)", nodes)
    if not found:
        raise UsageError(
            "Slurm does not say where the processes are to meet: export MASTER_ADDR=HOST, that of the first one"
        )
    return found[1] + (found[2] or "") + (found[3] or "")


def _port(given: Mapping[str, str]) -> int | None:
    """Return a port for the processes of a step of Slurm: steps that run at once should have different ones."""
    if "SLURM_JOB_ID" not in given:
        return None
    first, many = _PORTS
    return first + (31 * _number(given, "SLURM_JOB_ID") + _number(given, "SLURM_STEP_ID", 0)) % many
