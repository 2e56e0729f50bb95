"""A signal ends every command at once, whatever it waits for, with its status and without a trace."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import FUNDUS, TRAINING

STATUS = {signal.SIGTERM: (143, b""), signal.SIGINT: (130, b"interrupted\n")}
OTHERS = {number: (128 + number, b"") for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)}
both = pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)


def start(words: list[object], cwd: Path, program: tuple[str, ...] = ("-m", "wsurgery")) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, *program, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )


def require_ended(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    process.send_signal(number)
    try:
        _, said = process.communicate(timeout=20)  # where it hung, it hung for ever
    finally:
        process.kill()
    status, line = (STATUS | OTHERS)[number]
    assert process.returncode == status, said.decode()
    assert said.endswith(line)
    assert said.count(b"\n") == line.count(b"\n"), said.decode()


def wait_for_reader(fifo: Path, process: "subprocess.Popen[bytes]") -> int:
    """Open a FIFO when a process reads it."""
    while True:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert process.poll() is None
            time.sleep(0.02)


@both
@pytest.mark.parametrize("line", ["show fifo", "average resnet.safetensors fifo -o out", "shuffle fifo -o out"])
def test_a_command_that_waits_for_a_named_pipe(line, number, resnet, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with start(line.split(), tmp_path) as process:
        writer = wait_for_reader(tmp_path / "fifo", process)
        if "shuffle" in line:  # in the middle of a tensor
            os.write(writer, resnet.read_bytes()[:30_000])
            time.sleep(0.3)
        require_ended(process, number)
        os.close(writer)
    assert not (tmp_path / "out").exists()


@both
def test_training_that_waits_for_its_checkpoint(number, fundus, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with start(["train", "fifo", "--data", FUNDUS, "-o", "run", *TRAINING], tmp_path) as process:
        writer = wait_for_reader(tmp_path / "fifo", process)
        require_ended(process, number)
        os.close(writer)


@both
def test_a_command_whose_thread_waits_for_a_server(number, resnet, tmp_path):
    """The header comes, and of the tensors nothing: the main thread waits for others, and so does Python at its end."""
    content, silent = resnet.read_bytes(), threading.Event()

    def serve(server: socket.socket) -> None:
        for i in range(9):
            connection, _ = server.accept()
            connection.recv(65536)
            head = "HTTP/1.1 206 Partial Content\r\nETag: x\r\nContent-Range: bytes {}/{}\r\nContent-Length: {}\r\n\r\n"
            if i == 0:
                connection.sendall(head.format("0-16383", len(content), 16384).encode() + content[:16384])
            else:
                silent.set()
            kept.append(connection)

    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        with start(["digest", f"http://127.0.0.1:{server.getsockname()[1]}/x"], tmp_path) as process:
            assert silent.wait(60)
            require_ended(process, number)


HELD = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from wsurgery import ending
from wsurgery.checkpoint import AtomicFile
from wsurgery.checkpoint.writer import StandardOutput
del os.O_TMPFILE
ending.heed_signals()
with ending.unwound(), ending.temporary_folder("held-") as folder, StandardOutput() as out, AtomicFile(Path("x")) as file:
    out.write(b"half")
    with ThreadPoolExecutor(1) as pool:
        file.write(b"half")
        assert len(os.listdir(".")) == 2
        Path("ready").write_text(str(folder))
        pool.submit(os.read, os.pipe()[0], 1).result()
"""


@pytest.mark.parametrize("number", [*STATUS, *OTHERS], ids=lambda number: number.name)
def test_what_is_half_done_is_taken_back_even_where_a_thread_never_ends(number, tmp_path):
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", HELD], cwd=tmp_path, stdout=out, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    with process:
        while not (tmp_path / "ready").exists() or not (tmp_path / "ready").read_text():
            assert process.poll() is None
            time.sleep(0.02)
        require_ended(process, number)
    assert not Path((tmp_path / "ready").read_text()).exists()
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()}.pop("out") == 0
    assert sorted(os.listdir(tmp_path)) == ["out", "ready"]


DRAWING = "synthetic:textures?n=4000&size=256"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@both
def test_processes_that_draw_images_end_too(number, tmp_path):
    with start(["data", "make", DRAWING, "-o", "made", "--threads", 2], tmp_path) as process:
        while not (children := set(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())):
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.02)
        time.sleep(0.5)
        children |= set(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        require_ended(process, number)
    for child in children:
        for _ in range(100):
            if not Path(f"/proc/{child}").exists():
                break
            time.sleep(0.05)
        assert not Path(f"/proc/{child}").exists()


EARLY = """
import os, signal, sys
module = sys.argv.pop(1)
def hook(event, arguments):
    if event == "import" and arguments[0] == module:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
from wsurgery.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "module", ["wsurgery.ending", "wsurgery.command_line", "typer", "wsurgery.commands", "wsurgery.checkpoint", "rich"]
)
def test_ctrl_c_while_modules_are_imported_shows_no_traceback(module, resnet, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", EARLY, module, "show", resnet],
        capture_output=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert done.returncode == 130, done.stderr.decode()
    assert done.stderr in (b"", b"wsurgery: interrupted\n", b"wsurgery show: interrupted\n")
