"""`wsurgery digest`: one line that names a content."""

import hashlib
import json
import re

from safetensors.numpy import load_file, save_file

from tests.conftest import watching_imports

LINE = re.compile(rb"[0-9a-f]{64}\n")


def test_a_line_that_is_the_same_for_file_pipe_order_and_metadata(resnet, wsurgery, tmp_path):
    save_file(load_file(resnet), tmp_path / "bare", metadata={"made": "otherwise"})
    printed = wsurgery("digest", resnet).stdout
    assert LINE.fullmatch(printed)
    assert wsurgery("digest", stdin=resnet.read_bytes()).stdout == printed
    assert wsurgery("digest", tmp_path / "bare").stdout == printed
    assert wsurgery("digest", stdin=wsurgery("shuffle", resnet).stdout).stdout != printed


def test_shards_do_not_matter(resnet, wsurgery, tmp_path):
    wsurgery("freeze-spec", resnet, "--upto", "conv1", "-o", f"{tmp_path}/shards/", "--shard-size", "500KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert wsurgery("digest", tmp_path / "shards").stdout == wsurgery("digest", resnet).stdout


def test_sha256_is_that_of_the_file(resnet, wsurgery):
    assert (
        wsurgery("digest", resnet, "--sha256").stdout.decode().strip()
        == hashlib.sha256(resnet.read_bytes()).hexdigest()
    )
    refused = wsurgery("digest", "--sha256", stdin=resnet.read_bytes(), check=False)
    assert refused.returncode == 2
    assert b"sha256sum" in refused.stderr


def test_tensors_and_json_tell_which_tensor_changed(resnet, wsurgery, tmp_path):
    tensors = load_file(resnet)
    tensors["fc.bias"] = tensors["fc.bias"] + 1
    save_file(tensors, tmp_path / "x")
    a, b = (wsurgery("digest", path, "--tensors").stdout.decode().splitlines() for path in (resnet, tmp_path / "x"))
    assert [line.split()[-1] for line, other in zip(a, b, strict=True) if line != other] == ["fc.bias"]
    given = json.loads(wsurgery("digest", resnet, "--json").stdout)
    assert given["blake3"] == wsurgery("digest", resnet).stdout.decode().strip()
    assert [row["name"] for row in given["tensors"]] == sorted(tensors)
    assert [row["blake3"] for row in given["tensors"]] == [line.split()[0] for line in a]


def test_an_input_that_ends_early_has_no_digest(resnet, wsurgery):
    done = wsurgery("digest", stdin=resnet.read_bytes()[:-1], check=False)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)


def test_it_does_not_import_numpy(resnet, tmp_path, shell):
    run = watching_imports(tmp_path, ["numpy"])
    assert shell(f"{run} digest resnet.safetensors", tmp_path).returncode == 0
