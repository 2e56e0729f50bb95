"""Laws of the header: what the reference library rejects is rejected; what is written is read back by it."""

import gzip
import json
import pickle

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import reference_accepts
from wsurgery.checkpoint import header as header_module
from wsurgery.checkpoint.dtypes import BITS
from wsurgery.checkpoint.header import TensorInfo, format_header, parse_header
from wsurgery.checkpoint.opening import open_checkpoint
from wsurgery.checkpoint.reader import Checkpoint
from wsurgery.errors import WsurgeryError

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "U8", "shape": [], "data_offsets": [24, 25]},
}


def file_of(header: bytes, data: bytes = bytes(25)) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def we_accept(content: bytes, folder) -> bool:
    path = folder / "x.safetensors"
    path.write_bytes(content)
    try:
        open_checkpoint(path).stream.close()
    except WsurgeryError:
        return False
    return True


def changed(**fields) -> bytes:
    return json.dumps({**GOOD, "a": {**GOOD["a"], **fields}}).encode()


BROKEN = {
    "empty": b"",
    "short": b"\x01\x02",
    "huge length": (2**63).to_bytes(8, "little") + b"{}",
    "length past the end": (1000).to_bytes(8, "little") + b"{}",
    "not JSON": file_of(b"{nonsense}"),
    "not an object": file_of(b"[1, 2]"),
    "not UTF-8": file_of(b'{"\xff": 1}'),
    "unknown dtype": file_of(changed(dtype="F31")),
    "negative size": file_of(changed(shape=[-2, -3])),
    "fractional size": file_of(changed(shape=[2.0, 3])),
    "true as a size": file_of(changed(shape=[True, 6])),
    "overflowing shape": file_of(changed(shape=[2**40, 2**40])),
    "offsets reversed": file_of(changed(data_offsets=[24, 0])),
    "offsets too short": file_of(changed(data_offsets=[0, 20])),
    "overlap": file_of(changed(data_offsets=[1, 25])),
    "gap": file_of(json.dumps({**GOOD, "b": {**GOOD["b"], "data_offsets": [25, 26]}}).encode(), bytes(26)),
    "trailing bytes": file_of(json.dumps(GOOD).encode(), bytes(26)),
    "truncated": file_of(json.dumps(GOOD).encode(), bytes(24)),
    "metadata of numbers": file_of(json.dumps({**GOOD, "__metadata__": {"n": 1}}).encode()),
    "deep nesting": file_of(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b""),
    "half a byte": file_of(json.dumps({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}).encode(), bytes(2)),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_the_reference_library_rejects_is_rejected(content, tmp_path):
    assert not reference_accepts(content)
    assert not we_accept(content, tmp_path)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_mutated_file_is_never_accepted_against_the_reference_library(tmp_path_factory, data):
    content = bytearray(file_of(json.dumps(GOOD).encode()))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))]) if data.draw(st.booleans()) else bytes(content)
    if not reference_accepts(content):
        assert not we_accept(content, tmp_path_factory.getbasetemp())


def compact(fields: dict) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


METADATA = {"__metadata__": {"format": "pt", "}": '{"a":"}"}'}}
EMPTY = {"c": {"dtype": "F32", "shape": [0, 3], "data_offsets": [25, 25]}}
LARGE = [  # as if they were
    compact({**METADATA, **GOOD}),
    compact({"a": GOOD["a"], **METADATA, "b": GOOD["b"]}),
    compact({**GOOD, **METADATA}),
    compact({"b": GOOD["b"], **EMPTY, "a": GOOD["a"]}),
    compact(METADATA),
    compact({**GOOD, "__metadata__": None}),
    b"{}",
]
NOT_PLAIN = [
    compact({**METADATA, **GOOD})[:-1] + b",}",
    compact(METADATA)[:-1] + b",}",
    compact(METADATA)[:-1] + compact(GOOD)[1:],  # no comma
    compact({**METADATA, **GOOD})[:-1] + b"," + compact(METADATA)[1:],
    compact({**METADATA, **GOOD})[:-1] + b',"__metadata__":' + compact(GOOD["b"]) + b"}",
    compact({**GOOD, "b": {**GOOD["b"], **METADATA}}),
    compact({**GOOD, "b": {"x": {}, **METADATA}}),
    b'{"a},"__metadata__":{},b":{"dtype":"U8","shape":[],"data_offsets":[0,0]}}',
    compact({**GOOD, "__metadata__": {"a": 1}}),
    compact({**GOOD, "__metadata__": GOOD["b"]}),
    compact(GOOD).replace(b'"shape"', b'"sh\\u0061pe"'),
    compact(GOOD).replace(b'"shape":[2,3]', b'"shape":[2,3],"shape":[2,3]'),
    compact(GOOD).replace(b'"a"', b'"b"'),
    compact(GOOD).replace(b'"a"', b'"\\u0062"'),
    compact(GOOD).replace(b'"a"', b'"\\ud800"'),
    compact(GOOD).replace(b"[]", b"[-0]"),
    compact(GOOD).replace(b"[]", b"[1.0]"),
    compact(GOOD).replace(b"[0,", b"[-0,"),
    compact(GOOD).replace(b"24]", b"24,24]"),
    compact(GOOD).replace(b"F32", b"F31"),
    compact(GOOD).replace(b"[2,3]", b"[" + b"1," * 64 + b"6]"),
    compact({**GOOD, "c": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [25, 25]}}),
    compact({"dtype": GOOD["a"], "b": GOOD["b"]}),
    b" " + compact(GOOD),
]


