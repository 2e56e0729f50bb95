"""Real faults on real processes: full disks, signals, broken pipes. No half file, the old file intact, one line said."""

import array
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import termios
import threading
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import small_resnet

# Every surgery command; `-` is the input that faults befall, B another network of its kind.
COMMANDS = {
    "meanvar": "meanvar -",
    "shuffle": "shuffle -",
    "sample": "sample - --bn meanvar",
    "covariance": "covariance - --of space",
    "spectrum": "spectrum -",
    "reset-bn": "reset-bn -",
    "gabor": "gabor -",
    "freeze-spec": "freeze-spec - --upto conv1",
    "transfuse": "transfuse B --upto block1 --into -",
    "transfuse all": "transfuse B --upto head --into -",
    "transfuse from": "transfuse - --upto head --into B",
    "transfuse rest": "transfuse - --upto block1 --rest meanvar",
    "new-head": "new-head - --num-classes 3",
    "adapt": "adapt - --in-chans 4",
    "cast": "cast - --to bf16",
    "rename": "rename ^layer stage -",
    "drop": "drop - --blocks head",
    "keep": "keep - --upto block2",
    "scale": "scale - --by 2",
    "add-noise": "add-noise - --std 0.1",
    "low-rank": "low-rank - --rank 2",
    "prune": "prune - --sparsity 0.5",
    "prune all": "prune - --sparsity 0.5 --scope all",
    "average": "average - B",
    "average other": "average B -",
    "lerp": "lerp - B --t 0.3",
    "lerp to the end": "lerp - B --t 1",
    "merge": "merge - B --base B --method dare --except *.running_var",
    "merge ties": "merge - B --base B --method ties --except *.running_var",
    "convert": "convert - --quiet",
}
every_command = pytest.mark.parametrize("arguments", [line.split() for line in COMMANDS.values()], ids=COMMANDS)


@pytest.fixture
def folder(resnet, tmp_path):
    """`resnet.safetensors`, another network of its kind in B, and an empty `out`."""
    save_file(small_resnet(seed=1), tmp_path / "B")
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.fixture
def full(folder):
    """A folder on a disk of 64 KiB, smaller than any result."""
    path = folder / "full"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


def contents(path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def tensors(path) -> dict[str, bytes]:
    """The tensors' bytes by name, of a file or of all shards in a folder that its index names."""
    if path.is_dir():
        index = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
        return {name: tensors(path / shard)[name] for name, shard in index.items()}
    return {name: value.tobytes() for name, value in load_file(path).items()}


def reverse_order(path) -> None:
    """Write the tensors of a checkpoint in reverse order, which the reference library does not: it sorts."""
    infos, content = {}, b""
    for name, value in reversed(load_file(path).items()):
        dtype = {"float32": "F32", "int64": "I64"}[str(value.dtype)]
        end = len(content) + value.nbytes
        infos[name] = {"dtype": dtype, "shape": value.shape, "data_offsets": [len(content), end]}
        content += value.tobytes()
    header = json.dumps(infos).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)


def said(done) -> str:
    """The one line on standard error."""
    text = done.stderr if isinstance(done.stderr, str) else done.stderr.decode()
    assert text.count("\n") == 1, text
    return text


@every_command
def test_an_input_that_ends_early_leaves_no_file(arguments, folder, wsurgery):
    cut = (folder / "resnet.safetensors").read_bytes()[:-1]
    done = wsurgery(*arguments, "-o", "out/x", stdin=cut, cwd=folder, check=False)
    assert done.returncode == 1
    assert "standard input ends early" in said(done)
    assert contents(folder / "out") == {}


@every_command
def test_a_full_disk_leaves_no_file_and_the_old_one(arguments, folder, full, invoke, monkeypatch):
    monkeypatch.chdir(folder)
    arguments = ["resnet.safetensors" if word == "-" else word for word in arguments]
    (full / "old").write_bytes(b"old")
    for name, force in (("new", []), ("old", ["--force"])):
        done = invoke(*arguments, "-o", full / name, *force, check=False)
        assert done.exit_code == 1
        assert said(done).endswith(f"/full/{name}: No space left on device\n")
        assert contents(full) == {"old": b"old"}
    if arguments[0] != "convert":
        done = invoke(*arguments, "-o", f"{full}/shards/", "--shard-size", "20kB", check=False)
        assert done.exit_code == 1
        assert "No space left on device" in said(done)
        assert contents(full) == {"old": b"old"}


