"""What only Linux has is not needed: the same bytes and the same promises without it.

Processes that lack it stand for macOS and, as far as that goes, for Windows (`tests/elsewhere`).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.conftest import TRAINING, small_resnet

SURGERY = """
wsurgery shuffle a.safetensors --seed 3 -o old.safetensors --force
wsurgery transfuse a.safetensors --upto block1 --into b.safetensors -o transfuse.safetensors
wsurgery cast a.safetensors --to bf16 | wsurgery meanvar | wsurgery transfuse a.safetensors --upto conv1 > pipe.safetensors
wsurgery transfuse <(wsurgery meanvar b.safetensors) --upto block1 --into a.safetensors -o joined.safetensors
wsurgery reset-bn a.safetensors -o shards/ --shard-size 2MB
wsurgery cast shards --to fp16 --force > old
wsurgery reset-bn a.safetensors >> old
wsurgery replay joined.safetensors
wsurgery data make 'synthetic:textures?n=70&size=16' -o drawn --threads 2
wsurgery data cache drawn/manifest.csv --image-size 16
"""


def environment(system: str, **more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    here = {} if system == "linux" else {"ELSEWHERE": system, "PYTHONPATH": str(Path(__file__).parent / "elsewhere")}
    return {**os.environ, "PATH": path, **here, **more}


def made(system: str, folder: Path) -> dict[str, bytes]:
    """Run SURGERY in a folder and return the files that are there afterwards."""
    tensors = small_resnet()
    tensors["layer2.0.conv3.weight"] = np.random.default_rng(5).normal(size=(1100, 1000, 1, 1)).astype(np.float32)
    save_file(tensors, folder / "a.safetensors")
    save_file(small_resnet(seed=1), folder / "b.safetensors")
    (folder / "old.safetensors").write_bytes(b"old")
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", SURGERY],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=folder,
        env=environment(system, WSURGERY_CACHE=str(folder / "cache")),
        timeout=240,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"identical\n" in done.stdout
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    cached = [name for name in files if name.startswith("cache")]  # named after times and places
    contents = [files.pop(name).replace(os.fsencode(folder), b"") for name in cached]
    return {"cached": b"".join(sorted(contents)), **files}


SYSTEMS = ["darwin", pytest.param("win32", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def on_linux(tmp_path_factory) -> dict[str, bytes]:
    return made("linux", tmp_path_factory.mktemp("linux"))


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_same_bytes_by_file_pipe_shards_replay_and_in_processes_that_draw(system, on_linux, tmp_path):
    files = made(system, tmp_path)
    assert files.keys() == on_linux.keys()
    assert [name for name in files if files[name] != on_linux[name]] == []


TWICE = """
from wsurgery.__main__ import main
for _ in range(2):
    try:
        main()
    except SystemExit as end:
        print(end.code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_training_that_is_stopped_goes_on_to_the_same_network(system, fundus, fresh, finished, tmp_path):
    line = ["train", fresh, "--data", fundus, "-o", tmp_path / "run", *TRAINING]
    done = subprocess.run(
        [sys.executable, "-c", TWICE, *map(str, line)],
        capture_output=True,
        env=environment(system, STOP_AT="3"),
        timeout=240,
    )
    assert done.stdout.split() == [b"143", b"0"], done.stderr.decode()
    assert b"stopped by SIGTERM after step" in done.stderr
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in finished.iterdir()}
    for name in ("last.safetensors", "best.safetensors", "init.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()


@contextmanager
def half_way(system: str, folder: Path, content: bytes) -> Iterator["subprocess.Popen[bytes]"]:
    """A command that has begun to write `folder`/out and waits for the rest of its input."""
    command = [sys.executable, "-m", "wsurgery", "reset-bn", "-o", "out"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder, env=environment(system)
    )
    with process:
        process.stdin.write(content[: len(content) // 2])
        process.stdin.flush()
        while not [path for path in folder.glob(".out.*.tmp") if path.stat().st_size]:
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.01)
        yield process


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_a_file_appears_whole_or_not_at_all_and_replaces_none(system, resnet, tmp_path):
    content, folder = resnet.read_bytes(), tmp_path / "folder"
    folder.mkdir()
    with half_way(system, folder, content) as process:  # its input ends early
        process.stdin.close()
        assert b"ends early" in process.stderr.read()
        assert process.wait(60) == 1
        assert list(folder.iterdir()) == []
    with half_way(system, folder, content) as process:
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
        assert list(folder.iterdir()) == []
    with half_way(system, folder, content) as process:
        (folder / "out").write_bytes(b"theirs")
        process.stdin.write(content[len(content) // 2 :])
        process.stdin.close()
        assert (
            process.stderr.read()
            == b"wsurgery reset-bn: %b appeared meanwhile: add --force to overwrite it\n" % bytes(folder / "out")
        )
        assert process.wait(60) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"out": b"theirs"}
    command = [sys.executable, "-m", "wsurgery", "reset-bn", str(resnet), "-o", "out"]
    refused = subprocess.run(command, capture_output=True, cwd=folder, env=environment(system), timeout=60)
    assert (refused.returncode, refused.stderr) == (2, b"wsurgery reset-bn: out exists: add --force to overwrite it\n")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"out": b"theirs"}
