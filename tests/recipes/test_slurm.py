"""A recipe's jobs through a Slurm that runs for them alone, and what is said where there is none."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "slurm-here.sh"
DAEMONS = ("munged", "slurmctld", "slurmd", "srun")

slurm = pytest.mark.skipif(
    not all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in DAEMONS),
    reason="Slurm is not installed; recipes/slurm-here.sh installs it",
)


def run(*arguments: object, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", SCRIPT, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
        timeout=120,
    )


@slurm
def test_every_job_of_a_recipe_goes_through_slurm(tmp_path):
    (tmp_path / "Makefile").write_text(
        "all: 1 2 3\n1 2 3:\n\t$(RUN) sh -c 'echo $$SLURM_JOB_ID $$SLURM_CONF > $@'\n3: | 1 2\n"
    )
    done = run("-C", tmp_path, "-j3")
    assert done.returncode == 0, done.stderr
    assert "3 of 3 jobs went through Slurm" in done.stdout
    jobs, configurations = zip(*((tmp_path / name).read_text().split() for name in "123"), strict=True)
    assert sorted(jobs) == ["1", "2", "3"]
    assert jobs[2] == "3"  # it waited for the others
    assert not Path(configurations[0]).parent.exists()


@pytest.mark.slow
@slurm
def test_the_tasks_of_a_job_train_one_run(tmp_path, fresh, fundus):
    train = f"{sys.executable} -m wsurgery train {fresh} --data '{fundus}' --steps 4 --eval-every 2 --global-batch 8 --device cpu"
    (tmp_path / "Makefile").write_text(
        f"export GLOO_SOCKET_IFNAME = lo\nall:\n\tsrun -n2 --quiet {train} -o {tmp_path}/run\n"
    )
    done = run("-C", tmp_path)
    assert done.returncode == 0, done.stderr
    log = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log == [0, 2, 4]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["environment"]["processes"] == 2


@slurm
def test_a_job_that_fails_makes_the_recipe_fail(tmp_path):
    (tmp_path / "Makefile").write_text("all:\n\t$(RUN) sh -c 'echo $$SLURM_CONF > configuration; exit 3'\n")
    done = run("-C", tmp_path)
    assert done.returncode == 2  # make's own
    assert "exit code 3" in done.stderr
    assert not Path((tmp_path / "configuration").read_text().strip()).parent.exists()


@pytest.mark.parametrize(("arguments", "status"), [((), 1), (("--or-skip",), 0)])
def test_without_slurm_or_a_way_to_install_it(tmp_path, arguments, status):
    (tmp_path / "dirname").symlink_to(shutil.which("dirname"))
    done = run(*arguments, path=str(tmp_path))
    assert done.returncode == status
    assert done.stderr.splitlines() == [
        "no apt-get here: install Slurm and munge by hand",
        "skipped: slurm-wlm cannot be installed here",
    ]
