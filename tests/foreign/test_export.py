"""The way back: torch and numpy read what was written, number by number."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    torch.bool, torch.complex64, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


@pytest.fixture
def tensors(tmp_path):
    base = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0)) * 3
    made = {str(dtype): base.abs().to(dtype) for dtype in DTYPES}
    made |= {"scalar": torch.tensor(7), "empty": torch.zeros(0, 3), "one": torch.ones(1, 5, 1), "Ü.weight": base[0]}
    save_file(made, tmp_path / "x.safetensors")
    return made


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin"])
def test_torch_reads_every_tensor_and_the_round_trip_is_exact(ending, tensors, invoke, tmp_path):
    done = invoke("convert", tmp_path / "x.safetensors", "-o", tmp_path / f"y{ending}")
    assert "has no place for the history" in done.stderr
    for mapped in (False, True):
        found = torch.load(tmp_path / f"y{ending}", weights_only=True, mmap=mapped)
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
            assert found[name].is_contiguous()
            assert found[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
    invoke("convert", tmp_path / f"y{ending}", "-o", tmp_path / "z.safetensors")
    back = load_file(tmp_path / "z.safetensors")
    assert all(
        back[name].reshape(-1).view(torch.uint8).equal(x.reshape(-1).view(torch.uint8)) for name, x in tensors.items()
    )


def test_tied_tensors_are_one_again(invoke, tmp_path):
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    save_model(network, tmp_path / "x.safetensors")
    for ending in (".pth", ".npz"):
        invoke("convert", tmp_path / "x.safetensors", "-o", tmp_path / f"y{ending}")
    found = torch.load(tmp_path / "y.pth", weights_only=True)
    assert found["0.weight"].data_ptr() == found["1.weight"].data_ptr()
    network.load_state_dict(found)
    with np.load(tmp_path / "y.npz") as arrays:
        assert all(np.array_equal(arrays[name], value.numpy()) for name, value in network.state_dict().items())


def test_numpy_reads_what_it_has_and_the_rest_is_named(tensors, invoke, tmp_path):
    done = invoke("convert", tmp_path / "x.safetensors", "-o", tmp_path / "y.npz", check=False)
    assert done.exit_code == 1
    assert "which numpy has not: wsurgery cast it first" in done.stderr
    assert not (tmp_path / "y.npz").exists()
    known = {n: t for n, t in tensors.items() if "float8" not in n and "bfloat16" not in n}
    save_file(known, tmp_path / "x.safetensors")
    invoke("convert", tmp_path / "x.safetensors", "-o", tmp_path / "y.npz")
    with np.load(tmp_path / "y.npz") as found:
        assert set(found) == set(known)
        for name, tensor in known.items():
            np.testing.assert_array_equal(found[name], tensor.numpy(), strict=True)


def test_the_same_input_gives_the_same_bytes_and_nothing_is_overwritten(tensors, invoke, tmp_path):
    invoke("convert", tmp_path / "x.safetensors", "-o", tmp_path / "a.pth")
    first = (tmp_path / "a.pth").read_bytes()
    assert invoke("convert", tmp_path / "x.safetensors", "-o", tmp_path / "a.pth", check=False).exit_code == 2
    invoke("convert", tmp_path / "x.safetensors", "-o", tmp_path / "a.pth", "--force")
    assert (tmp_path / "a.pth").read_bytes() == first
    cut = (tmp_path / "x.safetensors").read_bytes()[:-5]
    (tmp_path / "cut.safetensors").write_bytes(cut)
    assert invoke("convert", tmp_path / "cut.safetensors", "-o", tmp_path / "b.pth", check=False).exit_code == 1
    assert not (tmp_path / "b.pth").exists()
