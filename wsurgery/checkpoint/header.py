"""The header of a safetensors file: parsed with every number checked, written the same way every time.

The format: 8 bytes little-endian length n, n bytes of JSON, then the tensors' bytes without gaps. A checkpoint is
untrusted input, so nothing is allocated from a number that has not been checked. What the reference library (safetensors
0.8) rejects is rejected here.
"""

import gc
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from json.encoder import encode_basestring
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from wsurgery.checkpoint.dtypes import BITS
from wsurgery.errors import WsurgeryError, printable

if TYPE_CHECKING:
    import msgspec

LENGTH_BYTES = 8
PREFIX_BYTES = 512  # of a file that tell what it is, if it is not a safetensors file
MAX_HEADER = 100_000_000  # bytes, the reference library's limit
_MAX_SIZE = 2**63 - 1  # elements, bytes: no file is larger, and no array may be, its empty dimensions left out
_MAX_DIMENSIONS = 64  # numpy's limit
_FIELDS = {"dtype", "shape", "data_offsets"}
_INT = {int}
_MINUS = re.compile(r"[\[,:][ \t\r\n]*-")  # what a negative number looks like, and a string may
_LARGE = 1 << 20  # bytes of a header for which msgspec is worth its import


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as the header describes it: its bytes are data[start:end]."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.end - self.start

    def placed(self, start: int) -> "TensorInfo":
        """Return the same tensor with its bytes at `start`."""
        return TensorInfo(self.name, self.dtype, self.shape, start, start + nbytes(self.dtype, self.shape))


@dataclass(frozen=True)
class Header:
    """A parsed header. `tensors` is in file order, by offset."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]

    @property
    def data_bytes(self) -> int:
        """Number of bytes that follow the header."""
        return max((tensor.end for tensor in self.tensors.values()), default=0)


def nbytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes that a tensor of `dtype` and `shape` takes.

    Raises:
        ValueError: its elements do not fill whole bytes.
    """
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8:
        raise ValueError(f"{bits} bits do not fill whole bytes")
    return bits // 8


def header_length(prefix: bytes) -> int:
    """Read the length of the header from the first 8 bytes of a file, or more.

    Raises:
        WsurgeryError: too few bytes.
    """
    if not prefix:
        raise WsurgeryError("is empty")
    if len(prefix) < LENGTH_BYTES:
        raise WsurgeryError(f"ends after {len(prefix)} bytes: not a safetensors file")
    return int.from_bytes(prefix[:LENGTH_BYTES], "little")


def require_length(prefix: bytes) -> None:
    """Refuse a length that no header has, by what the file is instead.

    Args:
        prefix: the first bytes of the file: the length, and as many more as there are of `PREFIX_BYTES`.

    Raises:
        WsurgeryError: it is over the format's limit.
    """
    length = header_length(prefix)
    if length > MAX_HEADER:
        if what := other_format(prefix):
            raise WsurgeryError(f"is {what}")
        if prefix[LENGTH_BYTES:].startswith(b"{"):
            raise WsurgeryError(f"has a header of {length:,} bytes, over the format's limit of {MAX_HEADER:,}")
        raise WsurgeryError(f"claims a header of {length} bytes: not a safetensors file")


def other_format(prefix: bytes) -> str | None:
    """Say what a file is that begins with these bytes, and what to do with it; None for what is not known here."""
    prefix = prefix.lstrip() if prefix.lstrip()[:1] == b"<" else prefix
    return next((what for magic, what in _OTHERS if prefix[: len(magic)].lower() == magic.lower()), None)


