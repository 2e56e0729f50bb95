"""A GPU for each command: held against a made-up list of GPUs, for it is only names that are given away."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FREE = [sys.executable, "-m", "wsurgery.free_gpu"]
JOB = 'echo "$CUDA_VISIBLE_DEVICES + $(date +%s.%N)" >> log; sleep 0.6; echo "$CUDA_VISIBLE_DEVICES - $(date +%s.%N)" >> log'


@pytest.fixture
def start(tmp_path):
    started = []

    def run(*arguments, **environment):
        kept = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        process = subprocess.Popen(
            [*FREE, *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**kept, "TMPDIR": str(tmp_path), **environment},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_no_gpu_has_two_commands_at_once_and_all_are_used(start, tmp_path):
    jobs = [start("--gpus", "3,GPU-a/b", "--", "bash", "-c", JOB) for _ in range(6)]
    assert [job.wait(60) for job in jobs] == [0] * 6
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    for gpu in ("3", "GPU-a/b"):
        turns = [what for _, what in sorted((float(at), what) for name, what, at in lines if name == gpu)]
        assert turns == ["+", "-"] * (len(turns) // 2)
        assert turns
    assert len(lines) == 12


def test_a_gpu_is_free_again_when_its_command_was_killed(start, tmp_path):
    first = start("--", "sleep", "60", CUDA_VISIBLE_DEVICES="7")
    while not Path(f"/proc/{first.pid}/cmdline").read_bytes().startswith(b"sleep\x00"):
        time.sleep(0.02)
    second = start("--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES", CUDA_VISIBLE_DEVICES="7")
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(1.5)
    first.send_signal(signal.SIGKILL)  # it is the command itself by now
    assert second.communicate(timeout=30)[0] == "7\n"


def test_the_commands_status_is_its_own(start):
    assert start("--gpus", "0", "--", "sh", "-c", "exit 41").wait(30) == 41


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--gpus", "0"], 2, "what is to be run?"),
        (["--gpus", "", "--", "true"], 1, "no GPU is visible"),
        (["--", "true"], 1, "nvidia-smi lists no GPU here: name them with --gpus 0,1"),
        (["--gpus", "0", "--", "no-such-command"], 127, "no-such-command: No such file or directory"),
    ],
)
def test_what_cannot_be_is_one_line(start, arguments, status, said):
    job = start(*arguments, PATH="/nowhere")
    assert said in (line := job.communicate(timeout=30)[1])
    assert (job.returncode, line.count("\n")) == (status, 1)


def test_the_taken_devices_of_another_are_not_ours(start, tmp_path):
    (tmp_path / f"wsurgery-gpus-{os.getuid()}").symlink_to(tmp_path)
    job = start("--gpus", "0", "--", "true")
    assert "is not a folder of yours" in job.communicate(timeout=30)[1]
    assert job.returncode == 1