def outcome(parse, text: bytes):
    try:
        header = parse(text)
    except WsurgeryError as error:
        return str(error)
    return header and (list(header.tensors.items()), header.metadata)


@pytest.mark.parametrize("text", LARGE)
def test_a_large_header_is_read_as_a_small_one(text):
    text += b" " * (-len(text) % 8)
    assert outcome(header_module._parse_large, text) == outcome(header_module._parse, text)


@pytest.mark.parametrize("text", NOT_PLAIN)
def test_what_is_not_plain_in_a_large_header_is_left_to_the_other_parser(text):
    assert header_module._parse_large(text) is None


@given(st.data())
@settings(max_examples=1500, deadline=None)
def test_a_large_header_is_refused_in_the_same_words(data):
    """Whatever the quick parser takes, the other one takes, too, and it is the same."""
    text = bytearray(data.draw(st.sampled_from(LARGE + NOT_PLAIN)))
    pieces = [
        b'"',
        b"\\",
        b",",
        b"}",
        b"{",
        b":",
        b"-",
        b"0",
        b".0",
        b'"a"',
        b'"__metadata__":{}',
        b"},",
        b" ",
        b"\xff",
    ]
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(text)))
        text[at : at + data.draw(st.integers(0, 2))] = data.draw(st.sampled_from(pieces))
    quick = outcome(header_module._parse_large, bytes(text))
    assert quick is None or quick == outcome(header_module._parse, bytes(text))


@given(
    st.lists(
        st.tuples(
            st.text(min_size=1, max_size=8).filter(lambda t: t != "__metadata__"),
            st.sampled_from(sorted(BITS)),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        max_size=6,
        unique_by=lambda entry: entry[0],
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_the_reference_library_reads_what_is_written(entries, metadata):
    infos = [TensorInfo(name, dtype, (*shape, 4), 0, 0) for name, dtype, shape in entries]  # times 4: whole bytes
    header = format_header(infos, metadata)
    parsed = parse_header(header[8:])
    assert len(header) % 8 == 0
    assert [(t.name, t.dtype, t.shape) for t in parsed.tensors.values() if t.nbytes] == [
        (t.name, t.dtype, t.shape) for t in infos if 0 not in t.shape
    ]
    assert parsed.metadata == metadata
    read = dict(safetensors.deserialize(header + bytes(parsed.data_bytes)))
    assert {name: (value["dtype"], tuple(value["shape"])) for name, value in read.items()}.keys() == set(parsed.tensors)


def test_equal_contents_give_equal_bytes():
    infos = [TensorInfo("b", "F32", (2,), 0, 0), TensorInfo("a", "F32", (1,), 0, 0)]
    assert format_header(infos, {"x": "1", "y": "2"}) == format_header(infos, {"y": "2", "x": "1"})


def test_a_name_that_stands_twice_is_rejected_although_the_reference_library_takes_the_last(tmp_path):
    twice = json.dumps(GOOD).encode()[:-1] + b',"b":' + json.dumps(GOOD["b"]).encode() + b"}"
    assert not we_accept(file_of(twice), tmp_path)


def test_a_pytorch_pickle_is_named_with_its_remedy(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(3)}, path)
    with pytest.raises(WsurgeryError, match="wsurgery convert"):
        open_checkpoint(path)


def test_arrays_equal_the_reference_librarys(resnet):
    expected = safetensors.numpy.load_file(resnet)
    with open_checkpoint(resnet) as checkpoint:
        assert checkpoint.header.metadata["author"] == "someone else"
        for name, value in expected.items():
            np.testing.assert_array_equal(checkpoint.read_array(name), value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS: git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\n\n  <html lang=en>", "a web page"),
        (gzip.compress(bytes(range(256)) * 99, mtime=0), "compressed with gzip"),  # its first bytes are a likely length
        (gzip.compress(bytes(99), mtime=1_700_000_000), "compressed with gzip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file, as Keras writes it"),
        (b"PK\x03\x04" + bytes(99), "run wsurgery convert"),
        (pickle.dumps({}, 2) + bytes(99), "run wsurgery convert"),
        (pickle.dumps({"a": 1}, 4), "run wsurgery convert"),
        (b'{"weight_map": {}}', "JSON and no checkpoint"),
        (b"GGUF" + bytes(99), "GGUF"),
        (
            (200_000_000).to_bytes(8, "little") + b'{"',
            "a header of 200,000,000 bytes, over the format's limit of 100,000,000",
        ),
        ((200_000_000).to_bytes(8, "little") + b"xx", "not a safetensors file"),
    ],
)
@pytest.mark.parametrize("piped", [False, True])
def test_a_file_of_another_format_is_called_that(content, words, piped, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(WsurgeryError, match=words) as raised:
        Checkpoint(path.open("rb", buffering=0), None if piped else path)
    assert "\n" not in str(raised.value)
