"""Checkpoints written to S3: the bytes of a file, whole or not at all, whatever happens on the way; against moto's server."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.checkpoint.conftest import SECRET, left, stored
from tests.conftest import peak_memory
from wsurgery.checkpoint import open_checkpoint, upload
from wsurgery.checkpoint.header import TensorInfo
from wsurgery.checkpoint.shards import INDEX, format_index
from wsurgery.commands.push import _copy
from wsurgery.ending import half_done
from wsurgery.errors import UsageError, WsurgeryError

slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """More than three parts, in tensors that do not end with them."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    rng = np.random.default_rng(0)
    save_file({f"l{i}.weight": rng.normal(size=(1000, 1250 + i)).astype("f4") for i in range(12)}, path)
    return path


def sharded(folder: Path, count: int) -> list[Path]:
    """Write a folder of shards of a tensor each, and return them."""
    folder.mkdir()
    shards = {f"model-{i:05d}-of-{count:05d}.safetensors": f"l{i}.weight" for i in range(1, count + 1)}
    for file, name in shards.items():
        save_file({name: np.ones(10, np.float32)}, folder / file)
    infos = {file: [TensorInfo(name, "F32", (10,), 0, 40)] for file, name in shards.items()}
    (folder / INDEX).write_bytes(format_index(infos))
    return [folder / file for file in shards]


@pytest.mark.parametrize("size", ["small", "large"])
def test_an_object_has_the_bytes_of_the_file(size, bucket, large, resnet, wsurgery, tmp_path):
    source = large if size == "large" else resnet
    wsurgery("meanvar", source, "--seed", 3, "-o", tmp_path / "file")
    wsurgery("meanvar", source, "--seed", 3, "-o", f"s3://{bucket.own}/nets/a")
    assert stored(bucket, "nets/a") == (tmp_path / "file").read_bytes()
    assert wsurgery("replay", tmp_path / "file", "--inputs", source.parent).stdout == b"identical\n"
    assert left(bucket) == []


@pytest.mark.slow
def test_what_comes_through_a_pipe_goes_on_to_the_store(bucket, large, shell, tmp_path):
    line = f"wsurgery scale {large} --by 2 | wsurgery shuffle --seed 1"
    done = shell(f"{line} -o s3://{bucket.own}/nets/a && {line} > file", tmp_path)
    assert done.returncode == 0, done.stderr
    assert stored(bucket, "nets/a") == (tmp_path / "file").read_bytes()


@pytest.mark.slow
def test_parts_of_a_folder_make_the_whole_and_a_store_feeds_a_store(bucket, resnet, wsurgery, tmp_path):
    (tmp_path / "model").mkdir()
    save_file({"x": np.ones((3, 1000), np.float32)}, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "LICENSE").write_text("mine")
    given = ["shuffle", resnet, "--seed", 1, "--shard-size", "20kB"]
    wsurgery(*given, "-o", f"{tmp_path}/whole/")
    for k in (2, 1):
        wsurgery(*given, "-o", f"s3://{bucket.own}/nets/", "--part", f"{k}/2")
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {Path(key).name for key in bucket.ls(f"{bucket.own}/nets")} == names
    assert len(names) > 3
    for name in names:
        assert stored(bucket, f"nets/{name}") == (tmp_path / "whole" / name).read_bytes()
    wsurgery("scale", f"s3://{bucket.own}/nets/", "--by", 2, "-o", f"s3://{bucket.own}/twice/")
    wsurgery("scale", tmp_path / "whole", "--by", 2, "-o", f"{tmp_path}/twice/")
    digests = [wsurgery("digest", place).stdout for place in (tmp_path / "twice", f"s3://{bucket.own}/twice/")]
    assert digests[0] == digests[1]
    wsurgery("scale", tmp_path / "model", "--by", 2, "-o", f"s3://{bucket.own}/licensed/")
    assert stored(bucket, "licensed/LICENSE") == b"mine"


def test_a_part_is_not_written_into_a_folder_that_it_reads(bucket, invoke, tmp_path):
    sharded(tmp_path / "in", 2)
    invoke("push", tmp_path / "in", f"s3://{bucket.own}/nets/")
    before = {name: stored(bucket, f"nets/{name}") for name in (INDEX, "model-00001-of-00002.safetensors")}
    for source in ("", "model-00001-of-00002.safetensors"):
        given = ["scale", f"s3://{bucket.own}/nets/{source}", "--by", 2, "--part", "1/2", "--force"]
        done = invoke(*given, "-o", f"s3://{bucket.own}/nets/", check=False)
        assert done.exit_code == 2
        assert "is read by all parts, and --part would write beside it, or over it: name another folder" in done.stderr
    assert {name: stored(bucket, f"nets/{name}") for name in before} == before
    invoke(*given, "-o", f"s3://{bucket.own}/other/")