def test_a_full_disk_behind_standard_output_takes_back_what_was_written(full, shell, folder):
    for line, kept in (
        ("wsurgery meanvar resnet.safetensors > full/x", b""),
        ("(echo first; wsurgery meanvar resnet.safetensors) > full/x", b"first\n"),
        ("echo before > full/x; wsurgery meanvar resnet.safetensors >> full/x", b"before\n"),
        ("wsurgery freeze-spec --upto conv1 resnet.safetensors > full/x", b""),  # copied inside the kernel
    ):
        done = shell(line, folder)
        assert done.returncode == 1
        assert said(done).endswith("standard output: No space left on device\n")
        assert contents(full) == {"x": kept}


@pytest.mark.parametrize(
    "line",
    ["wsurgery shuffle resnet.safetensors -o /dev/full", "wsurgery keep resnet.safetensors --upto head > /dev/full"],
)
def test_a_full_device_is_an_error(line, shell, folder):
    done = shell(line, folder)
    assert done.returncode == 1
    assert "No space left on device" in said(done)
    assert not os.path.isfile("/dev/full")


def test_a_limit_on_file_sizes_is_a_full_disk(shell, folder):
    done = shell("ulimit -f 64; wsurgery meanvar resnet.safetensors -o out/x", folder)
    assert done.returncode == 1
    assert said(done).endswith("/out/x: File too large\n")
    assert contents(folder / "out") == {}


def test_a_folder_that_cannot_be_written_is_one_line(full, wsurgery, resnet):
    (full / "old").write_bytes(b"old")
    subprocess.run(["mount", "-o", "remount,ro", full], check=True)
    for output in ("new", "old", "shards/"):
        done = wsurgery("meanvar", resnet, "-o", f"{full}/{output}", "--force", check=False)
        assert done.returncode == 1
        assert said(done).endswith(f"/full/{output.rstrip('/')}: Read-only file system\n")
    assert contents(full) == {"old": b"old"}


def test_a_missing_folder_is_one_line(wsurgery, resnet, folder):
    done = wsurgery("meanvar", resnet, "-o", folder / "missing" / "x", check=False)
    assert done.returncode == 1
    assert said(done).endswith("/missing/x: No such file or directory\n")


def test_too_little_memory_is_one_line_and_no_file(tmp_path):
    size = 300 << 20
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with (tmp_path / "x").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + size)
    done = subprocess.run(
        [sys.executable, "-m", "wsurgery", "scale", "x", "--by", "2", "--threads", "1", "-o", "y"],
        capture_output=True,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (500 << 20, 500 << 20)),
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert said(done) == "wsurgery scale: out of memory\n"
    assert sorted(os.listdir(tmp_path)) == ["x"]


def feed(process, content: bytes) -> None:
    """Write to a process and wait until it has read all of it."""
    pipe = process.stdin
    pipe.write(content)
    waiting, deadline = array.array("i", [1]), time.monotonic() + 60
    while waiting[0]:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline, "the process does not read"
        fcntl.ioctl(pipe, termios.FIONREAD, waiting)
        time.sleep(0.01)


MOMENTS = {"inside the header": 100, "in the middle": 0.5, "before the last byte": -1, "waiting for the end": None}


