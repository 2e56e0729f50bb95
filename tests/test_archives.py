"""Arrays and archives that lie: refused in one line, before memory is taken."""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsurgery.archives import open_archive, open_array, read_array, read_array_header
from wsurgery.errors import WsurgeryError


def npy(header: str | bytes, data: bytes = b"", version: bytes = b"\1\0", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else header.encode("latin1")
    size = len(text) if length is None else length
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\1\0" else "<I", size) + text + data


def described(shape: str = "(2, 3)", descr: str = "'<f4'", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


DAMAGED = {
    "empty": b"",
    "no magic": b"\x93NUMPX" + npy(described())[6:],
    "version 9": npy(described(), version=b"\x09\0"),
    "no dict": npy("[1, 2]\n"),
    "no Python": npy("{'descr\n"),
    "a call": npy("{'descr': exit(), 'fortran_order': False, 'shape': ()}\n"),
    "deep": npy("(" * 9000),
    "a key more": npy(described()[:-2] + "'x': 1}\n"),
    "a header of 4 GB": npy(described(), version=b"\2\0", length=2**32 - 1),
    "cut in the header": npy(described())[:30],
    "cut in the length": npy(described())[:9],
    "a negative side": npy(described("(2, -3)")),
    "a fraction": npy(described("(2, 3.5)")),
    "a huge side": npy(described(f"({'9' * 5000},)")),
    "more than 2^63 bytes": npy(described("(4294967296, 4294967296)")),
    "65 sides": npy(described(f"({'1,' * 65})")),
    "objects": npy(described(descr="'|O'")),
    "fields": npy(described(descr="[('a', '<f4'), ('b', '|O')]")),
    "no type": npy(described(descr="'nonsense'")),
    "a type of 5,000 digits": npy(described(descr=f"'<f{'9' * 5000}'")),
    "no order": npy(described(fortran="7")),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_header_is_one_line(kind: str) -> None:
    with pytest.raises((WsurgeryError, EOFError), match=r"^[^\n]+$"):
        read_array_header(io.BytesIO(DAMAGED[kind]))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<f4", ">f8", "|u1", "|b1", "<c8", "<U5"])
@pytest.mark.parametrize("shape", [(), (0, 2), (3,), (2, 3, 4)])
def test_what_numpy_wrote_is_read(version: tuple[int, int], order: Any, kind: str, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.arange(np.prod(shape)).reshape(shape).astype(kind), order=order)
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", stream.getvalue())
        np.testing.assert_array_equal(read_array(archive, "a.npy"), array)
    stream.seek(0)
    header = read_array_header(stream)
    assert (header.shape, header.dtype, header.length) == (array.shape, array.dtype, stream.tell())


def test_an_array_with_fewer_bytes_than_its_shape_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy(described("(1000000000,)"), bytes(100)))
    with (
        open_archive(tmp_path / "a.npz") as archive,
        pytest.raises(WsurgeryError, match="4000000000 bytes in 100"),
        open_array(archive, "a.npy"),
    ):
        pass


def patched(content: bytes, offset: int, value: int, width: int = 2) -> bytes:
    """Change a field in the central directory, and in the member's own header, where it stands two bytes before."""
    start = content.index(b"PK\1\2") + offset
    content = content[:start] + value.to_bytes(width, "little") + content[start + width :]
    start = offset - 2
    return content[:start] + value.to_bytes(width, "little") + content[start + width :]


@pytest.fixture
def bomb() -> bytes:
    """200 MB of zeros in 200 KB."""
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w", force_zip64=True) as stream,
    ):
        stream.write(npy(described("(200000000,)", "'|u1'")))
        for _ in range(200):
            stream.write(bytes(10**6))
    return packed.getvalue()


def test_a_bomb_is_refused_before_it_goes_off(bomb: bytes, tmp_path: Path) -> None:
    (tmp_path / "bomb.npz").write_bytes(bomb)
    with (
        open_archive(tmp_path / "bomb.npz") as archive,
        pytest.raises(WsurgeryError, match=r"a\.npy of 2\d+ bytes, packed into \d{6}$"),
    ):
        read_array(archive, "a.npy")


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [(8, 1, "encrypted"), (10, 12, "unusual"), (10, 14, "unusual"), (10, 99, "unusual"), (24, 10**9, "broken member")],
)
def test_a_member_that_is_packed_oddly_is_refused(offset: int, value: int, words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.arange(9))
    width = 4 if offset == 24 else 2
    (tmp_path / "a.npz").write_bytes(patched((tmp_path / "a.npz").read_bytes(), offset, value, width))
    with open_archive(tmp_path / "a.npz") as archive, pytest.raises(WsurgeryError, match=words):
        read_array(archive, "a.npy")