def test_what_is_there_is_replaced_only_with_force(bucket, resnet, wsurgery):
    address = f"s3://{bucket.own}/nets/a"
    wsurgery("scale", resnet, "--by", 2, "-o", address)
    first = stored(bucket, "nets/a")
    refused = wsurgery("scale", resnet, "--by", 3, "-o", address, check=False)
    assert (refused.returncode, refused.stderr.decode()) == (
        2,
        f"wsurgery scale: {address} exists: add --force to overwrite it\n",
    )
    assert stored(bucket, "nets/a") == first
    wsurgery("scale", resnet, "--by", 3, "-o", address, "--force")
    assert stored(bucket, "nets/a") not in (first, None)


@pytest.mark.parametrize("size", [1000, 20_000_000])
def test_of_two_writers_the_second_is_refused_unless_it_replaces(size, bucket):
    address = f"s3://{bucket.own}/nets/a"
    with pytest.raises(UsageError, match="appeared meanwhile: add --force"), upload.Upload(address, size=size) as mine:
        mine.write(b"a" * size)
        bucket.pipe(f"{bucket.own}/nets/a", b"theirs")
    assert stored(bucket, "nets/a") == b"theirs"
    assert left(bucket) == []
    with upload.Upload(address, size=size, force=True) as mine:
        mine.write(b"a" * size)
    assert stored(bucket, "nets/a") == b"a" * size


@pytest.mark.parametrize(
    "what", ["partNumber=[12]&", r"POST /\S*uploadId=", *(slow(each) for each in (r"POST /\S*uploads", "HEAD"))]
)
@pytest.mark.parametrize("fault", ["reset", "lost", 429, *(slow(each) for each in ("slow", 500, 503))])
def test_what_fails_for_a_while_is_done_again_and_no_byte_twice(fault, what, bucket, proxy):
    proxy.set(fault, what, 1 if fault == "slow" else 2)
    content = np.random.default_rng(1).bytes(20_000_000)
    with upload.Upload(f"s3://{bucket.own}/nets/a", size=len(content)) as mine:
        for start in range(0, len(content), 3_000_001):
            mine.write(content[start : start + 3_000_001])
        mine.write_again(b"header")
    assert proxy.times <= 0
    assert stored(bucket, "nets/a") == b"header" + content[6:]
    proxy.set(None, "", 0)
    if not (fault == "lost" and "uploads" in what):  # begun, and the answer lost: nobody knows its number
        assert left(bucket) == []


def test_credentials_that_expire_end_it_in_a_line_and_nothing_is_left(bucket, proxy, large, wsurgery):
    proxy.set(403, "partNumber=2&", 100)
    done = wsurgery("scale", large, "--by", 2, "-o", f"s3://{bucket.own}/nets/a", check=False)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"wsurgery scale: s3://{bucket.own}/nets/a: your credentials have expired: renew them: check AWS_PROFILE or "
        "AWS_ACCESS_KEY_ID\n"
    )
    proxy.set(None, "", 0)
    assert stored(bucket, "nets/a") is None
    assert left(bucket) == []


def test_where_the_parts_cannot_be_taken_back_it_is_said_how(bucket, proxy, large, wsurgery):
    proxy.set(403, "partNumber=2&|DELETE", 100)
    done = wsurgery("scale", large, "--by", 2, "-o", f"s3://{bucket.own}/nets/a", check=False)
    assert done.returncode == 1
    assert done.stderr.endswith(
        f"; parts lie there, which `wsurgery push --clean s3://{bucket.own}/nets/a` removes\n".encode()
    )
    proxy.set(None, "", 0)
    wsurgery("push", "--clean", f"s3://{bucket.own}/nets/")
    assert left(bucket) == []


def begun(stack: ExitStack, bucket, count: int) -> list[upload.Upload]:
    """Begin uploads, each with a part in the store."""
    uploads = []
    for i in range(count):
        uploads.append(stack.enter_context(upload.Upload(f"s3://{bucket.own}/nets/{i}", size=1000)))
        uploads[-1].write(b"a" * 1000)
        uploads[-1].settle()
    return uploads


def test_all_uploads_are_taken_back_at_once(bucket, proxy):
    with pytest.raises(UsageError, match="enough"), ExitStack() as stack:
        begun(stack, bucket, 3)
        proxy.set("together", "DELETE", 3)
        raise UsageError("enough")
    assert left(bucket) == []


