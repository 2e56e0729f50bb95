"""Tensors that are views with signs, and kinds that safetensors cannot hold: what torch.load reads, or a line that says it."""

from pathlib import Path

import pytest
import torch

from wsurgery.errors import WsurgeryError
from wsurgery.foreign.state_dict import open_state_dict


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request, tmp_path):
    def save(content: object) -> Path:
        path = tmp_path / "saved.pth"
        torch.save(content, path, _use_new_zipfile_serialization=request.param)
        return path

    return save


def read_all(path: Path) -> dict[str, bytes]:
    with open_state_dict(path) as state:
        return {name: bytes(state.read(name)) for name in state.tensors}


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_views_that_are_negated_or_conjugated_have_the_signs_that_torch_reads(save):
    """torch keeps the sign of such views in two bits beside the storage."""
    numbers = torch.complex(torch.tensor([[1.0, -2.0, 0.0]] * 2), torch.tensor([[3.0, 0.0, -4.0]] * 2))
    views = {
        "conj": numbers.conj(),
        "transposed": numbers.mH,
        "neg": numbers.clone().conj().imag,
        "both": torch._neg_view(numbers.conj()),
        "plain": numbers,
        "again": numbers.conj(),
        **{
            str(dtype): torch._neg_view(numbers.real.to(dtype)) for dtype in (torch.float64, torch.half, torch.bfloat16)
        },
    }
    assert all(views[name].is_neg() for name in ("neg", "both"))
    assert all(views[name].is_conj() for name in ("conj", "transposed", "both"))
    path = save(views)
    found = read_all(path)
    for name, tensor in torch.load(path, weights_only=True).items():
        assert found[name] == as_bytes(tensor.resolve_conj().resolve_neg()), name
    with open_state_dict(path) as state:
        assert state.aliases == {"conj": "again"}


# What safetensors cannot hold, by the kind that is named, and what makes of it what safetensors can hold.
UNHELD = {
    "sparse": (lambda x: x.to_sparse(), ".to_dense()"),
    "complex128": (lambda x: x.to(torch.complex128), ".to(torch.complex64)"),
    "qint8": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), ".dequantize()"),
    "quint8": (lambda x: torch.quantize_per_channel(x, torch.ones(4), torch.zeros(4), 0, torch.quint8), ".dequantize()"),
    "quint4x2": (lambda x: torch.quantize_per_channel(x, torch.ones(4), torch.zeros(4), 0, torch.quint4x2), ".dequantize()"),
    "qint32": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint32), ".dequantize()"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's, of quantised tensors
@pytest.mark.parametrize("kind", UNHELD)
def test_what_safetensors_cannot_hold_is_named_with_what_helps(kind, save):
    make, remedy = UNHELD[kind]
    odd = make(numbers(4, 4))
    path = save({"a": numbers(3), "odd": odd, "z": numbers(5)})
    assert read_all(path) == {"a": as_bytes(numbers(3)), "z": as_bytes(numbers(5))}
    with open_state_dict(path) as state:
        assert state.notes == (f"left out odd ({kind}), which safetensors cannot hold: save it again, with {remedy}",)
    mended = eval(f"odd{remedy}", {"odd": odd, "torch": torch})
    assert read_all(save({"odd": mended}))["odd"] == as_bytes(mended)
    with pytest.raises(WsurgeryError, match=rf"holds no tensor that can be kept: left out odd \({kind}\)"):
        read_all(save({"state_dict": {"odd": odd}}))
    network = torch.nn.Linear(2, 2)
    network.register_buffer("odd", odd)
    with open_state_dict(save(network)) as state:
        assert list(state.tensors) == ["weight", "bias"]
        assert "left out odd" in state.notes[-1]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_of_other_kinds_are_named_too(save):
    jagged = torch.nested.nested_tensor([torch.ones(2, 2), torch.ones(3, 2)], layout=torch.jagged)
    path = save({"w": numbers(3), "meta": torch.empty(3, device="meta"), "jagged": jagged})
    with open_state_dict(path) as state:
        assert list(state.tensors) == ["w"]
        assert [note.partition(",")[0] for note in state.notes] == [
            "left out meta (meta_tensor_no_storage)",
            "left out jagged (torch.nested._internal.nested_tensor.NestedTensor)",
        ]
