"""Ways to damage a file: bytes, JSON by its structure, tables by their cells, and what stands in a safetensors header."""

import json
import struct
from random import Random
from typing import Any

HOSTILE: list[Any] = [
    None, True, -1, 0, 1e308, 10**30, 2**63, float("nan"), float("inf"), "", "x" * 10_000, "9" * 5_000, "\x00", "\x1b[31m",
    "\u202eevil", "../../x", "/etc/passwd", "$(touch PWNED)", "; touch PWNED; '", "=cmd|' /C calc'!A1", "<script>x</script>",
    "|`*_<b>", [], {}, [[]], {"": {}}, [None] * 1000, "\ud800", "http:/user:SECRET@h/", "(a+)+$", "a/b", "-", "--force",
]  # fmt: skip
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1]


def of_bytes(content: bytes, rng: Random) -> bytes:
    """Flip bits, cut, insert, repeat, exchange, or put an extreme number somewhere; favour the beginning and the end."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 30])):
        at = rng.choice([rng.randrange(len(data) + 1), rng.randrange(min(len(data), 100) + 1), max(0, len(data) - 30)])
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.choice([1, 2, 8, 300]))
        elif kind == 3:
            data[at:at] = data[at : at + rng.choice([1, 8, 64])] * rng.choice([1, 2, 100])
        elif kind == 4:
            del data[at : at + rng.choice([1, 4, 64])]
        elif kind == 5:
            size = rng.choice([1, 2, 4, 8])
            number = rng.choice(NUMBERS) & (256**size - 1)
            data[at : at + size] = number.to_bytes(size, rng.choice(["little", "big"]))
        else:
            other = rng.randrange(len(data) + 1)
            data[at : at + 16], data[other : other + 16] = data[other : other + 16], data[at : at + 16]
    return bytes(data)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inside for place in _places(each, (*path, key)))]


def _changed(value: Any, rng: Random) -> Any:
    """Damage a JSON value at a place or two."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        path = rng.choice(_places(value))
        if not path:
            value = rng.choice(HOSTILE) if rng.random() < 0.3 else value
            continue
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        kind = rng.randrange(6)
        if kind == 0:
            del parent[path[-1]]
        elif kind == 1 and isinstance(parent, dict):
            parent[rng.choice([each for each in HOSTILE if isinstance(each, str)])] = parent.pop(path[-1])
        elif kind == 2:
            parent[path[-1]] = [parent[path[-1]]] * rng.choice([1, 3])
        elif kind == 3 and isinstance(parent[path[-1]], str):
            parent[path[-1]] += rng.choice([each for each in HOSTILE if isinstance(each, str)])
        else:
            parent[path[-1]] = json.loads(json.dumps(rng.choice(HOSTILE)))
    return value


def of_json(content: bytes, rng: Random) -> bytes:
    """Damage JSON by its structure, now and then by its bytes."""
    kind = rng.randrange(8)
    if kind == 0:
        return of_bytes(content, rng)
    if kind == 1:
        return rng.choice(
            [b"[" * 100_000, b'{"a":' * 50_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xff\xfe", b"", b"null"]
        )
    return json.dumps(_changed(json.loads(content), rng)).encode()


def of_json_lines(content: bytes, rng: Random) -> bytes:
    """Damage one of many JSON lines."""
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    lines[at] = of_json(lines[at], rng) + b"\n"
    return b"".join(lines)


def of_table(content: bytes, rng: Random) -> bytes:
    """Damage CSV: cells, columns, lines; now and then bytes."""
    if rng.randrange(4) == 0:
        return of_bytes(content, rng)
    rows = [line.split(",") for line in content.decode().splitlines()]
    words = ["".join(str(each).splitlines()).replace(",", "") for each in HOSTILE]
    for _ in range(rng.choice([1, 1, 2, 5])):
        row = rng.choice(rows)
        kind = rng.randrange(6)
        if kind == 0 and row:
            row[rng.randrange(len(row))] = rng.choice(words)
        elif kind == 1 and row:
            del row[rng.randrange(len(row))]
        elif kind == 2:
            row.append(rng.choice(words))
        elif kind == 3:
            rows.append(list(row))
        elif kind == 4 and rows[0]:
            rows[0][rng.randrange(len(rows[0]))] = rng.choice([*words, rng.choice(rows[0])])
        else:
            rng.choice(rows)[:] = ['"' + "x" * 100] if rng.random() < 0.2 else row
    return "\n".join(map(",".join, rows)).encode("utf-8", "surrogatepass")


def of_safetensors(content: bytes, rng: Random) -> bytes:
    """Damage a safetensors file: its header's JSON, the history in it, or its bytes."""
    if rng.randrange(5) == 0:
        return of_bytes(content, rng)
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    own = header.get("__metadata__", {}).get("wsurgery")
    if own and rng.random() < 0.75:
        history = _changed(json.loads(own), rng)
        header["__metadata__"]["wsurgery"] = rng.choice(
            [json.dumps(history)] * 9 + [of_json(own.encode(), rng).decode("latin1")]
        )
    else:
        header = _changed(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
