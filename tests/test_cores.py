"""How many cores there are to use."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import save_file

from wsurgery.cores import cores, shared_cores, which_cores


def test_those_that_this_process_may_use():
    allowed = sorted(os.sched_getaffinity(0))
    script = f"import os; os.sched_setaffinity(0, {allowed[:1]}); from wsurgery.cores import cores; print(cores())"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"1\n"
    assert cores() == len(allowed)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python itself knows")
def test_all_where_the_system_has_no_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert cores() == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


@pytest.mark.parametrize(("together", "share"), [(1, 8), (3, 2), (9, 1)])
def test_processes_started_together_share_them(together, share, monkeypatch):
    monkeypatch.setattr(os, "process_cpu_count" if sys.version_info >= (3, 13) else "cpu_count", lambda: 8)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(together))
    assert cores() == share


def test_those_that_met_share_them_whatever_a_launcher_says(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    with shared_cores(1):
        assert cores() == len(which_cores()) == len(os.sched_getaffinity(0))
        with shared_cores(1000):
            assert cores() == 1
    assert cores() == 1


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("prune", ["prune", "a", "--sparsity", 0.5, "--scope", "all"]),
        ("merge", ["merge", "a", "b", "--base", "c", "--method", "ties"]),
    ],
)
def test_a_command_reads_in_the_threads_that_it_was_given_while_it_plans_too(
    module, words, invoke, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        values = np.random.default_rng(seed).normal(size=(300, 400)).astype(np.float32)
        save_file({"first.weight": values, "last.weight": values}, name)
    begun = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, count):
            begun.append(count)
            super().__init__(count)

    monkeypatch.setattr(f"wsurgery.operations.{module}.ThreadPoolExecutor", Pool)
    invoke(*words, "--threads", 3, "-o", "made")
    assert begun
    assert set(begun) == {3}
