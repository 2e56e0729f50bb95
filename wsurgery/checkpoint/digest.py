"""Digests: of a file's bytes, and of a checkpoint's content."""

from pathlib import Path

_BLOCK = 8 << 20  # bytes: enough for every core; a memory map would show up as the process's own memory


def file_digest(path: Path) -> str:
    """BLAKE3 of a file's bytes, on all cores, as 64 hexadecimal digits."""
    from blake3 import blake3

    hasher = blake3(max_threads=blake3.AUTO)
    buffer = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as stream:
        while n := stream.readinto(buffer):
            hasher.update(buffer[:n])
    return hasher.hexdigest()


def bytes_digest(data: bytes) -> str:
    """BLAKE3 of bytes in memory, as 64 hexadecimal digits."""
    from blake3 import blake3

    return blake3(data).hexdigest()
