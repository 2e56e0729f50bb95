"""A file that is written to while it is read ends in an error, not in a mixture of both."""

import json
import os
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.conftest import small_resnet
from tests.test_ending import start, wait_for_reader
from wsurgery.checkpoint import open_checkpoint
from wsurgery.errors import WsurgeryError
from wsurgery.foreign.state_dict import open_state_dict
from wsurgery.similarity.files import ActivationFile


def overwrite(path) -> None:
    """Write one byte of the last tensor anew, in place."""
    before = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == before:  # a clock of some milliseconds
        with path.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"x")


@pytest.mark.parametrize(
    "line",
    ["average resnet.safetensors fifo", "lerp shards fifo --t 0.3", "average shards fifo"],
)
def test_a_command_whose_input_is_overwritten_fails_and_makes_nothing(line, resnet, tmp_path, invoke):
    invoke("keep", resnet, "--upto", "head", "-o", f"{tmp_path}/shards/", "--shard-size", "25kB")
    os.mkfifo(tmp_path / "fifo")
    with start([*line.split(), "-o", "out"], tmp_path) as process:
        writer = wait_for_reader(tmp_path / "fifo", process)
        content = resnet.read_bytes()
        os.set_blocking(writer, True)
        os.write(writer, content[:-1])  # the command has opened all of its inputs when it waits for the last byte
        for path in (resnet, *(tmp_path / "shards").glob("*.safetensors")):
            overwrite(path)
        os.write(writer, content[-1:])
        os.close(writer)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said.decode()
    assert b"change" in said
    assert said.count(b"\n") == 1
    assert not (tmp_path / "out").exists()


def test_standard_input_from_a_file_too(resnet):
    with ExitStack() as stack:
        standard_input = os.dup(0)
        stack.callback(lambda: (os.dup2(standard_input, 0), os.close(standard_input)))
        with resnet.open("rb") as stream:
            os.dup2(stream.fileno(), 0)
        checkpoint = open_checkpoint("-")
        overwrite(resnet)
        with pytest.raises(WsurgeryError, match="standard input was changed while it was read"):
            checkpoint.finish()


def test_a_file_that_is_replaced_is_still_the_one_that_was_opened(resnet, tmp_path):
    save_file(small_resnet(seed=1), tmp_path / "other")
    with open_checkpoint(resnet) as checkpoint:
        os.replace(tmp_path / "other", resnet)
        read = {name: checkpoint.read_array(name) for name in checkpoint.tensors}
    for name, value in small_resnet().items():
        assert np.array_equal(read[name], value)


def test_the_digest_in_the_record_is_of_the_file_that_was_read(resnet, tmp_path, invoke):
    """It is computed from a file of that name, which may be another one by then."""
    from wsurgery.checkpoint.provenance import History, describe_input

    save_file(small_resnet(seed=1), tmp_path / "other")
    with open_checkpoint(resnet) as checkpoint:
        described = describe_input(checkpoint, History(), flows=False)
        os.replace(tmp_path / "other", resnet)
        with pytest.raises(WsurgeryError, match="changed"):
            described["blake3"].result()


def test_a_shard_that_is_replaced_between_its_header_and_its_tensors(tmp_path):
    tensors = small_resnet()
    save_file(tensors, tmp_path / "a.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "a.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(small_resnet(seed=1), tmp_path / "other")
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(WsurgeryError, match="has changed since it was opened"):
        os.replace(tmp_path / "other", tmp_path / "a.safetensors")
        checkpoint.read_array("fc.weight")


@pytest.mark.parametrize("kind", ["pt", "npz", "folder"])
def test_a_state_dict_of_any_format(kind, tmp_path):
    source = file = tmp_path / f"x.{kind}"
    if kind == "npz":
        np.savez(file, w=np.zeros(1000, np.float32))
    else:
        if kind == "folder":
            source.mkdir()
            file = source / "pytorch_model.bin"
        torch.save({"w": torch.zeros(1000)}, file)
    with open_state_dict(source) as state:
        state.read("w")
        state.finish()
        os.utime(file, ns=(0, 0))
        with pytest.raises(WsurgeryError, match="was changed while it was read"):
            state.finish()


def test_activations(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((9, 3), np.float32))
    file = ActivationFile(tmp_path / "x.npy")
    file.finish()
    overwrite(tmp_path / "x.npy")
    with pytest.raises(WsurgeryError, match="was changed while it was read"):
        file.finish()


def test_a_named_pipe_in_a_shards_place_is_refused(resnet, tmp_path, wsurgery):
    (tmp_path / "shards").mkdir()
    os.mkfifo(tmp_path / "shards" / "a.safetensors")
    index = {"weight_map": dict.fromkeys(small_resnet(), "a.safetensors")}
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    done = wsurgery("show", tmp_path / "shards", check=False)
    assert done.returncode == 1
    assert b"a.safetensors is not a regular file\n" in done.stderr
