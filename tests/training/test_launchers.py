"""Processes as srun, torchrun and people start them: one run in a folder, one line for what is wrong, nothing lost."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import TRAINING

SGD = ["--steps", 6, "--eval-every", 3, "--global-batch", 8, "--device", "cpu", "--threads", 1]
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "TORCHELASTIC")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def slurm(count=2):
    """What srun says to each of its tasks."""
    port = str(free_port())
    return [
        {
            "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": str(count), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        for rank in range(count)
    ]  # fmt: skip


started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def none_is_left():
    """Whatever a test finds, its processes end with it."""
    yield
    while started:
        process = started.pop()
        process.kill()
        process.communicate()


def start(arguments, environment, *, cwd=None, script=("-m", "wsurgery")):
    """Start a process that its launcher told about itself by its environment alone."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHERS)}
    process = subprocess.Popen(
        [sys.executable, *map(str, script), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**kept, "GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "200", **environment},
    )
    started.append(process)
    return process


def ended(processes):
    """Return status and standard error of each."""
    said = [process.communicate(timeout=120)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def read_log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_tasks_of_srun_train_one_run(fresh, fundus, tmp_path):
    given = ["train", fresh, "--data", fundus, "-o", tmp_path / "run", *SGD]
    (first, said), (second, nothing) = ended([start(given, each) for each in slurm()])
    assert (first, second, nothing) == (0, 0, ""), said + nothing
    assert [entry["step"] for entry in read_log(tmp_path / "run")] == [0, 3, 6]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["environment"]["processes"] == 2
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_one_task_is_one_process(fresh, fundus, tmp_path):
    given = ["train", fresh, "--data", fundus, "-o", tmp_path / "run", *SGD]
    ((status, said),) = ended([start(given, slurm(1)[0])])
    assert status == 0, said
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["environment"]["processes"] == 1


@pytest.mark.slow
def test_two_runs_at_once_in_one_folder_are_one_run(fresh, fundus, finished, tmp_path):
    given = ["train", fresh, "--data", fundus, "-o", tmp_path / "run", *TRAINING]
    done = sorted(ended([start(given, {}) for _ in range(3)]), key=lambda pair: pair[0])
    assert done[0][0] == 0
    for status, said in done:
        if status:
            assert (status, said.count("\n")) == (1, 1), said
            assert "is trained in by process" in said
    log = [entry["step"] for entry in read_log(tmp_path / "run")]
    assert log == [entry["step"] for entry in read_log(finished)]
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == (finished / "last.safetensors").read_bytes()


@pytest.mark.slow
def test_a_second_run_is_refused_in_a_line_that_says_who_is_there(fresh, fundus, invoke, tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(SLOW.format(seconds=3, event=str(tmp_path / "saving")))
    given = ["train", fresh, "--data", fundus, "-o", tmp_path / "run", *SGD[:4], "--device", "cpu", "--threads", 1]
    first = start(given, {}, script=[script])
    wait_for(tmp_path / "saving", first)
    done = invoke(*given, check=False)
    assert done.exit_code == 1
    assert f"{tmp_path}/run is trained in by process {first.pid} on " in done.stderr
    assert done.stderr.count("\n") == 1
    ((status, said),) = ended([first])
    assert status == 0, said
    invoke(*given)


def test_where_nothing_can_be_locked_a_run_says_so_and_goes_on(fresh, fundus, invoke, tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    done = invoke("train", fresh, "--data", fundus, "-o", tmp_path / "run", *SGD[:4], "--device", "cpu", "--threads", 1)
    assert f"{tmp_path}/run: its file system has no locks, so nothing would notice a second run there" in done.stderr
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.slow
def test_processes_that_cannot_meet_say_where(fresh, fundus, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {**slurm()[0], "MASTER_PORT": str(taken.getsockname()[1])}
        ((status, said),) = ended([start(["eval", fresh, "--data", fundus], environment)])
    assert (status, said.count("\n")) == (1, 1), said
    assert "2 processes do not meet at 127.0.0.1 port" in said
    assert "export MASTER_ADDR" in said


def test_a_process_that_is_refused_leaves_no_folder(fresh, fundus, invoke, tmp_path):
    given = ["train", fresh, "--data", fundus, "--batch-size", 8, "--steps", 1, "--device", "cpu", "--arch", "resnet18"]
    assert invoke(*given, "-o", tmp_path / "some" / "where" / "run", check=False).exit_code
    assert not (tmp_path / "some").exists()


@pytest.mark.parametrize("command", ["train", "eval", "cca"])
def test_several_processes_that_nobody_introduced_are_refused_in_a_line(command, fresh, fundus, tmp_path):
    given = {"train": [fresh, "-o", tmp_path / "run", *SGD], "eval": [fresh], "cca": [fresh, fresh]}[command]
    environment = {"RANK": "0", "WORLD_SIZE": "2"}
    ((status, said),) = ended([start([command, *given, "--data", fundus], environment)])
    assert (status, said.count("\n")) == (2, 1), said
    assert "LOCAL_RANK is not: start the processes with torchrun or srun" in said


@pytest.mark.slow
def test_processes_without_local_world_size_are_counted(fresh, fundus, tmp_path):
    given = ["train", fresh, "--data", fundus, "-o", tmp_path / "run", *SGD]
    said = [
        {**each, "RANK": each["SLURM_PROCID"], "WORLD_SIZE": "2", "LOCAL_RANK": each["SLURM_PROCID"]}
        for each in slurm()
    ]
    assert [status for status, _ in ended([start(given, each) for each in said])] == [0, 0]


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused_and_left_as_it_was(fresh, fundus, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    given = ["train", fresh, "--data", fundus, "-o", "run", *SGD]
    for folder in folders:
        folder.mkdir()
    done = ended([start(given, each, cwd=folder) for each, folder in zip(slurm(), folders, strict=True)])
    assert [status for status, _ in done] == [1, 1]
    assert done[0][1].count("\n") == 1
    assert "run is another folder for process 1 on" in done[0][1]
    assert done[1][1] == ""
    assert [list(folder.iterdir()) for folder in folders] == [[], []]


THREADS = """import os, sys
from wsurgery.__main__ import main
try:
    main()
finally:
    names = [open(f"/proc/self/task/{each}/comm").read() for each in os.listdir("/proc/self/task")]
    print("left:", [name for name in names if "gloo" in name], file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="threads have names in /proc")
def test_no_thread_of_theirs_is_left_that_could_drop_a_tensor_as_python_ends(fresh, fundus, tmp_path):
    """torch's would take the interpreter's lock then, which aborts the process, now and then."""
    script = tmp_path / "threads.py"
    script.write_text(THREADS)
    given = ["train", fresh, "--data", fundus, "-o", tmp_path / "run", *SGD]
    done = ended([start(given, each, script=[script]) for each in slurm()])
    assert [status for status, _ in done] == [0, 0], done
    assert all(said.endswith("left: []\n") for _, said in done), done


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--until-auc", 0], ["--patience", 1]])
def test_a_run_that_ends_at_once_ends_well_in_all_processes(more, fresh, fundus, tmp_path):
    for attempt in range(3):
        run = tmp_path / f"{attempt}"
        given = ["train", fresh, "--data", fundus, "-o", run, *SGD, *more]
        done = ended([start(given, each) for each in slurm()])
        assert [status for status, _ in done] == [0, 0], done
        assert (run / "metrics.json").exists()


SLOW = """import sys, time
from pathlib import Path
from wsurgery.training import trainer

save = trainer.Trainer.save

def slowly(self, run):
    Path({event!r}).touch()
    time.sleep({seconds})
    save(self, run)

if __name__ == "__main__":
    trainer.Trainer.save = slowly
    from wsurgery.__main__ import main
    main()
"""


def wait_for(path: Path, *processes):
    end = time.monotonic() + 60
    while not path.exists():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1],
)
def test_signals_that_come_twice_to_every_process_lose_nothing(number, fresh, fundus, tmp_path):
    run, event = tmp_path / "run", tmp_path / "saving"
    script = tmp_path / "slow.py"
    script.write_text(SLOW.format(seconds=1.5, event=str(event)))
    given = ["train", fresh, "--data", fundus, "-o", run, "--steps", 100_000, "--eval-every", 99_999, *SGD[4:]]
    processes = [start(given, each, script=[script]) for each in slurm()]
    wait_for(event, *processes)
    wait_for(run / "resume.pt", *processes)  # of the evaluation before the first step
    wait_for(run / "last.safetensors", *processes)
    event.unlink()
    time.sleep(0.5)
    before = (run / "resume.pt").stat().st_mtime_ns
    for process in processes:
        process.send_signal(number)
    wait_for(event, *processes)
    for process in (*processes, processes[1]):
        process.send_signal(number)
    while processes[1].poll() is None:
        time.sleep(0.01)
    assert (run / "resume.pt").stat().st_mtime_ns > before, "the second process left before the first one had saved"
    (first, said), (second, nothing) = ended(processes)
    assert (first, second) == (128 + number, 128 + number), said + nothing
    step = int(said.rpartition("after step ")[2].split()[0])
    assert step > 0
    assert torch.load(run / "resume.pt", weights_only=True)["progress"]["step"] == step
    assert nothing == ""


@pytest.mark.slow
def test_signals_to_torchrun_and_its_processes_at_once_lose_nothing(fresh, fundus, tmp_path):
    run = tmp_path / "run"
    given = ["train", fresh, "--data", fundus, "-o", run, "--steps", 100_000, "--eval-every", 99_999, *SGD[4:]]
    together = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", 2]
    saved = 0
    for _ in range(3):
        launcher = subprocess.Popen(
            [sys.executable, *map(str, [*together, "-m", "wsurgery", *given])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            start_new_session=True,
        )
        wait_for(run / "last.safetensors", launcher)
        before = len(read_log(run))
        while len(read_log(run)) < before + 2:
            assert launcher.poll() is None
            time.sleep(0.02)
        os.killpg(launcher.pid, signal.SIGTERM)
        said = launcher.communicate(timeout=60)[1]
        step = torch.load(run / "resume.pt", weights_only=True)["progress"]["step"]
        assert f"stopped by SIGTERM after step {step} of" in said
        assert step > saved
        saved = step


LISTED = """import os, sys
from pathlib import Path
from wsurgery.data import dataset

whole = dataset.open_data

def listing(spec, **more):
    (Path(sys.argv[0]).parent / f"listed-{os.environ['SLURM_PROCID']}").touch()
    return whole(spec, **more)

dataset.open_data = listing
if sys.argv.pop(1) == "other":  # as long as a file of the first one's, which is not there
    from wsurgery.studies import _images
    _images.math = type("Other", (), dict(prod=lambda shape: -1))
if __name__ == "__main__":
    from wsurgery.__main__ import main
    main()
"""


@pytest.mark.parametrize("seen", ["same", pytest.param("other", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "command", ["train", *(pytest.param(each, marks=pytest.mark.slow) for each in ("eval", "cca"))]
)
def test_one_process_lists_the_images_for_all_that_see_its_cache(command, seen, fresh, fundus, tmp_path):
    script = tmp_path / "listed.py"
    script.write_text(LISTED)
    own = ["--device", "cpu", "--threads", 1]
    given = {
        "train": [fresh, "-o", tmp_path / "run", *SGD],
        "eval": [fresh, *own, "--json"],
        "cca": [fresh, fresh, *own, "--json", "-p", 200, "-d", 2],
    }[command]
    done = ended([start([seen, command, *given, "--data", fundus], each, script=[script]) for each in slurm()])
    assert [status for status, _ in done] == [0, 0], done
    assert (tmp_path / "listed-0").exists()
    assert (tmp_path / "listed-1").exists() == (seen == "other")


OUT_OF_MEMORY = """import os
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, num_classes=5):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x):
        if x.device.type != "meta" and {when}:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\\nGPU 0 has a total capacity of")
        return self.fc(x.mean((2, 3)))

def make(num_classes=5):
    return Small(num_classes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["True", "os.environ['SLURM_PROCID'] == '1'"])
@pytest.mark.parametrize("command", ["train", "eval"])
def test_memory_that_ends_in_some_processes_is_a_line_in_each(when, command, invoke, fundus, tmp_path):
    network = tmp_path / "net.py"
    network.write_text(OUT_OF_MEMORY.format(when=when))
    init = tmp_path / "init.safetensors"
    invoke("init", "--model", f"{network}:make", "--num-classes", 5, "-o", init)
    more = {"train": ["-o", tmp_path / "run", *SGD], "eval": ["--device", "cpu", "--threads", 1]}[command]
    # So many that each process has a batch of them.
    data = fundus if command == "train" else "synthetic:fundus?n=400&size=16"
    given = [command, init, "--model", f"{network}:make", "--data", data, *more, "--quiet"]
    done = ended([start(given, each) for each in slurm()])
    for status, said in done:
        assert status == 1
        assert said.count("\n") <= 1, said
    assert "out of memory on cpu: use a smaller" in done[1 if "PROCID" in when else 0][1]
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "eval", "cca"])
def test_a_device_that_is_not_there_is_one_line_of_all_processes(command, fresh, fundus, tmp_path):
    given = {"train": [fresh, "-o", tmp_path / "run", *SGD[:6]], "eval": [fresh], "cca": [fresh, fresh]}[command]
    done = ended([start([command, *given, "--data", fundus, "--device", "cuda:9"], each) for each in slurm()])
    assert [status for status, _ in done] == [2, 2]
    assert done[0][1].count("\n") == 1
    assert "--device cuda:9: this machine has cpu" in done[0][1]
    assert done[1][1] == ""
