"""Hostile checkpoints: nothing but one-line errors comes out, and what the reference library rejects is rejected.

`WSURGERY_FUZZ=20000` sets the number of cases of each property; the default is what a test run has time for.
"""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.conftest import reference_accepts
from wsurgery.checkpoint.dtypes import BITS
from wsurgery.checkpoint.header import format_header
from wsurgery.checkpoint.opening import open_checkpoint
from wsurgery.checkpoint.provenance import KEY, History, as_pipeline
from wsurgery.commands.show import show
from wsurgery.errors import WsurgeryError

CASES = int(os.environ.get("WSURGERY_FUZZ", "1500"))
PIPE = 1 << 16  # bytes that a pipe holds: a whole case fits, so that one process can write and then read

NAMES = (
    "conv1.weight",
    "bn1.running_mean",
    "layer1.0.conv1.weight",
    "fc.bias",
    "a\x1b[2J",
    "[red]x",
    "",
    "é",
    ".",
    "a/b",
)
NUMBERS = (-1, 0, 1, 2, 3, 8, 24, 25, 2**31, 2**40, 2**62, 2**63, 2**64, 10**30, 1.0, 1e999, True, None, "2", [], {})
RECORD = {"command": "shuffle", "arguments": ["--bn", "keep"], "seed": 0, "inputs": [{"name": "x", "log": []}]}
HISTORY = {"architecture": {"name": "resnet18"}, "freeze": ["conv1.*"], "log": [RECORD]}
JUNK = st.recursive(
    st.sampled_from((*NUMBERS, "shuffle", "\ud800", "\x1b[31m", "*", "[")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from((*HISTORY, *RECORD, "name", "dtype", "shape", "data_offsets", KEY)), inner, max_size=3
        ),
    ),
    max_leaves=6,
)


@st.composite
def valid_files(draw) -> tuple[dict, bytes]:
    """A header as a dict, and the tensors' bytes."""
    fields, start = {}, 0
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=4, unique=True)):
        dtype = draw(st.sampled_from(sorted(BITS)))
        shape = [*draw(st.lists(st.integers(0, 3), max_size=2)), 4]  # times 4: whole bytes
        end = (
            start
            + BITS[dtype] * shape[-1] * (shape[0] if len(shape) > 1 else 1) * (shape[1] if len(shape) > 2 else 1) // 8
        )
        fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    if draw(st.booleans()):
        history = draw(
            st.one_of(
                st.just(HISTORY),
                JUNK,
                st.builds(lambda key, x: {**HISTORY, key: x}, st.sampled_from(tuple(HISTORY)), JUNK),
            )
        )
        fields["__metadata__"] = {"format": "pt", KEY: json.dumps(history)}
    return fields, draw(st.binary(min_size=start, max_size=start)) if start < 64 else bytes(start)


def mutate_fields(draw, fields: dict) -> None:
    """Change one thing in the JSON that is still JSON."""
    if not fields:
        fields[draw(st.sampled_from((*NAMES, "__metadata__")))] = draw(JUNK)
        return
    name = draw(st.sampled_from(sorted(fields)))
    entry = fields[name]
    kind = draw(st.integers(0, 4)) if isinstance(entry, dict) else 0
    if kind == 0:
        fields[name] = draw(JUNK)
    elif kind == 1:
        del fields[name]
    elif name == "__metadata__":
        entry[draw(st.sampled_from((KEY, "format", "other")))] = draw(JUNK)
    elif kind == 2:
        entry["shape"] = draw(st.lists(st.sampled_from(NUMBERS), max_size=4)) * draw(st.sampled_from((1, 1, 1, 40)))
    elif kind == 3:
        offset = st.one_of(st.sampled_from(NUMBERS), st.integers(0, 100))
        entry["data_offsets"] = [draw(offset), draw(offset)]
    else:
        key = draw(st.sampled_from(("dtype", "shape", "data_offsets", "more")))
        entry[key] = draw(st.one_of(JUNK, st.sampled_from(sorted(BITS))))


def mutate_text(draw, text: bytearray) -> None:
    """Change bytes of the header: duplicate keys, broken UTF-8, nesting, white space, other number formats."""
    kind = draw(st.integers(0, 4))
    if kind == 0:
        text[draw(st.integers(0, len(text) - 1))] = draw(st.integers(0, 255))
    elif kind == 1:
        first, last = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        at = draw(st.integers(0, len(text)))
        text[at:at] = text[first:last]
    elif kind == 2:
        text[draw(st.integers(0, len(text))) :] = b""
    else:
        pieces = (b"\xff", b"\xc0\x80", b"\x00", b" ", b"\n", b"-0", b"1e0", b"0x1", b"NaN", b'"\\ud800"', b",", b"}", b"[" * 200,
                  b'{"a":' * 20_000, b"9" * 5000, b"\xef\xbb\xbf", b'"a":1,"a":1,', b"/**/")  # fmt: skip
        at = draw(st.integers(0, len(text)))
        text[at:at] = draw(st.sampled_from(pieces))


