"""The machine that reads pickles: what Python's own reads, and nothing that a hostile one can make it do."""

import collections
import io
import pickle
import random
import struct
from functools import partial
from typing import Any

import pytest

from wsurgery.errors import WsurgeryError
from wsurgery.foreign.opcodes import Ignored, Unpickler

KINDS = {
    "dict": dict,
    "list": list,
    "set": set,
    "frozenset": frozenset,
    "OrderedDict": dict,
    "complex": Ignored("complex"),
}


def read(data: bytes, **options: float) -> Any:
    return Unpickler(data, 0, lambda module, name: KINDS[name], lambda identifier: identifier, **options).load()


def made(draw: random.Random, depth: int = 4) -> Any:
    """Anything that a checkpoint holds."""
    scalars = [
        lambda: draw.choice([None, True, False, 0, 255, 256, 65536, -1, 2**31, -(2**31) - 1, 2**70, -(2**200)]),
        lambda: draw.choice([0.0, -1.5, float("inf"), 1e-300]),
        lambda: draw.choice(["", "é", "\U0001f600", "a\ud800", "x" * 300, "layer.weight"]) + str(draw.randrange(3)),
        lambda: draw.randbytes(draw.choice([0, 3, 300])),
    ]
    if depth == 0 or draw.random() < 0.3:
        return draw.choice(scalars)()
    inner = [made(draw, depth - 1) for _ in range(draw.choice([0, 1, 2, 3, 4, 40 // depth**2]))]
    keys = [draw.choice(["a", 1, None, ("b", 2), 0.5, b"c", (("d",), 3)]) for _ in inner]
    inner += draw.sample(inner, min(len(inner), 1))  # an object that is there twice
    kind = draw.choice([list, tuple, dict, collections.OrderedDict, set, frozenset, bytearray])
    if kind in (dict, collections.OrderedDict):
        return kind(zip(keys, inner, strict=False))
    return kind(keys) if kind in (set, frozenset) else kind(b"abc" if kind is bytearray else inner)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_is_read_is_what_python_reads(protocol: int) -> None:
    draw = random.Random(protocol)
    for _ in range(300):
        value = made(draw)
        if protocol < 5:
            value = without_bytearrays(value, bytes_too=protocol < 3)  # functions of codecs and builtins make them
        data = pickle.dumps(value, protocol)
        assert plain(read(data)) == plain(pickle.loads(data))


def without_bytearrays(value: Any, *, bytes_too: bool) -> Any:
    if isinstance(value, bytearray) or (bytes_too and isinstance(value, bytes)):
        return "bytes"
    again = partial(without_bytearrays, bytes_too=bytes_too)
    if isinstance(value, dict):
        return {again(key): again(inner) for key, inner in value.items()}
    return type(value)(map(again, value)) if isinstance(value, (list, tuple, set, frozenset)) else value


def plain(value: Any) -> Any:
    """The same with plain dicts and plain tuples, whose hash a key of ours does not have."""
    if isinstance(value, dict):
        return {plain(key): plain(inner) for key, inner in value.items()}
    kind = tuple if isinstance(value, tuple) else type(value)
    return kind(map(plain, value)) if isinstance(value, (list, tuple, set, frozenset)) else value


def test_a_cycle_and_a_persistent_identifier_are_read() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    found = read(pickle.dumps(cycle, 2))
    assert found[0] is found

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", 3) if isinstance(obj, complex) else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump([1j])
    assert read(stream.getvalue()) == [("storage", 3)]


def key_of(levels: int, code: bytes = b"\x86") -> bytes:
    """A dict whose key is a tuple of twice the same tuple, and so on: 2^levels elements to hash."""
    return b"\x80\x02})" + b"2" + code + b"".join(b"2" + code for _ in range(levels)) + b"Ns."


def number_of(digits: int) -> bytes:
    return b"\x80\x02L" + b"9" * digits + b"L\n."


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (key_of(120), "has a pickle with a key"),
        (b"\x80\x04\x8f(" + key_of(120)[3:-2] + b"\x90.", "has a pickle with a key"),
        (b"\x80\x02}" + b"\x8a\x08" + struct.pack("<q", 2**61) + b"Ns.", "has a pickle with a key"),
        (b"\x80\x02}(" + b"K\x01" * 100 + b"tNs.", "has a pickle with a key"),
        (number_of(4000), "more than 512 characters"),
        (b"\x80\x02\x8b" + struct.pack("<I", 10**6) + b"\1" * 10**6 + b".", "a number of 1000000 bytes"),
        (b"\x80\x02c" + b"a" * 600 + b"\nb\n.", "more than 512 characters"),
        *((bytes([0x80, 2]) + code + b".", "has a pickle with the opcode") for code in b"P F S V g p i o d l".split()),
        (b"\x80\x02\x82\x01.", "opcode 0x82"),
        (b"\x80\x05\x97.", "opcode 0x97"),
    ],
)
def test_what_no_checkpoint_has_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(WsurgeryError, match=words):
        read(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x05\x96" + struct.pack("<Q", 3 * 10**9) + b"x.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b"x.",
        b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x.",
        b"\x80\x02\x8b" + struct.pack("<i", -1) + b"x.",
        b"\x80\x02K",
        b"\x80\x02",
        b"",
        b"\x80\x02(t",
        b"\x80\x02h\x07.",
        b"\x80\x02Na.",
        b"\x80\x02]}s.",
        b"\x80\x02N\x85R.",
        b"\x80\x02NNR.",
        b"\x80\x021.",
        b"\x80\x02.",
    ],
)
def test_what_is_damaged_is_an_error(data: bytes) -> None:
    with pytest.raises((WsurgeryError, EOFError, ValueError, LookupError, TypeError, struct.error)):
        read(data)


SETS = b"\x80\x04" + b"\x8f" * 5_000_000 + b"."
COPIES = b"\x80\x02](" + b"N" * 100_000 + b"e\x85q\0c__builtin__\nlist\nq\1" + b"h\1h\0R" * 10_000 + b"."
PADDED = b"\x80\x04\x8d" + struct.pack("<Q", 90_000_000) + b"x" * 90_000_000 + b"."


@pytest.mark.parametrize(("data", "share"), [(SETS, 1), (COPIES, 1), (PADDED, 0.001)])
def test_memory_follows_the_bytes_of_the_file(data: bytes, share: float) -> None:
    with pytest.raises(WsurgeryError, match="more memory"):
        read(data, share=share)


def test_numbers_in_a_tuple_cannot_be_chosen_to_have_one_hash() -> None:
    """A dict of keys that share a hash takes the square of their number."""
    keys = [(1, 2), (3, 4)]
    found = list(read(pickle.dumps(dict.fromkeys(keys), 2)))
    assert found == keys
    assert all(hash(key) != hash(theirs) for key, theirs in zip(found, keys, strict=True))
