"""Reading an open checkpoint."""

from concurrent.futures import ThreadPoolExecutor

import pytest

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
