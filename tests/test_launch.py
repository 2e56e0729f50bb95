"""Which of several processes this one is, as launchers say it: law by law, and as Slurm 22.05 itself says it."""

import pytest

from wsurgery.errors import UsageError
from wsurgery.launch import Launch, launched

# What srun -n2 gives its second task, a batch script with --ntasks=2, and srun -n1 in such a script.
STEP = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "gpu7",
}  # fmt: skip
BATCH = {
    "ENVIRONMENT": "BATCH",
    "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_NNODES": "1",
}
ONE = BATCH | STEP | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}
TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1",
    "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip


@pytest.mark.parametrize(
    "alone", [{}, BATCH, ONE, {"WORLD_SIZE": "8"}, {**STEP, "RANK": "0", "WORLD_SIZE": "1"}, {"SLURM_NTASKS": "4"}]
)
def test_one_process_is_alone_whatever_its_job_may_start(alone):
    assert launched(alone) is None


def test_the_tasks_of_a_step_are_processes_that_meet_on_the_first_ones_machine():
    found = launched(STEP)
    assert found == Launch(1, 2, 1, None, ("127.0.0.1", 10_000 + 31 * 7 + 2))
    assert launched({**BATCH, **STEP}) == found
    assert launched({**STEP, "SLURM_STEP_ID": "3"}).meeting != found.meeting  # steps at once do not meet each other
    own = launched({**STEP, "MASTER_ADDR": "here", "MASTER_PORT": "1234"})
    assert own.meeting == ("here", 1234)
    plain = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert launched(plain) == Launch(1, 2, 1, None, ("a", 1))


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[007-009,12],cpu1", "gpu007"), ("a-b.c,d", "a-b.c"), ("n[3,5]", "n3"), ("n[1-2]-ib", "n1-ib")],
)
def test_the_first_node_of_slurms_list(nodes, first):
    assert launched({**STEP, "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": nodes}).meeting[0] == first


def test_torchrun_counts_before_slurm():
    assert launched({**STEP, **TORCHRUN}) == Launch(3, 4, 1, 2, None)
    own = {key: value for key, value in TORCHRUN.items() if not key.startswith("TORCHELASTIC")}
    assert launched({key: value for key, value in own.items() if key != "LOCAL_WORLD_SIZE"}) == Launch(
        3, 4, 1, None, ("a", 1)
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK is not: start the processes with torchrun or srun, or set it"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "MASTER_ADDR is not"),
        ({**TORCHRUN, "RANK": "x"}, "RANK is no number: 'x'"),
        ({**TORCHRUN, "RANK": "4"}, "contradicts itself"),
        ({key: value for key, value in STEP.items() if key != "SLURM_LOCALID"}, "type srun -n 1"),
        ({key: value for key, value in STEP.items() if key != "SLURM_JOB_ID"}, "MASTER_PORT is not set"),
        ({**STEP, "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": ""}, "export MASTER_ADDR=HOST"),
    ],
)
def test_what_does_not_say_enough_is_refused(given, said):
    with pytest.raises(UsageError, match=said):
        launched(given)