@st.composite
def mutated_files(draw) -> bytes:
    fields, data = draw(valid_files())
    kinds = draw(st.lists(st.sampled_from(("fields", "text", "length", "data")), min_size=1, max_size=3))
    for _ in range(kinds.count("fields")):
        mutate_fields(draw, fields)
    text = bytearray(json.dumps(fields, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass"))
    for _ in range(kinds.count("text")):
        if text:
            mutate_text(draw, text)
    length = len(text)
    if "length" in kinds:
        length = draw(
            st.one_of(
                st.integers(max(0, length - 9), length + 9), st.sampled_from((0, 10**8, 10**8 + 1, 2**63, 2**64 - 1))
            )
        )
    content = length.to_bytes(8, "little") + text + data
    if "data" in kinds:
        content = draw(
            st.sampled_from((content + b"\0", content + bytes(4096), content[:-1], content[: len(content) // 2]))
        )
    return content[: PIPE - 1]


def use(source: str) -> bool:
    """Do to a checkpoint what commands do; anything but a WsurgeryError gets out. Returns whether it was accepted."""
    try:
        with open_checkpoint(source) as checkpoint:
            for tensor in checkpoint.tensors.values():
                if BITS[tensor.dtype] < 8:
                    assert len(checkpoint.read(tensor)) == tensor.nbytes
                else:
                    assert checkpoint.read_array(tensor.name).shape == tensor.shape
            as_pipeline(History.of(checkpoint).log)
    except WsurgeryError as error:
        message = str(error)
    else:
        return True
    assert message.isprintable()  # so it is one line
    return False


def use_as_stream(content: bytes) -> bool:
    read, write = os.pipe()
    try:
        with open(write, "wb") as stream:
            stream.write(content)
        return use(f"/dev/fd/{read}")
    finally:
        os.close(read)


def show_it(path, **options: bool) -> None:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), suppress(WsurgeryError):
        show(source=str(path), quiet=False, debug=True, **options)  # debug: errors come out as they are


def header_of(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


# Each was accepted once, against the reference library, or left a traceback.
@example(header_of(b'{"__metadata__":[]}'))
@example(header_of(b'{"__metadata__":{"a":"\\ud800"}}'))
@example(header_of(b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'))
@example(header_of(b'{"a":{"dtype":"U8","shape":[9223372036854775808,4,0],"data_offsets":[0,0]}}'))
@example(header_of(b'{"a":{"dtype":"F64","shape":[0,4611686018427387904],"data_offsets":[0,0]}}'))
@example(header_of(b'{"a":{"dtype":"U8","shape":[' + b"1," * 69 + b'1],"data_offsets":[0,1]}}') + b"0")
@given(content=mutated_files())
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_mutated_checkpoint_ends_in_one_line_or_is_one_that_the_reference_library_takes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(content)
    as_file, as_stream = use(str(path)), use_as_stream(content)
    assert as_file == as_stream
    if as_file:
        assert reference_accepts(content)
    show_it(path, json=True)
    show_it(path, stats=True, tensors=True, json=True)
    if as_file:
        show_it(path, tensors=True)


@given(case=valid_files())
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_files_that_are_mutated_are_taken_by_the_reference_library_to_begin_with(case):
    fields, data = case
    assert reference_accepts(header_of(json.dumps(fields).encode()) + data)


def test_a_checkpoint_cut_at_any_64th_is_rejected(tmp_path, resnet):
    with open_checkpoint(resnet) as checkpoint:
        infos = list(checkpoint.tensors.values())[:12]
        content = format_header(infos, checkpoint.header.metadata)
        content += b"".join(checkpoint.read(info) for info in infos)
    content = content[:PIPE]
    for k in range(64):
        cut = content[: len(content) * k // 64]
        (tmp_path / "cut").write_bytes(cut)
        assert not use(str(tmp_path / "cut"))
        assert not use_as_stream(cut)


def claim(dtype: str, size: int, nbytes: int) -> bytes:
    return header_of(json.dumps({"a": {"dtype": dtype, "shape": [size], "data_offsets": [0, nbytes]}}).encode())


CLAIMS = {
    "a header of 100 MB": (10**8).to_bytes(8, "little") + b"{" + b" " * 1000,
    "a tensor of a terabyte": claim("U8", 2**40, 2**40),
    "a tensor of an exabyte": claim("F64", 2**57, 2**60),
    "deep nesting": header_of(b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_000),
}


@pytest.mark.parametrize("command", [["show", "--stats"], ["meanvar"], ["digest"]], ids=" ".join)
@pytest.mark.parametrize("content", CLAIMS.values(), ids=CLAIMS)
def test_a_stream_that_claims_to_be_large_takes_no_memory(content, command):
    limited = (
        "import resource, runpy\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (400 << 20, 400 << 20))\n"
        "runpy.run_module('wsurgery', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, *command],
        input=content,
        capture_output=True,
        timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1, done.stderr
    assert b"standard input" in done.stderr  # and not: out of memory