def test_who_is_ended_while_an_upload_is_taken_back_takes_it_back(bucket, proxy):
    def take_back():
        for each in list(half_done.values()):
            each()

    with pytest.raises(UsageError), ExitStack() as stack:
        begun(stack, bucket, 1)
        proxy.set("slow", "DELETE", 1)
        first = threading.Thread(target=take_back)
        first.start()
        while not any(line.startswith("DELETE") for line in proxy.seen):
            time.sleep(0.01)
        take_back()
        assert left(bucket) == []
        first.join()
        raise UsageError


def test_of_two_writers_of_the_same_both_have_written_it(bucket):
    address, content = f"s3://{bucket.own}/nets/a", b"a" * 20_000_000
    with upload.Upload(address, size=len(content)) as one, upload.Upload(address, size=len(content)) as two:
        one.write(content)
        two.write(content)
    assert stored(bucket, "nets/a") == content
    assert left(bucket) == []


def test_an_upload_that_ends_while_others_are_removed_is_no_error(bucket):
    with pytest.raises(UsageError, match="enough"), ExitStack() as stack:
        begun(stack, bucket, 2)
        found = left(bucket)
        assert [upload.remove(each) for each in (found[0], *found)] == [True, False, True]
        assert left(bucket) == []
        raise UsageError("enough")


