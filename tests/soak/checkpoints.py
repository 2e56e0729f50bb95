"""Small random checkpoints, and how they are read and written without wsurgery."""

import json
import math
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

TYPES: dict[str, Any] = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8",
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8", "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu, "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}  # fmt: skip
SMALLER = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # bits of elements that numpy does not have
FLOATS = ("F16", "F32", "F64", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
ODD = [
    "weight", "bias", "weight", "running_mean", "a b", "ünï", "层", "it's", '"q"', "$(x)", "`x`", "*", "[a]", "?", "-o", "--", "",
    "..", "\n", "\t", "\\", "{}", "x" * 300, "🎉", "%s", "#", "/", "wsurgery", "data_offsets", "1", "\x1b[31m", "\u202e", "~",
]  # fmt: skip


class Tensor(NamedTuple):
    """A tensor as a file has it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def array(self) -> np.ndarray:
        """Its elements, in its own type."""
        return np.frombuffer(self.data, TYPES[self.dtype]).reshape(self.shape)

    @property
    def elements(self) -> int:
        """How many there are."""
        return math.prod(self.shape)


@dataclass
class State:
    """What a checkpoint says: tensors in their order, the metadata of other tools, what is frozen, and the history."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    freeze: list[str] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def frozen(self) -> set[str]:
        """The names that the freeze specification matches."""
        return {name for name in self.tensors if any(fnmatchcase(name, glob) for glob in self.freeze)}


def read(path: Path) -> State:
    """Read a file or a folder of shards; the reference library has to take each file."""
    if path.is_dir():
        index = json.loads((path / "model.safetensors.index.json").read_bytes())["weight_map"]
        shards = {name: read(path / name) for name in sorted(set(index.values()))}
        whole = next(iter(shards.values()))
        assert all(name in shards[file].tensors for name, file in index.items()), "the index names what is not there"
        assert len(index) == sum(len(each.tensors) for each in shards.values()), "the index has not every tensor"
        assert {json.dumps(each.log) for each in shards.values()} == {json.dumps(whole.log)}, "two histories"
        whole.tensors = {name: tensor for each in shards.values() for name, tensor in each.tensors.items()}
        return whole
    content = path.read_bytes()
    taken = {name: bytes(about["data"]) for name, about in safetensors.deserialize(content)}
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    own = json.loads(metadata.pop("wsurgery", "{}"))
    order = sorted(header, key=lambda name: header[name]["data_offsets"])
    tensors = {name: Tensor(header[name]["dtype"], tuple(header[name]["shape"]), taken[name]) for name in order}
    return State(tensors, metadata, own.get("freeze", []), own.get("log", []))


def write(state: State, path: Path, rng: Random) -> None:
    """Write a checkpoint as others may: keys in any order, escapes or none, any padding."""
    names, place, header = list(state.tensors), 0, {}
    for name in names:
        dtype, shape, data = state.tensors[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + len(data)]}
        place += len(data)
    rng.shuffle(names)
    fields = {name: header[name] for name in names}
    if state.metadata:
        fields["__metadata__"] = state.metadata
    text = json.dumps(fields, ensure_ascii=rng.random() < 0.5).encode() + b" " * rng.randrange(9)
    data = b"".join(tensor.data for tensor in state.tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_shards(state: State, folder: Path, rng: Random) -> None:
    """Write a checkpoint as a folder of up to four shards, in its order."""
    folder.mkdir()
    names, index = list(state.tensors), {}
    count = min(rng.randint(1, 4), len(names))
    cuts = [0, *sorted(rng.sample(range(1, len(names)), count - 1)), len(names)]
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = {name: state.tensors[name] for name in names[cuts[number] : cuts[number + 1]]}
        write(State(part, state.metadata), folder / file, rng)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def random_tensor(rng: Random, dtype: str, shape: tuple[int, ...], *, wild: bool) -> Tensor:
    """Draw a tensor: normal numbers, or wild ones, of which any bits may be."""
    numbers, size = np.random.default_rng(rng.getrandbits(64)), math.prod(shape)
    if dtype in SMALLER:
        return Tensor(dtype, shape, numbers.bytes(size * SMALLER[dtype] // 8))
    if dtype == "BOOL":
        values = numbers.random(size) < 0.5
    elif dtype not in FLOATS or (wild and rng.random() < 0.3):
        return Tensor(dtype, shape, numbers.bytes(size * np.dtype(TYPES[dtype]).itemsize))
    else:
        values = numbers.normal(rng.choice([0, 0.1, 1]), rng.choice([0, 0.01, 1, 30]), size)
        if wild and rng.random() < 0.3:
            info = ml_dtypes.finfo(TYPES[dtype])
            odd = [np.nan, np.inf, -np.inf, -0.0, 0.0, info.max, info.min, info.smallest_subnormal, info.tiny]
            values[numbers.random(size) < 0.1] = float(rng.choice(odd))
    with np.errstate(all="ignore"):
        return Tensor(dtype, shape, values.astype(TYPES[dtype]).tobytes())


def random_shape(rng: Random, dtype: str) -> tuple[int, ...]:
    """Draw a shape of up to five dimensions, some of them empty; elements below a byte fill whole ones."""
    shape = tuple(rng.choice([1, 1, 2, 3, 3, 4, 5, 7, 0 if rng.random() < 0.2 else 2]) for _ in range(rng.randrange(6)))
    if dtype in SMALLER:
        shape = (*shape[:4], 4)
    return shape


def _batch_norm(rng: Random, module: str, *, wild: bool) -> dict[str, Tensor]:
    width, dtype = rng.randint(1, 5), rng.choice(["F32", "F32", rng.choice(FLOATS)])
    parts = ["weight", "bias", "running_mean", "running_var"]
    tensors = {f"{module}.{part}": random_tensor(rng, dtype, (width,), wild=wild) for part in parts}
    if rng.random() < 0.7:
        variance = np.abs(np.random.default_rng(rng.getrandbits(64)).normal(1, 0.2, width)).astype(TYPES[dtype])
        tensors[f"{module}.running_var"] = Tensor(dtype, (width,), variance.tobytes())
    if rng.random() < 0.8:
        counter = rng.choice(["I64", "I64", "I64", "F32"])
        tensors[f"{module}.num_batches_tracked"] = random_tensor(rng, counter, (), wild=False)
    return tensors


def _network(rng: Random, *, wild: bool) -> dict[str, Tensor]:
    def weight(*shape: int) -> Tensor:
        return random_tensor(rng, rng.choice(["F32", "F32", "F16", "BF16", "F64"]), shape, wild=wild)

    tensors = {"conv1.weight": weight(4, 3, 3, 3), **_batch_norm(rng, "bn1", wild=wild)}
    for n in range(1, rng.randint(2, 4)):
        tensors[f"layer{n}.0.conv1.weight"] = weight(4, 4, 3, 3)
        tensors |= _batch_norm(rng, f"layer{n}.0.bn1", wild=wild)
    return {**tensors, "fc.weight": weight(5, 4), "fc.bias": weight(5)}


def _odd(rng: Random, *, wild: bool) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    dtypes = [*TYPES, *FLOATS, *(SMALLER if rng.random() < 0.3 else ())]
    for number in range(rng.randint(1, 9)):
        parts = [rng.choice(ODD) for _ in range(rng.randint(1, 3))]
        parts[rng.randrange(len(parts) - 1) if len(parts) > 1 else 0] += f"_{number}"
        if rng.random() < 0.2:
            tensors |= _batch_norm(rng, ".".join(parts), wild=wild)
        else:
            dtype = rng.choice(dtypes)
            tensors[".".join(parts)] = random_tensor(rng, dtype, random_shape(rng, dtype), wild=wild)
    if rng.random() < 0.02:  # more than one chunk
        tensors["large.weight"] = random_tensor(rng, rng.choice(FLOATS), (700, 800), wild=wild)
    return tensors


def _perceptron(rng: Random, *, wild: bool) -> dict[str, Tensor]:
    sizes = [rng.randint(2, 6) for _ in range(rng.randint(3, 5))]
    tensors = {}
    for i, (inside, out) in enumerate(pairwise(sizes)):
        tensors[f"{i}.weight"] = random_tensor(rng, "F32", (out, inside), wild=wild)
        tensors[f"{i}.bias"] = random_tensor(rng, "F32", (out,), wild=wild)
    return tensors


def random_state(rng: Random) -> State:
    """Draw a checkpoint."""
    kind = rng.choices([_odd, _network, _perceptron], [6, 3, 1])[0]
    tensors = list(kind(rng, wild=rng.random() < 0.3).items())
    rng.shuffle(tensors)
    keys = rng.sample(["author", "license", "ключ", "a=b", "format", "x y", "modelspec.title"], rng.randrange(4))
    return State(dict(tensors), {key: rng.choice(["", "pt", "値 =", 'say "x"\n']) for key in keys})


def sibling(state: State, rng: Random) -> State:
    """Draw another checkpoint with the names of one, mostly in its types and shapes, now and then without a tensor or so."""
    tensors, wild = {}, rng.random() < 0.2
    for name, (dtype, shape, _) in state.tensors.items():
        if rng.random() < 0.02:
            continue
        if dtype in FLOATS and rng.random() < 0.2:
            dtype = rng.choice(FLOATS)
        if shape and dtype not in SMALLER and rng.random() < 0.02:
            shape = (shape[0] + 1, *shape[1:])
        tensors[name] = random_tensor(rng, dtype, shape, wild=wild)
    if rng.random() < 0.05:
        tensors["another.weight"] = random_tensor(rng, "F32", (2, 3), wild=False)
    order = list(tensors.items())
    rng.shuffle(order)
    return State(dict(order), {"author": "another"} if rng.random() < 0.3 else {})


def blocks_of(state: State) -> dict[str, str]:
    """Place the tensors of a network that is whole: name → block, in order. Nothing for any other checkpoint."""
    pattern = re.compile(r"(conv1|bn1|layer(\d)\.0\.(?:conv1|bn1)|fc)\.\w+")
    found = {name: pattern.fullmatch(name) for name in state.tensors}
    layers = sorted({match[2] for match in found.values() if match and match[2]})
    needed = ["conv1.weight", *(f"layer{n}.0.conv1.weight" for n in layers), "fc.weight"]
    if not all(found.values()) or layers != [str(n + 1) for n in range(len(layers))] or not layers:
        return {}
    if not all(name in found and len(state.tensors[name].shape) > 1 for name in needed):
        return {}
    label = {
        name: f"block{m[2]}" if m[2] else "head" if m[1] == "fc" else "conv1"
        for name, m in found.items()
        if m is not None
    }
    order = ["conv1", *(f"block{n}" for n in layers), "head"]
    return {name: label[name] for name in sorted(label, key=lambda each: order.index(label[each]))}


def means_something_else(state: State) -> bool:
    """Whether a tensor of small numbers has one beside it by a name under which scales are stored: no plain numbers then."""
    small = ("I8", "U8", "I32", *SMALLER, "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
    names = [name for name, tensor in state.tensors.items() if tensor.dtype in small]
    return any(other.startswith((f"{name}.", f"{name}_")) for name in names for other in state.tensors)
