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
