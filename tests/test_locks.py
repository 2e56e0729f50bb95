"""Locks: one holder at a time, whoever ends how; and file systems that have none."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from wsurgery.errors import WsurgeryError
from wsurgery.locks import Busy, locked

HOLD = """import sys, time
from pathlib import Path
from wsurgery.locks import locked
with locked(Path(sys.argv[1]), wait=True):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(path, seconds=60.0):
    process = subprocess.Popen([sys.executable, "-c", HOLD, path, str(seconds)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_lock_is_one_processs_and_says_whose_and_dies_with_it(tmp_path):
    path = tmp_path / "lock"
    with holder(path) as process:
        with pytest.raises(Busy, match=f"is held by process {process.pid} on .* since"), locked(path, wait=False):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.exists()
    with locked(path, wait=False) as held:
        assert held
        assert f"process {os.getpid()} ".encode() in path.read_bytes()
    assert not path.exists()


def test_who_waits_gets_it_then(tmp_path):
    began = time.monotonic()
    with holder(tmp_path / "lock", 0.5), locked(tmp_path / "lock", wait=True):
        assert time.monotonic() - began > 0.4


def test_many_who_wait_and_remove_the_file_are_one_after_the_other(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(5):
            with locked(tmp_path / "lock", wait=True):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 30


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path / "lock", wait=False) as one, locked(tmp_path / "lock", wait=True) as two:
        assert (one, two) == (False, False)


def test_no_link_is_written_through(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(WsurgeryError, match="symbolic link"), locked(tmp_path / "lock", wait=False):
        pass
    assert (tmp_path / "precious").read_text() == "mine"
