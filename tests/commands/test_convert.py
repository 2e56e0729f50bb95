"""`wsurgery convert` as a user runs it."""

import argparse
import json
import os
import sys

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.conftest import peak_memory, small_resnet
from wsurgery.models import load


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("resnet10t", num_classes=3).eval()


@pytest.fixture
def saved(tmp_path, network):
    path = tmp_path / "as downloaded.pth"
    wrapped = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 3, "args": argparse.Namespace(lr=0.1), "state_dict": wrapped, "ema": wrapped}, path)
    return path


def history(path):
    with safe_open(path, "numpy") as file:
        assert file.metadata()["format"] == "pt"
        return json.loads(file.metadata()["wsurgery"])


def test_a_wrapped_checkpoint_becomes_the_network_it_was(saved, network, wsurgery, tmp_path):
    done = wsurgery("convert", saved, "--arch", "resnet10t", "-o", tmp_path / "out.safetensors")
    assert done.stdout == b""
    said = done.stderr.decode()
    assert "took state_dict; --key takes another: ema" in said
    assert "stripped the prefix module." in said
    model = load(tmp_path / "out.safetensors")
    for name, value in network.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(images), network(images))


def test_the_history_says_the_architecture_and_the_file(saved, wsurgery, tmp_path):
    wsurgery("convert", saved, "--arch", "resnet10t", "-o", tmp_path / "out.safetensors")
    entry = history(tmp_path / "out.safetensors")
    assert entry["architecture"] == {"name": "resnet10t", "num_classes": 3, "in_chans": 3, "args": {}}
    (record,) = entry["log"]
    assert record["command"] == "convert"
    (given,) = record["inputs"]
    assert given["name"] == "as downloaded.pth"
    assert given["size"] == saved.stat().st_size
    assert len(given["blake3"]) == 64


def test_log_prints_a_line_that_makes_the_same_bytes_again(saved, shell, tmp_path):
    made = shell("wsurgery convert 'as downloaded.pth' --key ema --keep-names --arch resnet10t > made", tmp_path)
    assert made.returncode == 0, made.stderr.decode()
    printed = shell("wsurgery log made", tmp_path).stdout.decode().strip()
    assert "convert 'as downloaded.pth' --key ema --arch resnet10t --keep-names" in printed
    assert shell(f"{printed} > again", tmp_path).returncode == 0
    assert (tmp_path / "again").read_bytes() == (tmp_path / "made").read_bytes()
    assert all(name.startswith("module.") for name in load_file(tmp_path / "made"))


def test_a_result_flows_on_in_a_pipe(saved, shell, tmp_path):
    line = "wsurgery convert 'as downloaded.pth' --quiet | wsurgery meanvar | wsurgery reset-bn > out"
    done = shell(line, tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [record["command"] for record in history(tmp_path / "out")["log"]] == ["convert", "meanvar", "reset-bn"]


def test_tied_and_strided_tensors_of_every_dtype_keep_their_values_and_order(wsurgery, tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"z": base, "tied": base, "t": base.T, "h": base.half()[::2], "n": torch.tensor(7), "b": base > 3}
    torch.save(tensors, tmp_path / "x.pt")
    wsurgery("convert", tmp_path / "x.pt", "-o", tmp_path / "x.safetensors")
    for name, value in load_file(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(value, tensors[name].numpy(), strict=True)
    with safe_open(tmp_path / "x.safetensors", "numpy") as file:
        assert file.offset_keys() == list(tensors)


def test_npz_becomes_safetensors(wsurgery, tmp_path):
    np.savez(tmp_path / "x.npz", **small_resnet())
    wsurgery("convert", tmp_path / "x.npz", "-o", tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    for name, value in small_resnet().items():
        np.testing.assert_array_equal(found[name], value, strict=True)


def test_safetensors_keep_their_metadata_and_lose_the_prefix(wsurgery, tmp_path):
    prefixed = {f"model.{name}": value for name, value in small_resnet().items()}
    save_file(prefixed, tmp_path / "x.safetensors", metadata={"author": "someone else"})
    named = wsurgery("convert", tmp_path / "x.safetensors").stdout
    (tmp_path / "named").write_bytes(named)
    piped = wsurgery("convert", stdin=(tmp_path / "x.safetensors").read_bytes()).stdout
    (tmp_path / "piped").write_bytes(piped)
    for out in (tmp_path / "named", tmp_path / "piped"):
        with safe_open(out, "numpy") as file:
            assert file.metadata()["author"] == "someone else"
        for name, value in load_file(out).items():
            assert value.tobytes() == small_resnet()[name].tobytes()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["missing.pth"], 1, "missing.pth: No such file"),
        (["evil.pth"], 1, "evil.pth asks for the Python object posix.system"),
        (["cut.pth"], 1, "cut.pth is damaged"),
        (["plain.pkl"], 1, "plain.pkl is a pickle that torch.save did not write"),
        (["page.pth"], 1, "page.pth claims a header"),
        (["."], 1, "is a folder"),
        (["as downloaded.pth", "--key", "teacher"], 2, "under 'teacher': state_dict, ema"),
        ([], 2, "no input"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(arguments, status, words, saved, wsurgery, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"state_dict": {"w": torch.ones(2)}, "evil": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "cut.pth").write_bytes(saved.read_bytes()[:-100])
    (tmp_path / "plain.pkl").write_bytes(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.")
    (tmp_path / "page.pth").write_bytes(b"<!doctype html><title>Sign in</title>")
    done = wsurgery("convert", *arguments, "-o", "out.safetensors", check=False, cwd=tmp_path)
    assert done.returncode == status
    assert words in done.stderr.decode()
    assert done.stderr.decode().count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()
    assert not (tmp_path / "ran").exists()


def test_convert_imports_no_heavy_library(saved, shell, tmp_path):
    script = (
        "import sys, runpy\ntry:\n    runpy.run_module('wsurgery', run_name='__main__')\nexcept SystemExit as end:\n"
        "    heavy = {'torch', 'timm', 'torchvision', 'scipy', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "    sys.exit(f'imports {heavy}' if heavy else end.code)"
    )
    (tmp_path / "run.py").write_text(script)
    done = shell(f"{sys.executable} run.py convert 'as downloaded.pth' -o out.safetensors", tmp_path)
    assert done.returncode == 0, done.stderr.decode()


def test_memory_is_bounded_by_the_largest_tensor(tmp_path):
    for count in (4, 24):
        torch.save({f"w{i}": torch.zeros(1024, 1024) for i in range(count)}, tmp_path / f"{count}.pth")
    small, large = (peak_memory("convert", tmp_path / f"{count}.pth", "-o", "/dev/null") for count in (4, 24))
    assert large < 1.1 * small
