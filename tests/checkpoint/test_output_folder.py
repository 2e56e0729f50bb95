"""Folders that are written, on a disk and in a store: what others put there meanwhile, and parts that run at once."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.checkpoint.conftest import left, stored
from wsurgery.checkpoint.output_folder import open_folder_output
from wsurgery.checkpoint.shards import INDEX
from wsurgery.checkpoint.sink import write_all
from wsurgery.errors import UsageError


class Place:
    """A folder on a disk or in a store."""

    def __init__(self, folder, bucket=None):
        self.folder, self.bucket = folder, bucket

    def __call__(self, name):
        return self.folder / name if self.bucket is None else f"s3://{self.bucket.own}/nets/{name}"

    def content(self, name):
        if self.bucket is not None:
            return stored(self.bucket, f"nets/{name}")
        return self(name).read_bytes() if self(name).exists() else None

    def put(self, name, content):
        if self.bucket is None:
            self(name).write_bytes(content)
        else:
            self.bucket.pipe(f"{self.bucket.own}/nets/{name}", content)


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path):
    return Place(tmp_path, request.getfixturevalue("bucket") if request.param == "s3" else None)


def test_settings_that_appear_meanwhile_are_left_alone(place):
    given = {"index": None, "beside": {"config.json": b"ours", "LICENSE": b"ours"}, "force": False}
    with open_folder_output(place, {"a": 4}, **given) as streams:
        write_all(streams["a"], b"mine")
        place.put("config.json", b"theirs")
    assert [place.content(name) for name in ("a", "config.json", "LICENSE")] == [b"mine", b"theirs", b"ours"]
    with open_folder_output(place, {"b": 4}, **given) as streams:  # and what is there already
        write_all(streams["b"], b"mine")
    assert [place.content(name) for name in ("b", "config.json", "LICENSE")] == [b"mine", b"theirs", b"ours"]


def test_a_shard_or_an_index_that_appears_meanwhile_is_not_replaced(place):
    for shard, name in (("a", "a"), ("b", INDEX)):
        with (
            pytest.raises(UsageError, match=f"{name} appeared meanwhile"),
            open_folder_output(place, {shard: 4}, index=b"ours", beside={"LICENSE": b"x"}, force=False) as streams,
        ):
            write_all(streams[shard], b"mine")
            place.put(name, b"theirs")
        assert place.content(name) == b"theirs"


def test_parts_that_run_at_once_write_one_index_and_of_another_model_none(place):
    def part(name, index, force=False):
        return open_folder_output(place, {name: 1}, index=index, beside={}, force=force, part=True)

    with part("a", b"index") as one, part("b", b"index") as two:
        write_all(one["a"], b"1")
        write_all(two["b"], b"2")
    assert [place.content(name) for name in ("a", "b", INDEX)] == [b"1", b"2", b"index"]
    with pytest.raises(UsageError, match=f"{INDEX} is of other shards"), part("c", b"another"):
        pass
    assert [place.content(name) for name in ("c", INDEX)] == [None, b"index"]
    with part("c", b"another", force=True):
        pass
    assert place.content(INDEX) == b"another"
    if place.bucket is not None:
        assert left(place.bucket) == []


def test_a_whole_model_and_shards_do_not_stay_side_by_side_in_a_store(bucket, invoke, resnet, tmp_path):
    target = f"s3://{bucket.own}/nets/"
    invoke("push", resnet, target)
    shards = ["scale", target, "--by", 2, "--shard-size", "300kB", "-o", target]  # its own input
    done = invoke(*shards, check=False)
    assert done.exit_code == 2
    assert "would stay beside the new weights: name another folder, or add --force to remove it" in done.stderr
    invoke(*shards, "--force")
    assert stored(bucket, "nets/model.safetensors") is None
    invoke("scale", resnet, "--by", 2, "-o", tmp_path / "twice")
    assert invoke("diff", target, tmp_path / "twice", check=False).exit_code == 0
    assert invoke("push", resnet, target, check=False).exit_code == 2
    invoke("push", resnet, target, "--force")
    assert stored(bucket, f"nets/{INDEX}") is None
    assert invoke("diff", target, resnet, check=False).exit_code == 0
    invoke(*shards, "--force")  # and of shards the index only
    assert left(bucket) == []


def test_a_part_does_not_replace_the_index_of_another_model(resnet, wsurgery, tmp_path):
    given = ["scale", resnet, "--by", 2, "--shard-size", "20kB", "-o", f"{tmp_path}/out/", "--part"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / INDEX).write_bytes(b"theirs")
    done = wsurgery(*given, "1/2", check=False)
    assert done.returncode == 2
    assert b"is of other shards: name another folder, or add --force to overwrite it" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [INDEX]
    wsurgery(*given, "1/2", "--force")
    wsurgery(*given, "2/2")
    names = set(json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"].values())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {INDEX, *names}
    save_file({"x": np.ones(3)}, tmp_path / "other.safetensors")
    assert wsurgery("scale", tmp_path / "other.safetensors", *given[2:], "1/2", check=False).returncode == 2