@pytest.mark.parametrize(
    ("moment", "number"),
    [(moment, signal.SIGKILL) for moment in MOMENTS.values()] + [(0.5, signal.SIGTERM), (0.5, signal.SIGINT)],
    ids=[f"{moment}-SIGKILL" for moment in MOMENTS] + ["in the middle-SIGTERM", "in the middle-SIGINT"],
)
def test_a_killed_command_leaves_nothing_and_the_old_output_intact(moment, number, folder, resnet, invoke):
    content = resnet.read_bytes()
    (folder / "out" / "old").write_bytes(b"old")
    invoke("shuffle", folder / "B", "-o", f"{folder}/out/shards/", "--shard-size", "300kB")
    before = contents(folder / "out")
    assert len(before) == 4
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "wsurgery", "shuffle", "-o", *words],
            bufsize=0,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        )
        for words in (["out/new"], ["out/old", "--force"], ["out/shards/", "--shard-size", "300kB", "--force"])
    ]
    for process in processes:
        feed(process, content[: int(moment * len(content)) if isinstance(moment, float) else moment])
    for process in processes:
        process.send_signal(number)
        with process:
            text = process.stderr.read().decode()
        if number == signal.SIGINT:
            assert (process.returncode, text) == (130, "wsurgery shuffle: interrupted\n")
        else:
            assert (process.returncode, text) == (-number if number == signal.SIGKILL else 128 + number, "")
    assert contents(folder / "out") == before