_CONVERT = "not a safetensors file: run wsurgery convert on it first"
_PAGE = "a web page, not a checkpoint: what was downloaded is a login or an error; open it in a browser"
_OTHERS = (  # first bytes
    (b"PK\x03\x04", f"a zip archive, as PyTorch and numpy write them, {_CONVERT}"),
    (b"\x80\x02", f"a PyTorch pickle, {_CONVERT}"),
    *((bytes([0x80, protocol]), f"a pickle, {_CONVERT}") for protocol in (3, 4, 5)),
    (b"\x1f\x8b\x08", "compressed with gzip: unpack it first"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "compressed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (b"\x89HDF", f"an HDF5 file, as Keras writes it, {_CONVERT}"),
    (b"version https://git-lfs", "a pointer of Git LFS: git lfs pull fetches the file itself"),
    (b"GGUF", "a GGUF file of llama.cpp, which is not read here"),
    (b"<!doctype", _PAGE),
    (b"<html", _PAGE),
    (b"<?xml", _PAGE),
    (b"{", "JSON and no checkpoint: an index or a configuration; name the folder that it is in"),
)


def parse_header(text: bytes) -> Header:
    """Parse and check the JSON of a header.

    Raises:
        WsurgeryError: anything that the format forbids, with the tensor's name where there is one.
    """
    with no_search_for_cycles():
        return (_parse_large(text) if len(text) >= _LARGE else None) or _parse(text)


def _parse(text: bytes) -> Header:
    try:
        decoded = text.decode()
        integer = _natural_number if "-" in decoded and _MINUS.search(decoded) else None
        fields = json.loads(decoded, object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=integer)
    except UnicodeDecodeError:
        raise WsurgeryError("has a header that is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise WsurgeryError(f"has a header that is not JSON: {printable(str(error))}") from None
    if not text.startswith(b"{") or not isinstance(fields, dict):
        raise WsurgeryError("has a header that is not a JSON object")
    try:
        if b"\\u" in text:  # half of a surrogate pair can stand there as an escape only
            json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise WsurgeryError("has a name or metadata that is not valid Unicode") from None
    metadata = fields.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WsurgeryError("has __metadata__ that is not a map from strings to strings")
    tensors = sorted(map(_tensor, fields.keys(), fields.values()), key=attrgetter("start", "end"))
    return Header(_contiguous(tensors), metadata)


def _contiguous(tensors: Iterable[TensorInfo]) -> dict[str, TensorInfo]:
    end = 0
    for tensor in tensors:
        if tensor.start != end:
            what = "overlaps the tensor before it" if tensor.start < end else "leaves a gap before it"
            raise WsurgeryError(
                f"has a broken header: {printable(tensor.name)} starts at byte {tensor.start} and {what}"
            )
        end = tensor.end
    return {tensor.name: tensor for tensor in tensors}


def _parse_large(text: bytes) -> Header | None:
    """Parse a header in half of the time and of the memory; None where it is not plainly well-formed, which `_parse` judges.

    Escapes in names, and `__metadata__` at a place where one has to look for it, are not plain.
    """
    import msgspec

    try:
        body, metadata = _without_metadata(text.decode())
        if not body.startswith("{") or "\\" in body or ("-" in body and _MINUS.search(body)):
            return None
        fields: dict[str, Any] = _entries().decode(body)
        if any(body.count(f'"{key}"') != len(fields) for key in _FIELDS):
            return None  # something stands twice, or is a name
        kinds: dict[tuple[str, tuple[int, ...]], tuple[str, tuple[int, ...], int]] = {}
        for name, entry in fields.items():
            kind = kinds.get((entry.dtype, entry.shape))
            if kind is None:
                first = _tensor(name, msgspec.json.decode(msgspec.json.encode(entry)))
                kind = kinds[first.dtype, first.shape] = first.dtype, first.shape, first.nbytes
            dtype, shape, size = kind
            start, end = entry.data_offsets
            if end - start != size:
                return None
            fields[name] = TensorInfo(name, dtype, shape, start, end)
        header = Header(_contiguous(sorted(fields.values(), key=attrgetter("start", "end"))), metadata)
        return header if header.data_bytes <= _MAX_SIZE else None
    except (ValueError, RecursionError, WsurgeryError):  # msgspec's own are ValueErrors
        return None


def _without_metadata(text: str) -> tuple[str, dict[str, str]]:
    """Cut the one `__metadata__` out of the text of a header.

    Raises:
        ValueError: it stands where it may belong to a tensor, or to a string.
        WsurgeryError: it is not what it should be.
    """
    key = '"__metadata__":'
    at = text.find('"__metadata__"')
    if at < 0:
        return text, {}
    # After an object, what is not a tensor's: a tensor has no object among its fields.
    if not (text.startswith(key, at) and (at == 1 or text[at - 2 : at] == "},") and text.count('"', 0, at) % 2 == 0):
        raise ValueError
    end = json.JSONDecoder().raw_decode(text, at + len(key))[1]
    metadata = _parse(f"{{{text[at:end]}}}".encode()).metadata
    if text.find('"__metadata__"', end) >= 0:
        raise ValueError
    if text.startswith(',"', end):
        return text[:at] + text[end + 1 :], metadata
    if text.startswith("}", end):
        return text[: at - (at > 1)] + text[end:], metadata
    raise ValueError


@cache
def _entries() -> "msgspec.json.Decoder[dict[str, Any]]":
    import msgspec

    class Entry(msgspec.Struct, forbid_unknown_fields=True, gc=False):
        dtype: str
        shape: tuple[int, ...]
        data_offsets: tuple[int, int]

    return msgspec.json.Decoder(dict[str, Entry])


@contextmanager
def no_search_for_cycles() -> Iterator[None]:
    """Put Python's search for cycles off: among millions of new objects that are in none it takes as long as making them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def format_header(tensors: Iterable[TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """Write a header, its length included, for tensors whose bytes follow one another in this order.

    Keys are sorted, the JSON is compact and padded with spaces to a multiple of 8 bytes, so that equal contents give
    equal bytes.
    """
    fields = {"__metadata__": _dumps(dict(metadata))} if metadata else {}
    start = 0
    for tensor in tensors:
        end, shape = start + nbytes(tensor.dtype, tensor.shape), ",".join(map(str, tensor.shape))
        fields[tensor.name] = f'{{"data_offsets":[{start},{end}],"dtype":"{tensor.dtype}","shape":[{shape}]}}'
        start = end
    # By hand: json.dumps takes three times as long, and a header may have a million tensors.
    text = f"{{{','.join([f'{encode_basestring(name)}:{fields[name]}' for name in sorted(fields)])}}}".encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise WsurgeryError(f"a header of {len(text)} bytes is over the format's limit of {MAX_HEADER}")
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _dumps(fields: dict[str, str]) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _tensor(name: str, entry: Any) -> TensorInfo:
    try:  # what is well-formed, in few steps: a header may have a million tensors
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sizes = [start, end, *shape]
        if (
            len(entry) == 3
            and type(shape) is list
            and {*map(type, sizes)} == _INT
            and end <= _MAX_SIZE
            and len(shape) <= _MAX_DIMENSIONS
            and math.prod(shape) * BITS[dtype] == 8 * (end - start) > 0
        ):
            return TensorInfo(name, dtype, tuple(shape), start, end)
    except (KeyError, TypeError, ValueError):
        pass
    return _checked(name, entry)


def _checked(name: str, entry: Any) -> TensorInfo:
    """Check what is empty, or say what is wrong."""

    def broken(what: str) -> WsurgeryError:
        return WsurgeryError(f"has a broken header: {printable(name)} {what}")

    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise broken("is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise broken(f"has the unknown dtype {printable(str(dtype), 40)}")
    if not _are_sizes(shape):
        raise broken("has a shape that is not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise broken("has data_offsets that are not a range")
    if len(shape) > _MAX_DIMENSIONS:
        raise broken(f"has {len(shape)} dimensions, more than {_MAX_DIMENSIONS}")
    if math.prod(size or 1 for size in shape) * BITS[dtype] > 8 * _MAX_SIZE:
        raise broken("has a shape whose size overflows")
    try:
        size = nbytes(dtype, shape)
    except ValueError as error:
        raise broken(f"is {dtype} {tuple(shape)}: {error}") from None
    if size != offsets[1] - offsets[0]:
        raise broken(f"is {dtype} {tuple(shape)}, {size} bytes, but data_offsets give it {offsets[1] - offsets[0]}")
    return TensorInfo(name, dtype, tuple(shape), offsets[0], offsets[1])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _MAX_SIZE for item in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands in it twice")
    return fields


def _natural_number(text: str) -> int:
    if text.startswith("-"):
        raise ValueError(f"{text} is not a size")  # not even -0
    return int(text)


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")