@pytest.mark.parametrize("size", [0, 1, 80_000_000_000, 5 << 40])
def test_parts_are_as_many_as_a_store_takes_and_no_larger_than_that_needs(size, bucket):
    """https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html: 10,000 of 5 MiB to 5 GiB, of an object of 5 TiB."""
    part = upload.Upload(f"s3://{bucket.own}/large", size=size)._part
    assert 5 << 20 <= part <= 5 << 30
    assert -(-size // part) <= 10_000
    assert part <= max(16 << 20, size // 9_000 + (1 << 20))


def test_who_loses_an_upload_to_somebody_who_cleans_is_told_so(bucket, proxy):
    proxy.set((404, "NoSuchUpload"), "partNumber=2&", 100)  # as S3 answers, and moto by a status of 500
    with (
        pytest.raises(FileNotFoundError, match="its upload was removed while it went on, by `push --clean`"),
        upload.Upload(f"s3://{bucket.own}/nets/a", size=0) as mine,
    ):
        mine.write(bytes(40 << 20))
    assert bucket.find(f"{bucket.own}/") == []


@pytest.mark.parametrize("fault", [429, (429, "SlowDown"), 503])
def test_one_of_us_asks_again_and_not_both(fault, bucket, proxy, monkeypatch):
    monkeypatch.setattr(upload, "ATTEMPTS", 3)
    proxy.set(fault, "partNumber", 100)
    with pytest.raises(OSError, match="nets/0"), ExitStack() as stack:
        begun(stack, bucket, 1)
    assert sum("partNumber" in line for line in proxy.seen) == 3


def test_a_writer_without_credentials_is_told_to_set_them(bucket, resnet, wsurgery, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    address = f"s3://{bucket.own}/a"
    done = wsurgery("push", resnet, address, check=False)
    assert done.stderr.decode() == (
        f"wsurgery push: {address}: Unable to locate credentials: set AWS_PROFILE or AWS_ACCESS_KEY_ID\n"
    )
    assert b"FSSPEC_S3_ANON=true" in wsurgery("show", address, check=False).stderr


def test_a_password_in_the_address_of_a_store_is_not_shown():
    error = upload.as_os_error(
        ValueError(f'Could not connect to "http://me:{SECRET}@127.0.0.1:1/b"'), "s3://b/x", writing=True
    )
    assert SECRET not in str(error)
    assert "127.0.0.1:1" in str(error)


def test_push_of_a_folder_says_what_is_not_written(wsurgery, tmp_path):
    (folder := tmp_path / "in").mkdir()
    save_file({"x": np.ones(3)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    done = wsurgery("push", folder, "gs://bucket/nets/", check=False)
    assert done.returncode == 2
    assert b"gs:// is not written: name a file, a folder (DIR/), or an s3:// or hf:// address" in done.stderr


def test_an_input_that_ends_early_leaves_nothing(bucket, large, wsurgery):
    content = large.read_bytes()[:45_000_000]
    done = wsurgery("scale", "--by", 2, "-o", f"s3://{bucket.own}/nets/a", stdin=content, check=False)
    assert done.returncode == 1
    assert b"ends early" in done.stderr
    assert stored(bucket, "nets/a") is None
    assert left(bucket) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_whoever_is_ended_leaves_nothing_to_be_seen(number, bucket, large, wsurgery):
    address = f"s3://{bucket.own}/nets/a"
    command = [sys.executable, "-m", "wsurgery", "scale", "--by", "2", "-o", address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(large.read_bytes()[:45_000_000])
        process.stdin.flush()
        while not left(bucket):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        said = process.stderr.read()
    assert stored(bucket, "nets/a") is None
    if number == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
        assert b"Traceback" not in said
        assert left(bucket) == []
        return
    (lost,) = left(bucket)
    found = json.loads(wsurgery("push", "--clean", f"s3://{bucket.own}/nets/", "--json").stdout)
    assert found == {"removed": [lost._asdict()]}
    assert left(bucket) == []
    assert b"no unfinished upload" in wsurgery("push", "--clean", address).stderr


@pytest.mark.parametrize("key", ["nets/it's a", "a" * 300])
def test_who_is_ended_while_the_store_is_silent_is_told_what_lies_there(
    key, bucket, proxy, large, wsurgery, shell, tmp_path
):
    command = [sys.executable, "-m", "wsurgery", "scale", "--by", "2", "-o", f"s3://{bucket.own}/{key}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(large.read_bytes()[:45_000_000])
        process.stdin.flush()
        while not upload.unfinished(f"s3://{bucket.own}/"):
            assert process.poll() is None
            time.sleep(0.05)
        proxy.set("silent", "DELETE", 100)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read().decode()
    assert process.returncode == 128 + signal.SIGTERM
    proxy.set(None, "", 0)
    (line,) = re.findall(
        "^wsurgery: .*: parts lie there, which `(wsurgery push --clean .*)` removes$", said, re.MULTILINE
    )
    assert shell(line, tmp_path).returncode == 0  # as it is typed
    assert upload.unfinished(f"s3://{bucket.own}/") == []


def test_a_whole_bucket_is_cleaned(bucket, wsurgery):
    with pytest.raises(UsageError), ExitStack() as stack:
        begun(stack, bucket, 1)
        assert b"removed an upload of" in wsurgery("push", "--clean", f"s3://{bucket.own}/").stderr
        assert left(bucket) == []
        raise UsageError


def test_what_goes_on_after_its_last_tensor_is_not_pushed(bucket, resnet, wsurgery):
    content = resnet.read_bytes() + b"more"
    for address in (f"s3://{bucket.own}/nets/a", f"s3://{bucket.own}/nets/folder/"):
        done = wsurgery("push", "-", address, stdin=content, check=False)
        assert (done.returncode, done.stderr) == (
            1,
            b"wsurgery push: standard input goes on after its last tensor\n",
        )
    assert bucket.find(f"{bucket.own}/") == []
    assert left(bucket) == []


@pytest.mark.parametrize("kind", ["file", "shards", "folder"])
def test_what_is_changed_while_it_is_read_is_not_pushed(kind, bucket, resnet, tmp_path, monkeypatch):
    read, target = resnet, f"s3://{bucket.own}/nets/"
    if kind != "file":
        read = sharded(tmp_path / "in", 2)[-1]
    own = upload.Upload.write

    def late(self, data):
        written = own(self, data)
        os.utime(read, (1, 1))
        return written

    monkeypatch.setattr(upload.Upload, "write", late)
    with (
        pytest.raises(WsurgeryError, match=r"was changed while it was read|has changed since it was opened"),
        open_checkpoint(resnet if kind == "file" else tmp_path / "in") as checkpoint,
    ):
        _copy(checkpoint, target if kind == "folder" else f"{target}a", force=False)
    assert bucket.find(f"{bucket.own}/") == []
    assert left(bucket) == []


def test_a_folder_of_one_shard_is_pushed_with_its_index(bucket, wsurgery, tmp_path):
    sharded(tmp_path / "in", 1)
    wsurgery("push", tmp_path / "in", f"s3://{bucket.own}/nets/")
    for path in (tmp_path / "in").iterdir():
        assert stored(bucket, f"nets/{path.name}") == path.read_bytes()
    digests = [wsurgery("digest", place).stdout for place in (tmp_path / "in", f"s3://{bucket.own}/nets/")]
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_push_copies_as_it_is(bucket, resnet, wsurgery, shell, tmp_path):
    wsurgery("push", resnet, f"s3://{bucket.own}/nets/a")
    assert stored(bucket, "nets/a") == resnet.read_bytes()
    wsurgery("meanvar", resnet, "--shard-size", "20kB", "-o", f"{tmp_path}/shards/")
    (tmp_path / "shards" / "config.json").write_text("{}")
    shown = json.loads(wsurgery("push", tmp_path / "shards", f"s3://{bucket.own}/nets/folder/", "--json").stdout)
    names = {path.name for path in (tmp_path / "shards").iterdir()}
    assert {Path(name).name for name in shown["written"]} == names
    for name in names:
        assert stored(bucket, f"nets/folder/{name}") == (tmp_path / "shards" / name).read_bytes()
    again = wsurgery("push", f"s3://{bucket.own}/nets/a", f"s3://{bucket.own}/nets/a", check=False)
    assert b"exists: add --force" in again.stderr
    assert shell(f"wsurgery push {resnet} elsewhere", tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://nowhere-at-all/x", "s3://nowhere-at-all/x: not found: check the address"),
        ("s3://bucket", "write it as s3://bucket/name"),
        (f"s3://KEY:{SECRET}@bucket/x", "with no key of yours in it"),
        ("gs://bucket/x", "gs:// is not written: name a file, a folder (DIR/), or an s3:// or hf:// address"),
        ("https://host/x", "https:// is not written"),
    ],
)
def test_an_address_that_is_none_is_one_line_without_secrets(address, words, bucket, resnet, wsurgery):
    done = wsurgery("scale", resnet, "--by", 2, "-o", address, check=False)
    assert done.returncode in (1, 2)
    assert words in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert SECRET.encode() not in done.stderr


def test_a_version_of_an_object_is_refused_and_not_taken_for_another(bucket, resnet, invoke):
    address = f"s3://{bucket.own}/nets/a"
    invoke("push", resnet, address)
    old = f"{address}?versionId=OLD"
    for given in (
        ["show", old],
        ["show", f"{address}/?versionId=OLD"],
        ["push", resnet, old],
        ["push", "--clean", old],
    ):
        done = invoke(*given, check=False)
        assert done.exit_code == 2
        assert (
            "?versionId=OLD: versions of an object have no address here: copy that one to a name of its own"
            in done.stderr
        )
    assert bucket.find(f"{bucket.own}/") == [f"{bucket.own}/nets/a"]


@pytest.mark.parametrize("command", [["convert"], ["scale", "--by", 2], ["push"]])
@pytest.mark.parametrize("address", ["s3://bucket/a.pth", "s3://bucket/a.npz", "hf://org/net/a.npz"])
def test_safetensors_go_to_no_store_under_the_name_of_another_format(command, address, resnet, invoke):
    done = invoke(*command, resnet, *([address] if command == ["push"] else ["-o", address]), check=False)
    assert done.exit_code == 2
    assert f"wsurgery {command[0]}: {address}" in done.stderr
    assert "end its name in .safetensors" in done.stderr


def test_nothing_of_the_credentials_is_recorded(bucket, resnet, wsurgery):
    wsurgery("scale", resnet, "--by", 2, "-o", f"s3://{bucket.own}/nets/a")
    wsurgery("scale", f"s3://{bucket.own}/nets/a", "--by", 2, "-o", f"s3://{bucket.own}/nets/b")
    content = stored(bucket, "nets/b")
    assert SECRET.encode() not in content
    assert b"127.0.0.1" not in content


def test_shards_wait_in_the_store_and_not_here(bucket):
    contents = {f"nets/{size}": bytes([size % 251]) * size for size in (1_000, 3_000_000, 20_000_000)}
    with ExitStack() as stack:
        for key, content in contents.items():
            one = stack.enter_context(upload.Upload(f"s3://{bucket.own}/{key}", size=len(content)))
            one.write(content)
            one.write_again(b"header")
            one.settle()
        assert {each.url for each in left(bucket)} == {f"s3://{bucket.own}/{key}" for key in contents}
        assert bucket.find(f"{bucket.own}/") == []
    for key, content in contents.items():
        assert stored(bucket, key) == b"header" + content[6:]
    assert left(bucket) == []


@pytest.mark.slow
@pytest.mark.parametrize("folder", [(), ("--shard-size", "10MB")])
def test_memory_is_that_of_a_few_parts(folder, bucket, tmp_path):
    peaks = []
    for count in (30, 60):  # either is more than six parts
        rng = np.random.default_rng(0)
        path = tmp_path / f"{count}"
        save_file({f"l{i}.weight": rng.normal(size=(1000, 1250)).astype("f4") for i in range(count)}, path)
        target = f"s3://{bucket.own}/nets/{count}" + "/" * bool(folder)
        peaks.append(peak_memory("scale", path, "--by", 2, *folder, "-o", target))
    assert peaks[1] < peaks[0] + 50_000  # KiB; the larger has 150 MB more
