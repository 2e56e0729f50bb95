"""Checkpoints of any size: folders of shards as input and output, in parts, and runs that only foretell."""

import json
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import small_resnet
from wsurgery.checkpoint.shards import open_folder
from wsurgery.errors import UsageError
from wsurgery.operations.rewrite import parse_size


@pytest.fixture
def sharded(tmp_path):
    """A sharded checkpoint as the Hugging Face hub stores it."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    tensors = small_resnet()
    names = sorted(tensors)
    weight_map = {}
    for i in range(4):
        group = {name: tensors[name] for name in names[i::4]}
        save_file(group, folder / f"model-{i + 1:05d}-of-00004.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(group, f"model-{i + 1:05d}-of-00004.safetensors")
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def tensors_of(folder) -> dict[str, bytes]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == sorted(path.name for path in folder.glob("*.safetensors"))
    loaded = {}
    for path in folder.glob("*.safetensors"):
        for name, value in load_file(path).items():
            assert index["weight_map"][name] == path.name
            loaded[name] = value.tobytes()
    return loaded


@pytest.mark.parametrize("command", [["meanvar"], ["shuffle"], ["reset-bn", "--upto", "block1"], ["gabor"]])
def test_the_tensors_do_not_depend_on_sharding(command, sharded, resnet, wsurgery, tmp_path):
    wsurgery(*command, resnet, "-o", tmp_path / "whole")
    whole = {name: value.tobytes() for name, value in load_file(tmp_path / "whole").items()}
    wsurgery(*command, sharded, "-o", tmp_path / "joined")
    assert {name: value.tobytes() for name, value in load_file(tmp_path / "joined").items()} == whole
    wsurgery(*command, sharded, "-o", f"{tmp_path}/same/")
    assert tensors_of(tmp_path / "same") == whole
    wsurgery(*command, resnet, "-o", f"{tmp_path}/new/", "--shard-size", "300kB")
    assert tensors_of(tmp_path / "new") == whole
    assert len(list((tmp_path / "new").glob("*.safetensors"))) > 1


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_the_parts_together_are_the_whole_byte_for_byte(n, sharded, wsurgery, tmp_path):
    wsurgery("shuffle", sharded, "-o", f"{tmp_path}/whole/")
    for k in range(n, 0, -1):
        wsurgery("shuffle", sharded, "-o", f"{tmp_path}/parts/", "--part", f"{k}/{n}")
    whole, parts = ({path.name: path.read_bytes() for path in (tmp_path / x).iterdir()} for x in ("whole", "parts"))
    assert whole == parts


def test_shards_are_no_larger_than_asked_unless_one_tensor_is(resnet, wsurgery, tmp_path):
    wsurgery("meanvar", resnet, "-o", f"{tmp_path}/out/", "--shard-size", "20kB")
    for path in (tmp_path / "out").glob("*.safetensors"):
        sizes = [value.nbytes for value in load_file(path).values()]
        assert sum(sizes) <= 20_000 or len(sizes) == 1


def test_transfuse_reads_shards_on_either_side(sharded, resnet, wsurgery, tmp_path):
    save_file(small_resnet(seed=1), tmp_path / "into")
    from_file = wsurgery("transfuse", resnet, "--upto", "block1", "--into", tmp_path / "into", "-o", tmp_path / "1")
    assert from_file.stdout == b""
    wsurgery("transfuse", sharded, "--upto", "block1", "--into", tmp_path / "into", "-o", tmp_path / "2")
    one, two = load_file(tmp_path / "1"), load_file(tmp_path / "2")
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda m: m | {"fc.bias": "../resnet.safetensors"}, "in the folder"),
        (lambda m: m | {"fc.bias": "/etc/passwd.safetensors"}, "in the folder"),
        (lambda m: m | {"ghost": "model-00009-of-00004.safetensors"}, "lacks"),
        (lambda m: m | {"ghost": "model-00001-of-00004.safetensors"}, "ghost"),
        (lambda m: {name: file for name, file in m.items() if name != "fc.bias"}, "fc.bias"),
        (lambda m: m | {"fc.bias": 7}, "in the folder"),
    ],
)
def test_an_index_that_lies_is_one_line(break_it, words, sharded, wsurgery):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": break_it(index["weight_map"])}))
    done = wsurgery("meanvar", sharded, check=False)
    assert done.returncode == 1
    assert words in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_a_folder_is_not_overwritten_without_force_and_a_failure_leaves_no_index(sharded, wsurgery, tmp_path):
    wsurgery("meanvar", sharded, "-o", f"{tmp_path}/out/")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert wsurgery("shuffle", sharded, "-o", f"{tmp_path}/out/", check=False).returncode == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    values = load_file(sharded / "model-00003-of-00004.safetensors")
    name = next(name for name, value in values.items() if value.size > 1 and value.dtype == np.float32)
    values[name].flat[0] = np.nan
    save_file(values, sharded / "model-00003-of-00004.safetensors", metadata={"format": "pt"})
    failed = wsurgery("meanvar", sharded, "--bn", "meanvar", "-o", f"{tmp_path}/failed/", check=False)
    assert failed.returncode == 1
    assert name.encode() in failed.stderr
    assert not (tmp_path / "failed").exists()


def test_new_shards_stay_alone_in_their_folder(resnet, invoke, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("model.safetensors", "model-00001-of-00099.safetensors", "model.fp16.safetensors"):
        (out / name).write_bytes(resnet.read_bytes())
    before = sorted(path.name for path in out.iterdir())
    scale = ["scale", resnet, "--by", 2, "-o", f"{out}/", "--shard-size", "30kB"]
    done = invoke(*scale, check=False)
    assert done.exit_code == 2
    assert "model-00001-of-00099.safetensors is there, and would stay beside the new weights" in done.stderr
    assert sorted(path.name for path in out.iterdir()) == before
    invoke(*scale, "--force")
    (out / "model.fp16.safetensors").unlink()  # another model's, by its name
    assert tensors_of(out).keys() == load_file(resnet).keys()
    invoke("scale", out, "--by", 2, "-o", f"{out}/", "--shard-size", "90kB", "--force")  # its own input
    assert tensors_of(out).keys() == load_file(resnet).keys()


@pytest.mark.parametrize("edit", [["scale", "--by", 2], ["convert", "--keep-names"]])
def test_a_part_is_not_written_into_a_folder_that_it_reads(edit, sharded, resnet, invoke, tmp_path):
    """Other parts have not read it yet."""
    out = tmp_path / "out"
    shutil.copytree(sharded, out)
    (tmp_path / "link").symlink_to(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for target in (out, tmp_path / "link"):
        for size in ([], ["--shard-size", "30kB"]):
            done = invoke(*edit, out, "-o", f"{target}/", *size, "--part", "1/2", "--force", check=False)
            assert done.exit_code == 2
            assert (
                "is read by all parts, and --part would write beside it, or over it: name another folder" in done.stderr
            )
    done = invoke(*edit, resnet, "-o", f"{out}/", "--shard-size", "30kB", "--part", "1/2", "--force", check=False)
    assert "would stay beside the new weights: name another folder, or remove it first" in done.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_empty_name_is_no_folder(resnet, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, said in ((["scale", resnet, "-o", ""], "output is empty"), (["scale", "", "-o", "x"], "input is empty")):
        done = invoke(*words, "--by", 2, check=False)
        assert done.exit_code == 2
        assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [resnet.name]


def test_a_dry_run_says_what_would_change_and_writes_nothing(resnet, wsurgery, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    said = wsurgery("shuffle", resnet, "--role", "conv", "--dry-run", "-o", tmp_path / "out").stdout.decode()
    assert said.splitlines()[0].startswith("4 of 21 tensors would change")
    assert "layer2.0.conv2.weight F32 (600, 512, 1, 1)" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_stream_that_claims_a_huge_tensor_allocates_only_what_arrives(tmp_path):
    header = json.dumps({"a.weight": {"dtype": "F32", "shape": [2**36], "data_offsets": [0, 2**38]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(1000)
    limit = 1 << 30
    done = subprocess.run(
        [sys.executable, "-m", "wsurgery", "meanvar", "--threads", "1"],
        input=content,
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        env={"OPENBLAS_NUM_THREADS": "1", "PATH": ""},
    )
    assert done.returncode == 1
    assert done.stderr.decode().strip() == "wsurgery meanvar: standard input ends early, inside a.weight"


def test_a_dry_run_names_what_would_go_and_what_would_be_renamed(resnet, wsurgery):
    said = wsurgery("drop", resnet, "--only", "fc.*", "--dry-run").stdout.decode().splitlines()
    assert said[0].startswith("0 of 19 tensors would change")
    assert sorted(said[1:]) == ["  fc.bias would go", "  fc.weight would go"]
    renamed = wsurgery("rename", "^fc", "head", resnet, "--dry-run").stdout.decode()
    assert "head.bias F32 (10,) (was fc.bias)" in renamed


@pytest.mark.parametrize(
    ("words", "size"),
    [("1", 1), ("20kB", 20_000), ("20 KB", 20_000), ("1.5MB", 1_500_000), ("5G", 5 * 10**9), ("2TB", 2 * 10**12)],
)
def test_sizes_are_decimal_as_those_of_disks(words, size):
    assert parse_size(words, "--shard-size") == size


@pytest.mark.parametrize("words", ["0", "0.5", "-1", "5XB", "GB", "1e3", "9" * 400, ""])
def test_a_size_that_is_none_is_one_line(words):
    with pytest.raises(UsageError, match=r"^--shard-size [^\n]*write it as 5GB, 500MB or a number of bytes$"):
        parse_size(words, "--shard-size")


@pytest.mark.parametrize("part", ["0/3", "4/3", "1/0", "1", "/3", "1/", "-1/3", "1/x", "1.0/3", f"1/{'9' * 30}", "²/3"])
def test_a_part_that_is_none_is_refused(part, resnet, invoke, tmp_path):
    refused = invoke("scale", resnet, "--by", 2, "-o", f"{tmp_path}/out/", f"--part={part}", check=False)
    assert refused.exit_code == 2
    assert "write it as K/N, from 1/N to N/N" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_the_folder_that_one_stands_in_is_recorded_by_its_name(sharded, wsurgery):
    wsurgery("scale", ".", "--by", 2, "-o", "../dot", cwd=sharded)
    shown = json.loads(wsurgery("log", sharded.parent / "dot", "--json").stdout)
    assert shown[-1]["inputs"][0]["name"] == sharded.name


def test_a_shard_that_was_read_by_itself_is_closed_again(sharded):
    """A terabyte has more shards than a process may hold open."""
    with open_folder(sharded) as whole:
        for name, shard in whole.shards.items():
            tensor = next(each for each in whole.tensors.values() if whole.shard_of[each.name] == name)
            whole.read(tensor)
            whole.rest()
            shard.reopen()
            assert shard.read(shard.tensors[tensor.name])
            shard.rest()
            assert shard.stream.closed


def test_more_shards_than_files_that_may_be_open_are_written_where_the_limit_can_be_raised(shell, tmp_path):
    values = {f"l{i}.weight": np.full(300, i, np.float32) for i in range(150)}
    save_file(values, tmp_path / "a")
    write = "wsurgery scale a --by 2 --shard-size 1300 -o"
    done = shell(f"ulimit -Sn 128; {write} raised/", tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    made = {name: x for file in (tmp_path / "raised").glob("*.safetensors") for name, x in load_file(file).items()}
    assert all(np.array_equal(made[name], x * 2) for name, x in values.items())

    done = shell(f"ulimit -n 128; {write} parts/", tmp_path)
    assert done.returncode == 2
    assert b"150 shards are open" in done.stderr
    assert b"--part K/N" in done.stderr
    assert not (tmp_path / "parts").exists()
    done = shell(f"ulimit -n 128; for k in 1 2 3; do {write} parts/ --part $k/3 || exit; done", tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    for file in (tmp_path / "raised").iterdir():
        assert file.read_bytes() == (tmp_path / "parts" / file.name).read_bytes()
