"""The content digest tells contents apart, and nothing else."""

import hashlib

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from wsurgery.checkpoint import TensorInfo, open_checkpoint
from wsurgery.checkpoint.digest import content_digest, file_digest, file_sha256, tensor_digests
from wsurgery.checkpoint.writer import write_checkpoint

FIELDS = st.dictionaries(
    st.text(max_size=3),
    st.tuples(st.sampled_from(["U8", "I8", "F16"]), st.lists(st.integers(0, 12), max_size=3)),
    max_size=3,
)


def digest_of(tensors: dict[str, tuple[str, list[int]]], content: bytes = b"") -> str:
    infos = {name: TensorInfo(name, dtype, tuple(shape), 0, 0) for name, (dtype, shape) in tensors.items()}
    return content_digest(infos, {name: blake3(content).hexdigest() for name in infos})


def of_file(path) -> str:
    with open_checkpoint(path) as checkpoint:
        return content_digest(checkpoint.tensors, tensor_digests(checkpoint))


@given(FIELDS, FIELDS)
def test_two_contents_have_one_digest_only_if_they_are_equal(a, b):
    assert (digest_of(a) == digest_of(b)) == (a == b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"a": ("U8", [1, 2])}, {"a": ("U8", [12])}),
        ({"aU8": ("U8", [])}, {"a": ("U8", [8])}),
        ({"a": ("U8", []), "b": ("U8", [])}, {"ab": ("U8", [])}),
        ({"a": ("U8", [2])}, {"a": ("I8", [2])}),
        ({}, {"": ("U8", [])}),
    ],
)
def test_contents_that_read_alike_when_written_one_after_another_are_told_apart(a, b):
    assert digest_of(a) != digest_of(b)


def test_order_and_metadata_do_not_matter_and_one_bit_does(resnet, tmp_path):
    with open_checkpoint(resnet) as checkpoint:
        tensors = [(tensor, bytes(checkpoint.read(tensor))) for tensor in checkpoint.tensors.values()]
    write_checkpoint(tmp_path / "reversed", tensors[::-1], {"other": "metadata"})
    assert of_file(resnet) == of_file(tmp_path / "reversed")
    tensor, data = tensors[3]
    tensors[3] = tensor, bytes([data[0] ^ 1]) + data[1:]
    write_checkpoint(tmp_path / "changed", tensors, {})
    assert of_file(resnet) != of_file(tmp_path / "changed")


def test_a_tensors_digest_is_blake3_of_its_bytes_whatever_its_size(tmp_path):
    rng = np.random.default_rng(0)
    save_file({f"w{n}": rng.integers(0, 256, n, np.uint8) for n in (0, 1, 1000, (1 << 20) + 1)}, tmp_path / "x")
    with open_checkpoint(tmp_path / "x") as checkpoint:
        found = tensor_digests(checkpoint)
    assert found == {name: blake3(value.tobytes()).hexdigest() for name, value in load_file(tmp_path / "x").items()}


def test_file_digests_are_those_of_the_bytes(tmp_path):
    content = bytes(range(256)) * 50_000  # larger than a block
    (tmp_path / "x").write_bytes(content)
    assert file_digest(tmp_path / "x") == blake3(content).hexdigest()
    assert file_sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()
