"""The bytes that each command gives for fixed inputs and seeds: part of what a release promises.

`same_bytes.json` beside this file holds, for each line behind `wsurgery`, BLAKE3 of its result with the version left out. It
was recorded before edits were declared as they are now, and is not made again to please a change.
"""

import json
import re
import shlex
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from blake3 import blake3

RECORDED = json.loads(Path(__file__).with_name("same_bytes.json").read_text())
DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}  # fmt: skip


def write(path: Path, tensors: dict[str, tuple[str, np.ndarray]], metadata: dict[str, str] | None = None) -> None:
    """Write a file by the specification."""
    header, content = {"__metadata__": metadata} if metadata else {}, b""
    for name, (dtype, array) in tensors.items():
        data = array.tobytes()
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(content), len(content) + len(data)]}
        content += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def inputs(folder: Path) -> None:
    """Write what the cases read. Integers divided, so that no library's generator decides."""

    def values(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
        words = np.frombuffer(blake3(f"{seed} {name}".encode()).digest(length=4 * int(np.prod(shape))), "<u4")
        return (words / 2.0**31 - 1).reshape(shape)

    def network(seed: int) -> dict[str, tuple[str, np.ndarray]]:
        shapes = {"conv1.weight": (16, 3, 7, 7), "layer1.0.conv1.weight": (16, 16, 3, 3)}
        shapes |= {"layer2.0.conv1.weight": (32, 16, 3, 3), "layer2.0.conv2.weight": (600, 512, 1, 1)}
        shapes |= {"fc.weight": (10, 32), "fc.bias": (10,)}
        for prefix, channels in (("bn1", 16), ("layer1.0.bn1", 16), ("layer2.0.bn1", 32)):
            shapes |= {f"{prefix}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
        found = {name: values(name, shape, seed) for name, shape in shapes.items()}
        found |= {name: np.abs(x) + 0.1 for name, x in found.items() if name.endswith("running_var")}
        tensors = {name: ("F32", x.astype("<f4")) for name, x in sorted(found.items())}
        return tensors | {"bn1.num_batches_tracked": ("I64", np.array(7, "<i8"))}

    def dtypes(seed: int) -> dict[str, tuple[str, np.ndarray]]:
        floats = {f"w.{name}": (name, values(name, (40, 30), seed).astype(kind)) for name, kind in DTYPES.items()}
        whole = np.arange(24).reshape(4, 6)
        return floats | {
            "i.I32": ("I32", whole.astype("<i4")),
            "i.U8": ("U8", whole.astype("u1")),
            "i.BOOL": ("BOOL", whole > 7),
        }

    write(folder / "A.safetensors", network(1), {"format": "pt", "author": "someone else"})
    write(folder / "B.safetensors", network(2))
    write(folder / "D.safetensors", dtypes(1))
    write(folder / "E.safetensors", dtypes(2))
    (folder / "map.json").write_text('{"first": ["conv1.*", "bn1.*"], "body": ["layer*"], "last": ["fc.*"]}')
    (folder / "shards").mkdir()
    placed: dict[str, str] = {}
    for i, seeds in enumerate(("b", "cfl")):
        tensors = {name: tensor for name, tensor in network(1).items() if name.startswith(tuple(seeds))}
        write(folder / "shards" / f"s{i}.safetensors", tensors)
        placed |= dict.fromkeys(tensors, f"s{i}.safetensors")
    (folder / "shards" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


def digest(path: Path) -> str:
    """BLAKE3 of a file, or of the files of a folder by name; with versions left out, as they are not all as long."""
    if path.is_dir():
        return blake3("".join(file.name + digest(file) for file in sorted(path.iterdir())).encode()).hexdigest()
    content = re.sub(rb'\\"version\\":\\"[^"\\]*\\"', b"", path.read_bytes())
    return blake3(content).hexdigest()


@pytest.fixture(scope="module")
def sources(tmp_path_factory, invoke):
    folder = tmp_path_factory.mktemp("sources")
    inputs(folder)
    invoke(*["init", "cbr_tiny", "--width", "0.05", "--seed", "8", "-o"], folder / "C.safetensors")
    return folder


@pytest.mark.parametrize("line", RECORDED)
def test_the_bytes_are_those_that_were_recorded(line, sources, tmp_path, monkeypatch, invoke, shell):
    if "test_vit" in line and "GenuineIntel" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("truncated normal weights come from MKL's inverse error function, which differs by processor")
    for source in sources.iterdir():
        (tmp_path / source.name).symlink_to(source)
    if "|" in line or "<(" in line:
        done = shell(f"wsurgery {line}" if "-o out/" in line else f"wsurgery {line} > out", tmp_path)
        assert done.returncode == 0, done.stderr.decode()
    else:
        monkeypatch.chdir(tmp_path)
        command, *words = shlex.split(line)
        invoke(command, *([] if "-o out/" in line else ["-o", "out"]), *words)
    assert digest(tmp_path / "out") == RECORDED[line]