def test_a_command_that_is_killed_while_it_copies_a_pipe_leaves_no_copy(folder, tmp_path_factory):
    temporary = tmp_path_factory.mktemp("tmpdir")
    with subprocess.Popen(
        [sys.executable, "-m", "wsurgery", "average", "resnet.safetensors", "-", "-o", "out/x"],
        bufsize=0,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as process:
        feed(process, (folder / "B").read_bytes()[:-1])
        process.kill()
    assert list(temporary.iterdir()) == []
    assert contents(folder / "out") == {}


@pytest.mark.parametrize(
    "command",
    [
        "freeze-spec resnet.safetensors --upto conv1",
        "convert resnet.safetensors --quiet",
        "average B resnet.safetensors",
    ],
)
def test_a_reader_that_leaves_is_an_error_in_one_line(command, shell, folder):
    done = shell(f"wsurgery {command} | head -c 100 > /dev/null", folder)
    assert done.returncode == 1
    assert "closed by its reader" in said(done)


def test_a_stream_that_is_cut_in_the_middle_of_a_pipe_fails_everything_around_the_cut(shell, folder):
    done = shell(
        "wsurgery meanvar resnet.safetensors | head -c 5000 | wsurgery reset-bn | wsurgery shuffle -o out/x;"
        " echo ${PIPESTATUS[@]}",
        folder,
    )
    assert done.stdout.split() == [b"1", b"0", b"1", b"1"]
    assert done.stderr.count(b"\n") == 3, done.stderr.decode()
    assert contents(folder / "out") == {}


@pytest.mark.parametrize("command", ["meanvar", "rename ^fc head"])
@pytest.mark.parametrize("last", [(0,), (3,), (1 << 17,)], ids=str)  # no bytes, few that go with others, many
def test_a_stream_that_goes_on_in_the_middle_of_a_pipe_leaves_no_file_behind_it(command, last, shell, folder):
    tensors = {"fc.weight": np.ones((3, 8), np.float32), "last.weight": np.ones(last, np.float32)}
    save_file(tensors, folder / "A")
    for end, statuses, left in (("echo", b"0 1 1 1", []), ("true", b"0 0 0 0", ["x"])):
        done = shell(
            f"(cat A; {end}) | wsurgery {command} | wsurgery scale --by 2 | wsurgery scale --by 2 -o out/x;"
            " echo ${PIPESTATUS[@]}",
            folder,
        )
        assert done.stdout.strip() == statuses, done.stderr.decode()
        assert list(contents(folder / "out")) == left
        assert (b"standard input goes on after its last tensor" in done.stderr) == (end == "echo")


@pytest.mark.parametrize(
    "line",
    [
        "average resnet.safetensors <(head -c 9999 B)",
        "transfuse <(head -c 9999 B) --upto head --into resnet.safetensors",
        "diff <(cat resnet.safetensors) <(head -c 9999 B)",
    ],
)
def test_a_named_pipe_that_is_cut_is_an_error_before_anything_is_written(line, shell, folder):
    done = shell(f"wsurgery {line} > out/x", folder)
    assert done.returncode == 1
    assert "ends early" in said(done)
    assert contents(folder / "out") == {"x": b""}


@pytest.mark.parametrize("kind", ["itself", "a symbolic link", "a hard link", "standard input"])
def test_the_output_may_be_the_input(kind, folder, resnet, wsurgery, invoke):
    content, link = resnet.read_bytes(), folder / "link"
    invoke("meanvar", resnet, "-o", folder / "expected")
    expected = (folder / "expected").read_bytes()
    if kind == "a symbolic link":
        link.symlink_to(resnet)
    elif kind == "a hard link":
        os.link(resnet, link)
    target = link if link.exists() else resnet
    if kind == "standard input":
        with resnet.open("rb") as stdin:
            command = [sys.executable, "-m", "wsurgery", "meanvar", "-o", resnet, "--force"]
            subprocess.run(command, stdin=stdin, check=True)
        by_pipe = wsurgery("meanvar", stdin=content).stdout
        assert resnet.read_bytes() == by_pipe
        return
    wsurgery("meanvar", resnet, "-o", target, "--force")
    assert target.read_bytes() == expected
    assert target.is_symlink() == (kind == "a symbolic link")
    assert resnet.read_bytes() == (content if kind == "a hard link" else expected)


@pytest.mark.parametrize("size", [[], ["--shard-size", "30kB"]])
def test_a_folder_of_shards_may_be_its_own_output_whatever_the_new_shards_are(size, folder, resnet, invoke):
    shards = folder / "shards"
    invoke("keep", resnet, "--upto", "head", "-o", f"{shards}/", "--shard-size", "25kB")
    count = len(list(shards.iterdir()))
    invoke("shuffle", resnet, "-o", folder / "expected")
    invoke("shuffle", shards, "-o", f"{shards}/", "--force", *size)
    assert len(list(shards.iterdir())) == count  # so that new shards bear old names
    assert tensors(shards) == tensors(folder / "expected")


def test_a_failure_in_the_last_shard_keeps_the_folder_that_is_overwritten(folder, wsurgery):
    tensors = {f"w{i}.weight": np.ones((100, 100), np.float32) for i in range(4)}
    tensors["w3.weight"][0, 0] = np.nan
    save_file(tensors, folder / "nan")
    wsurgery("keep", "nan", "--only", "*", "-o", "shards/", "--shard-size", "50kB", cwd=folder)
    before = contents(folder / "shards")
    done = wsurgery("meanvar", "shards", "-o", "shards/", "--force", check=False, cwd=folder)
    assert done.returncode == 1
    assert "w3.weight" in said(done)
    assert contents(folder / "shards") == before


def test_a_stream_can_be_written_as_shards(folder, resnet, wsurgery):
    content = resnet.read_bytes()
    whole = wsurgery("meanvar", "-o", "x", stdin=content, cwd=folder)
    assert whole.stdout == b""
    wsurgery("meanvar", "-o", "out/", "--shard-size", "25kB", stdin=content, cwd=folder)
    assert len(contents(folder / "out")) > 3
    assert tensors(folder / "out") == tensors(folder / "x")
    cut = wsurgery("meanvar", "-o", "cut/", "--shard-size", "25kB", stdin=content[:-1], cwd=folder, check=False)
    assert cut.returncode == 1
    assert contents(folder / "cut") == {}


def test_a_named_pipe_is_written_and_stays_one(folder, resnet, wsurgery):
    os.mkfifo(folder / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((folder / "pipe").read_bytes()))
    reader.start()
    wsurgery("meanvar", resnet, "-o", folder / "pipe")
    reader.join()
    assert (folder / "pipe").is_fifo()
    assert got == [wsurgery("meanvar", resnet).stdout]


@pytest.mark.parametrize(
    ("named", "piped"),
    [
        ("transfuse B --upto block1 --into A", "transfuse <(cat B) --upto block1 --into A"),
        ("transfuse B --upto block1 --into A", "transfuse - --upto block1 --into <(cat A) < <(cat B)"),
        ("lerp A B --t 0.3", "lerp <(cat A) <(cat B) --t 0.3"),
        ("diff A B --json", "diff <(cat A) <(cat B) --json"),
    ],
)
def test_every_input_may_be_a_pipe_in_an_order_of_its_own(named, piped, folder, resnet, shell):
    reverse_order(folder / "B")
    os.link(resnet, folder / "A")
    done = shell(f"wsurgery {named} > out/1 && wsurgery {piped} > out/2", folder)
    assert done.returncode == 0, done.stderr.decode()
    if "json" in named:
        assert (folder / "out" / "1").read_bytes() == (folder / "out" / "2").read_bytes()
    else:
        assert tensors(folder / "out" / "1") == tensors(folder / "out" / "2")


@pytest.mark.parametrize(
    ("source", "into"),
    [("module.", ""), ("", "backbone."), ("model.encoder.", ""), ("module.", "model."), ("encoder.", "")],
)
def test_transfuse_looks_through_a_prefix(source, into, folder, invoke):
    donor, receiver = small_resnet(seed=1), small_resnet(seed=2, classes=3)
    save_file({source + name: x for name, x in donor.items()}, folder / "donor")
    save_file({into + name: x for name, x in receiver.items()}, folder / "receiver")
    done = ["transfuse", folder / "donor", "--upto", "block1", "--into", folder / "receiver", "-o", folder / "made"]
    invoke(*done)
    made = load_file(folder / "made")
    assert set(made) == {into + name for name in receiver}
    for name, value in receiver.items():
        expected = donor[name] if name.startswith(("conv1", "bn1", "layer1")) else value
        assert made[into + name].tobytes() == expected.tobytes(), name


@pytest.mark.parametrize(("source", "into"), [(("encoder_k.", "encoder_q."), ""), (("decoder.",), "encoder.")])
def test_transfuse_does_not_guess_which_part_is_meant(source, into, folder, invoke):
    save_file({prefix + name: x for prefix in source for name, x in small_resnet().items()}, folder / "donor")
    save_file({into + name: x for name, x in small_resnet().items()}, folder / "receiver")
    arguments = ["--role", "conv", "--into", folder / "receiver", "-o", folder / "made"]
    done = invoke("transfuse", folder / "donor", *arguments, check=False)
    assert done.exit_code == 1
    assert f" {into}conv1.weight (and 3 more" in said(done)
    assert f"names like {source[0]}bn1.bias" in said(done)
    assert "wsurgery rename" in said(done)


def test_a_folder_that_vanishes_is_named_and_no_descriptor(folder, resnet):
    """The output's folder is removed while the command waits for the rest of its input."""
    content = resnet.read_bytes()
    for force in ([], ["--force"]):
        (folder / "gone").mkdir()
        with subprocess.Popen(
            [sys.executable, "-m", "wsurgery", "reset-bn", "-o", "gone/x", *force],
            bufsize=0, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder,
        ) as process:  # fmt: skip
            feed(process, content[:-1])
            (folder / "gone").rmdir()
            _, text = process.communicate(content[-1:])
        assert process.returncode == 1
        assert text.decode() == f"wsurgery reset-bn: {folder}/gone/x: No such file or directory\n"


@pytest.mark.parametrize("line", ["show - <&-", "shuffle - -o out/x <&-", "keep resnet.safetensors --upto head >&-"])
def test_a_stream_that_is_closed_is_named(line, shell, folder):
    done = shell(f"wsurgery {line}", folder)
    assert done.returncode == 1
    assert ("standard output" if ">" in line else "standard input") in said(done)
    assert contents(folder / "out") == {}


def test_the_next_command_in_a_redirection_begins_where_what_failed_began(resnet, wsurgery, tmp_path):
    (tmp_path / "cut").write_bytes(resnet.read_bytes()[:-5])
    line = f"(wsurgery scale - --by 2 < cut || wsurgery scale {resnet} --by 2) > out"
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "out").read_bytes() == wsurgery("scale", resnet, "--by", 2).stdout


@pytest.mark.parametrize("option", ["--upto", "--blocks", "--role"])
def test_a_selector_that_is_empty_is_not_everything(option, resnet, wsurgery):
    refused = wsurgery("meanvar", resnet, option, "", check=False)
    assert (refused.returncode, refused.stdout) == (2, b"")
    assert f"{option} is empty" in refused.stderr.decode()
