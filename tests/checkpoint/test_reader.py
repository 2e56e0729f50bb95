"""Reading an open checkpoint."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import small_resnet
from wsurgery.checkpoint.opening import open_checkpoint


@pytest.mark.parametrize("form", ["file", "shards"])
def test_several_threads_may_read_one(form, resnet, wsurgery, tmp_path):
    """As TIES does, whose scan of all tensors runs beside the reading of the next ones."""
    path = resnet
    if form == "shards":
        path = tmp_path / "shards"
        wsurgery("scale", resnet, "--by", 1, "-o", f"{path}/", "--shard-size", "100kB")
    expected = {name: x.tobytes() for name, x in small_resnet().items()}
    with open_checkpoint(path) as checkpoint, ThreadPoolExecutor(4) as pool:

        def read_all(thread: int) -> bool:
            tensors = list(checkpoint.tensors.values())
            order = tensors[:: -1 if thread % 2 else 1] * 30
            return all(checkpoint.read(tensor) == expected[tensor.name] for tensor in order)

        assert all(pool.map(read_all, range(4)))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("wsurgery show nothing", "nothing is empty\n"),
        ("wsurgery show short", "short ends inside its header"),
        ("cat nothing | wsurgery show", "standard input is empty (did the command before it fail?)\n"),
        ("cat short | wsurgery show", "standard input ends inside its header"),
    ],
)
def test_what_has_no_header_is_named_and_so_is_the_likely_cause(line, said, shell, tmp_path):
    (tmp_path / "nothing").touch()
    (tmp_path / "short").write_bytes((100).to_bytes(8, "little") + b"{}")
    done = shell(line, tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"wsurgery show: {said}")


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="Linux has it")
@pytest.mark.parametrize("broken", [("copy_file_range",), ("copy_file_range", "sendfile")])
def test_a_copy_that_the_kernel_gives_up_goes_on_where_it_was(broken, tmp_path, invoke, monkeypatch):
    """File systems may refuse in the middle, and copy less than they were asked to."""
    values = {name: np.random.default_rng(i).normal(size=100_000).astype(np.float32) for i, name in enumerate("ab")}
    save_file(values, tmp_path / "a")
    for name in broken:
        real, calls = getattr(os, name), []

        def partly(*given, name=name, real=real, calls=calls):
            calls.append(name)
            if len(calls) % 3 == 0:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            if name == "copy_file_range":  # source, target, count, offset
                return real(given[0], given[1], min(given[2], 1000), given[3])
            return real(*given[:3], min(given[3], 1000))  # target, source, offset, count

        monkeypatch.setattr(os, name, partly)
    invoke("scale", tmp_path / "a", "--by", 2, "--only", "a", "-o", tmp_path / "made")
    made = load_file(tmp_path / "made")
    assert np.array_equal(made["a"], 2 * values["a"])
    assert np.array_equal(made["b"], values["b"])
