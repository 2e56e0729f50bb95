"""A file appears whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wsurgery.checkpoint import writer
from wsurgery.checkpoint.writer import AtomicFile
from wsurgery.errors import UsageError


@pytest.fixture(params=["no name", "temporary name", "no hard links"], autouse=True)
def kind(request, monkeypatch):
    """What the system has for a file that is not whole yet: no name at all, or one of its own, which then goes or is replaced."""

    def link(*_, **__):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if request.param != "no name":
        monkeypatch.setattr(writer, "_DESCRIPTORS", "/nowhere")
    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", link)
    return request.param


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), AtomicFile(tmp_path / "x") as stream:
        stream.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(RuntimeError), AtomicFile(tmp_path / "x", force=True) as stream:
        stream.write(b"new")
        raise RuntimeError
    assert (tmp_path / "x").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("kind", ["no name"], indirect=True)
def test_kill_9_leaves_nothing(tmp_path):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom wsurgery.checkpoint.writer import AtomicFile\n"
        "with AtomicFile(Path(sys.argv[1])) as stream:\n stream.write(b'half'); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path / "x"], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_needs_force(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(UsageError, match="--force"):
        AtomicFile(tmp_path / "x")
    with AtomicFile(tmp_path / "x", force=True) as stream:
        stream.write(b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"new"}


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    with pytest.raises(UsageError, match="meanwhile"), AtomicFile(tmp_path / "x") as stream:
        stream.write(b"mine")
        (tmp_path / "x").write_bytes(b"theirs")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"theirs"}


def test_what_cannot_get_its_name_leaves_nothing(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), AtomicFile(tmp_path / "x") as stream:
        stream.write(b"new")
    assert list(tmp_path.iterdir()) == []


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with AtomicFile(tmp_path / "x") as stream:
            stream.write(b"")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_a_dash_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="- is no file"):
        AtomicFile(Path("-"))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fchmod"), reason="the system has no permissions of this kind")
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444])
def test_a_file_that_is_overwritten_keeps_its_permissions(mode, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(mode)
    with AtomicFile(path, force=True) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == mode


def test_a_link_is_followed_and_a_device_is_written(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with AtomicFile(tmp_path / "link", force=True) as stream:
        stream.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    (tmp_path / "null").symlink_to("/dev/null")
    with AtomicFile(tmp_path / "null") as stream:
        stream.write(b"gone")
    assert os.path.realpath(tmp_path / "null") == "/dev/null"
    assert not os.path.isfile("/dev/null")


@pytest.mark.parametrize("kind", ["no name"], indirect=True)
@pytest.mark.parametrize(
    "line", ["-o /dev/stdout | cat > copy", "-o >(cat > copy); until cmp copy file; do sleep 0.1; done"]
)
def test_a_pipe_without_a_name_of_its_own_is_written(line, resnet, shell):
    folder = resnet.parent
    done = shell(
        f"wsurgery scale resnet.safetensors --by 2 -o file; wsurgery scale resnet.safetensors --by 2 {line}", folder
    )
    assert done.returncode == 0, done.stderr.decode()
    assert [file.name for file in folder.iterdir() if file.name not in ("copy", "file", resnet.name)] == []
    assert (folder / "copy").stat().st_size == (folder / "file").stat().st_size


@pytest.mark.parametrize(
    "words",
    [
        pytest.param("train NET --data synthetic:fundus?n=60&size=32 --steps 1", marks=pytest.mark.slow),
        "histogram NET",
        "recipe copy meanvar",
    ],
)
def test_what_is_no_checkpoint_is_not_written_to_an_address(words, fresh, wsurgery, tmp_path):
    words = [str(fresh) if word == "NET" else word for word in words.split()]
    address = ["s3://bucket/x.png"] if words[0] == "recipe" else ["-o", "s3://bucket/x.png"]
    done = wsurgery(*words, *address, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), done.stderr
    assert b"s3://bucket/x.png is an address: name a file or a folder here" in done.stderr
    assert list(tmp_path.iterdir()) == []
