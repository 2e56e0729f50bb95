"""Every dtype of the format, and every odd shape, through every surgery command."""

import json
import re

import numpy as np
import pytest
import safetensors
import torch
from safetensors.numpy import save_file

from wsurgery.checkpoint.dtypes import BITS, is_float

INTEGERS = [dtype for dtype in BITS if dtype[0] in "IU"] + ["BOOL"]
SUB_BYTE = [dtype for dtype, bits in BITS.items() if bits < 8]
UNTOUCHED = [*INTEGERS, "C64", "F8_E8M0"]  # no real numbers to compute with: always copied
TORCH = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
NARROW = [dtype for dtype in TORCH if BITS[dtype] <= 16]

# Every command that edits the part named by {part}; X is the input, Y has the same names, dtypes and shapes.
EDITS = {
    "meanvar": "meanvar X {part}",
    "meanvar bn": "meanvar X --bn meanvar {part}",
    "shuffle": "shuffle X {part}",
    "sample": "sample X {part}",
    "meanvar per": "meanvar X --per filter {part}",
    "shuffle within": "shuffle X --within filter --axis in {part}",
    "covariance": "covariance X --of channel {part}",
    "spectrum": "spectrum X {part}",
    "scale": "scale X --by 1.7 {part}",
    "add-noise": "add-noise X --std 0.3 {part}",
    "add-noise relative": "add-noise X --std 0.3 --relative {part}",
    "cast": "cast X --to fp32 {part}",
    "low-rank": "low-rank X --energy 0.5 {part}",
    "prune": "prune X --sparsity 0.5 {part}",
    "prune all": "prune X --sparsity 0.5 --scope all --by random {part}",
    "average": "average X Y {part}",
    "lerp": "lerp X Y --t 0.3 {part}",
    "merge": "merge X Y --base Y --method ties {part}",
    "transfuse": "transfuse Y --into X {part}",
}
CHANGES_EQUAL_VALUES = (
    "scale",
    "cast",
    "add-noise",
    "lerp",
    "spectrum",
    "transfuse rest",
    "low-rank",
    "prune",
    "prune all",
)
COPIES = {
    "reset-bn": "reset-bn X",
    "gabor": "gabor X",
    "freeze-spec": "freeze-spec X --only *",
    "rename": "rename ^fc\\. head. X",
    "drop": "drop X --only fc.*",
    "keep": "keep X --except fc.*",
    "new-head": "new-head X --num-classes 3",
    "adapt": "adapt X --in-chans 4",
    "transfuse all": "transfuse X --except fc.* --into Y",
    "transfuse rest": "transfuse X --except fc.*",
    "convert": "convert X --keep-names",
    "average of itself": "average X X --weights 0.5,0.5 --only fc.*",
}


def write(path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """Write a file by the specification: name → dtype, shape, bytes."""
    header, content = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(content), len(content) + len(data)]}
        content += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def read(path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Read a file with the reference library, a folder by its shards: name → dtype, shape, bytes."""
    if path.is_dir():
        shards = [read(shard) for shard in path.glob("*.safetensors")]
        return {name: tensor for shard in shards for name, tensor in shard.items()}
    found = safetensors.deserialize(path.read_bytes())
    return {name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"])) for name, entry in found}


def network(seed: int) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """A first convolution, a batch norm and a classifier, in float32."""
    rng = np.random.default_rng(seed)
    shapes = {"conv1.weight": (4, 3, 7, 7), "fc.weight": (10, 4), "fc.bias": (10,)}
    shapes |= {f"bn1.{part}": (4,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {
        name: ("F32", shape, np.abs(rng.normal(size=shape)).astype("<f4").tobytes()) for name, shape in shapes.items()
    }


def every_dtype(seed: int) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Tensors of each dtype with arbitrary bits: a matrix, a scalar, and two without elements."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for dtype, bits in BITS.items():
        for name, shape in (("weight", (4, 8)), ("scalar", ()), ("empty", (0,)), ("hollow", (3, 0, 2))):
            size = int(np.prod(shape)) * bits
            if size % 8 == 0:
                tensors[f"{dtype}.{name}"] = (dtype, shape, rng.bytes(size // 8))
    return tensors


def odd_shapes(dtypes, seed: int = 0) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Tensors of each dtype that have little to compute with: no, one, or only equal elements."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for dtype in dtypes:
        one = (
            torch.tensor(1.5).to(TORCH[dtype]).reshape(1).view(torch.uint8).numpy().tobytes()
            if dtype in TORCH
            else None
        )
        for name, shape in (
            ("scalar", ()),
            ("one.weight", (1, 1)),
            ("empty.weight", (0,)),
            ("hollow.weight", (3, 0, 2)),
            ("equal.weight", (4, 6)),
            ("equal.bias", (4,)),
        ):
            size = int(np.prod(shape))
            data = one * size if one else rng.bytes(size * BITS[dtype] // 8)
            tensors[f"{dtype}.{name}"] = (dtype, shape, data)
    return tensors


@pytest.fixture
def run(invoke, tmp_path, monkeypatch):
    """Run a command line in a folder, its result going to `out`."""
    monkeypatch.chdir(tmp_path)

    def run(line: str, check: bool = True):
        return invoke(*line.split(), "-o", "out", "--force", check=check)

    return run


def test_the_dtypes_are_those_of_the_reference_library():
    text = json.dumps({"a": {"dtype": "unheard of", "shape": [], "data_offsets": [0, 0]}}).encode()
    with pytest.raises(safetensors.SafetensorError) as refused:
        safetensors.deserialize(len(text).to_bytes(8, "little") + text)
    assert set(re.findall(r"`(\w+)`", str(refused.value))) == set(BITS)


@pytest.mark.parametrize("line", [*EDITS.values(), *COPIES.values()], ids=[*EDITS, *COPIES])
def test_what_is_not_selected_passes_through_bit_for_bit(line, run, tmp_path):
    x = every_dtype(0)
    write(tmp_path / "X", {**network(0), **x})
    write(tmp_path / "Y", {**network(1), **(x if "--into Y" in line else every_dtype(1))})
    run(line.format(part="--only fc.*"))
    made = read(tmp_path / "out")
    assert {name: made[name] for name in x} == x
    if not line.startswith("convert"):
        (tmp_path / "out").unlink()
        (tmp_path / "out").mkdir()
        run(line.format(part="--only fc.*") + " --shard-size 500")
        assert len(list((tmp_path / "out").iterdir())) > 3
        made = read(tmp_path / "out")
        assert {name: made[name] for name in x} == x


@pytest.mark.parametrize("line", [*EDITS.values(), "transfuse X --only fc.*"], ids=[*EDITS, "transfuse rest"])
def test_integers_booleans_and_scales_are_never_computed_with(line, run, tmp_path):
    kept = {name: value for name, value in every_dtype(0).items() if value[0] in UNTOUCHED}
    kept |= {
        "bn1.num_batches_tracked": ("I64", (), b"\7" + bytes(7)),
        "embeddings.position_ids": ("I64", (1, 512), np.arange(512).tobytes()),
        "attention.bias": ("BOOL", (8, 8), bytes([0, 1] * 32)),
    }
    if line.startswith("transfuse X"):  # batch norm's counter starts anew, and for the others no fresh values exist
        kept = {name: value for name, value in kept.items() if value[0] in INTEGERS and "bn1" not in name}
    write(tmp_path / "X", {**network(0), **kept})
    write(tmp_path / "Y", {**network(1), **kept})
    resamples = line.split()[0] in ("meanvar", "shuffle", "sample", "covariance", "spectrum") and "--bn" not in line
    run(line.format(part="--only *") + (" --bn keep" if resamples else ""))
    made = read(tmp_path / "out")
    assert {name: made[name] for name in kept} == kept


OF_ONE_FILE = [line for line in EDITS.values() if " Y" not in line and not line.startswith("cast")]


@pytest.mark.parametrize("line", [*OF_ONE_FILE, "transfuse X --only fc.*", "transfuse X --only fc.* --rest meanvar"])
def test_what_a_network_computes_from_its_settings_changes_only_where_it_is_chosen(line, run, tmp_path):
    """Frequencies of rotary embeddings and GPT-2's causal mask, as files of those networks keep them."""
    rows = np.tril(np.ones((8, 8), "<f4"))
    kept = {
        "h.0.attn.rotary.inv_freq": ("F32", (8,), (10000 ** -(np.arange(8) / 8)).astype("<f4").tobytes()),
        "h.0.attn.bias": ("F32", (1, 1, 8, 8), rows.tobytes()),
        "h.0.attn.masked_bias": ("F32", (), np.float32(-1e4).tobytes()),
    }
    write(tmp_path / "X", {**network(0), **kept})
    run(line.format(part=""))
    made = read(tmp_path / "out")
    assert {name: made[name] for name in kept} == kept
    if line in ("scale X --by 1.7 {part}", "shuffle X {part}", "meanvar X {part}"):
        run(line.format(part="--role buffer"))
        made = read(tmp_path / "out")
        assert made["h.0.attn.rotary.inv_freq"] != kept["h.0.attn.rotary.inv_freq"]
        assert made["fc.weight"] == network(0)["fc.weight"]


@pytest.mark.parametrize("name", [*EDITS, *COPIES])
def test_tensors_with_nothing_to_compute_work_everywhere(name, run, tmp_path):
    line = {**EDITS, **COPIES, "transfuse rest": "transfuse X --only fc.*"}[name]
    odd = odd_shapes(TORCH if name == "transfuse rest" else [dtype for dtype, bits in BITS.items() if bits >= 8])
    for path, seed in (("X", 0), ("Y", 1)):
        write(tmp_path / path, {**network(seed), **odd})
    run(line.format(part="--only *"))
    made = read(tmp_path / "out")
    for key, (dtype, shape, data) in odd.items():
        found, *rest = made[key]
        assert (found, rest[0]) == ("F32" if name == "cast" and dtype in TORCH else dtype, shape), key
        if dtype not in TORCH or name not in CHANGES_EQUAL_VALUES:
            # No spread: the mean, the only permutation, noise in proportion, the mean of two that agree.
            assert rest[1] == data, key
            continue
        values = values_of(found, rest[1])
        if name in ("cast", "lerp", "low-rank"):
            np.testing.assert_allclose(values, 1.5, rtol=2e-15)
        elif name.startswith("prune"):
            assert set(values) <= {0, 1.5}
        elif name == "scale":
            np.testing.assert_allclose(values, 1.5 * 1.7, rtol=torch.finfo(TORCH[dtype]).eps)
        else:
            assert np.isfinite(values).all()


def values_of(dtype: str, data: bytes) -> np.ndarray:
    """Decode with torch, to float64."""
    return torch.frombuffer(bytearray(data), dtype=TORCH[dtype]).double().numpy() if data else np.empty(0)


def nearest(x: np.ndarray, dtype: str) -> np.ndarray:
    """Round float64 once to the nearest of all finite values of `dtype`, ties to the even bit pattern."""
    unsigned = np.uint8 if BITS[dtype] == 8 else np.uint16
    patterns = np.arange(1 << BITS[dtype], dtype=np.uint32).astype(unsigned)
    table = values_of(dtype, patterns.tobytes())
    use = np.isfinite(table) & ~((table == 0) & (patterns != 0))
    table, patterns = table[use], patterns[use]
    order = np.argsort(table)
    table, patterns = table[order], patterns[order]
    above = np.clip(np.searchsorted(table, x), 1, len(table) - 1)
    low, high = table[above - 1], table[above]
    up = (x - low > high - x) | ((x - low == high - x) & (patterns[above] % 2 == 0))
    return np.where(up, high, low)


def random_values(dtype: str, size: int, seed: int) -> bytes:
    """Values well inside the range of every dtype, negative and subnormal ones too."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(0.2, 1.0, size) * 10.0 ** rng.integers(-3, 1, size))
    return x.float().to(TORCH[dtype]).view(torch.uint8).numpy().tobytes()


N = 300_000  # more than a chunk


@pytest.mark.parametrize("dtype", NARROW)
def test_arithmetic_is_done_wide_and_rounded_once(dtype, run, tmp_path):
    a, b = (random_values(dtype, N, seed) for seed in (0, 1))
    write(tmp_path / "X", {"w.weight": (dtype, (N,), a)})
    write(tmp_path / "Y", {"w.weight": (dtype, (N,), b)})
    write(tmp_path / "wide", {"w.weight": ("F32", (N,), values_of(dtype, a).astype("<f4").tobytes())})
    x, y = values_of(dtype, a), values_of(dtype, b)

    def result(line: str, of: str = dtype) -> np.ndarray:
        run(line)
        found, shape, data = read(tmp_path / "out")["w.weight"]
        assert (found, shape) == (of, (N,))
        return values_of(of, data)

    scaled = np.float32(x) * np.float32(1.7)
    np.testing.assert_array_equal(result("scale X --by 1.7"), nearest(scaled.astype(float), dtype))
    by_torch = torch.from_numpy(scaled).to(TORCH[dtype]).double().numpy()
    np.testing.assert_array_equal(result("scale X --by 1.7"), by_torch)
    np.testing.assert_array_equal(result("average X Y"), nearest((x + y) / 2, dtype))
    np.testing.assert_array_equal(result("lerp X Y --t 0.3"), nearest((1 - 0.3) * x + 0.3 * y, dtype))
    for line in ("add-noise {} --std 0.5 --seed 3", "meanvar {} --seed 3", "add-noise {} --std 0.5 --relative"):
        wide = result(line.format("wide"), "F32")
        np.testing.assert_array_equal(result(line.format("X")), nearest(wide, dtype))
    np.testing.assert_array_equal(result("cast X --to fp32", "F32"), x)
    drawn = result("meanvar X")
    assert abs(drawn.mean() - x.mean()) < 5 * x.std() / N**0.5 + 0.002 * x.std()
    assert abs(drawn.std() / x.std() - 1) < 0.01
    for line in ("shuffle X", "sample X"):
        assert set(result(line)) <= set(x)


TO = {"BF16": "bf16", "F16": "fp16", "F8_E4M3": "fp8_e4m3", "F8_E5M2": "fp8_e5m2"}


@pytest.mark.parametrize("dtype", TO)
def test_cast_is_torchs(dtype, run, tmp_path):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=N) * 10.0 ** rng.integers(-6, 1, N)).astype(np.float32)
    ties = np.float32([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 1.0625, 1.1875, 1.125, 1.375, 0.0, -0.0])
    x[: len(ties)] = ties
    save_file({"w": x}, tmp_path / "X")
    run(f"cast X --to {TO[dtype]}")
    made = read(tmp_path / "out")["w"]
    assert made == (dtype, (N,), torch.from_numpy(x).to(TORCH[dtype]).view(torch.uint8).numpy().tobytes())
    np.testing.assert_array_equal(values_of(dtype, made[2]), nearest(x.astype(float), dtype))


@pytest.mark.parametrize(
    ("source", "value", "to"), [("BF16", 65536.0, "fp16"), ("F16", 464.5, "fp8_e4m3"), ("F64", 3.5e38, "fp32")]
)
def test_the_smallest_overflow_of_a_cast_is_reported(source, value, to, run, tmp_path):
    data = torch.tensor([1.0, value, -value], dtype=torch.float64).to(TORCH[source]).view(torch.uint8).numpy().tobytes()
    write(tmp_path / "X", {"w": (source, (3,), data)})
    assert "2 finite values in 1 tensors became" in run(f"cast X --to {to}").stderr


@pytest.mark.parametrize("dtype", NARROW)
def test_weights_that_fill_the_range_of_their_dtype_are_resampled_without_nan(dtype, run, tmp_path):
    largest = torch.finfo(TORCH[dtype]).max
    x = np.linspace(-largest, largest, 1000)
    data = torch.from_numpy(x).to(TORCH[dtype]).view(torch.uint8).numpy().tobytes()
    write(tmp_path / "X", {"w.weight": (dtype, (1000,), data)})
    run("meanvar X")
    made = values_of(dtype, read(tmp_path / "out")["w.weight"][2])
    assert np.isfinite(made).all()
    assert abs(made).max() == largest
    assert made.std() == pytest.approx(x.std(), rel=0.1)


@pytest.mark.parametrize("line", [*EDITS.values(), *COPIES.values(), "prune X --zeros-of Y", "view X"])
@pytest.mark.parametrize(("dtype", "bits"), [("BF16", 0x7F81), ("F16", 0x7C01), ("F32", 0x7F800001)])
def test_a_signalling_nan_ends_in_no_more_than_a_line(dtype, bits, line, invoke, tmp_path, monkeypatch):
    """Numpy warns of one; pytest makes an error of that."""
    monkeypatch.chdir(tmp_path)
    number = bits.to_bytes(BITS[dtype] // 8, "little")
    signalling = {
        name: (dtype, shape, number * (len(data) * 8 // BITS[dtype])) for name, (_, shape, data) in network(0).items()
    }
    for path in ("X", "Y"):
        write(tmp_path / path, signalling)
    done = invoke(*line.format(part="--only *").split(), "-o", "out.html", check=False)
    assert done.exit_code in (0, 1), done.stderr


@pytest.mark.parametrize("line", [line for key, line in EDITS.items() if key != "transfuse"])
@pytest.mark.parametrize("dtype", SUB_BYTE)
def test_elements_smaller_than_a_byte_are_refused_with_a_remedy_when_selected(dtype, line, run, tmp_path):
    packed = {f"packed{n}.weight": (dtype, (4, 8), bytes(range(4 * BITS[dtype]))) for n in ("", 2)}  # two in a batch
    for path, seed in (("X", 0), ("Y", 1)):
        write(tmp_path / path, {**network(seed), **packed})
    done = run(line.format(part=""), check=False)
    assert done.exit_code == 1
    assert f"packed.weight: {dtype} elements are smaller than a byte" in done.stderr
    assert "--except" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    run(line.format(part="--except packed*"))
    assert packed.items() <= read(tmp_path / "out").items()


@pytest.mark.parametrize("line", ["permute X --seed 1", "align X --to Y"])
@pytest.mark.parametrize("dtype", SUB_BYTE)
def test_units_of_packed_elements_do_not_change_places(dtype, line, run, tmp_path):
    shapes = {"fc0.bias": (8,), "fc1.weight": (2, 8), "fc1.bias": (2,)}
    tensors = {name: ("F32", shape, bytes(4 * int(np.prod(shape)))) for name, shape in shapes.items()}
    for path in "XY":
        write(tmp_path / path, {**tensors, "fc0.weight": (dtype, (8, 4), bytes(4 * BITS[dtype]))})
    done = run(line, check=False)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert f"X: fc0.weight is {dtype}, whose elements are smaller than a byte" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [*SUB_BYTE, "C64", "F8_E8M0"])
def test_no_fresh_values_are_drawn_for_what_has_no_distribution(dtype, run, tmp_path):
    packed = {"packed.weight": (dtype, (4, 8), bytes(range(4 * BITS[dtype])))}
    write(tmp_path / "X", {**network(0), **packed})
    done = run("transfuse X --only fc.*", check=False)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert f"packed.weight is {dtype}" in done.stderr
    assert "--into" in done.stderr
    write(tmp_path / "Y", {**network(1), "packed.weight": ("F32", (4, 8), bytes(128))})
    done = run("transfuse X --only packed.weight --into Y", check=False)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert f"packed.weight is {dtype} in the source and F32 in --into" in done.stderr


def test_gabor_filters_are_not_put_into_integers(run, tmp_path):
    write(tmp_path / "X", {**network(0), "conv1.weight": ("I8", (4, 3, 7, 7), bytes(588))})
    done = run("gabor X", check=False)
    assert (done.exit_code, done.stderr) == (
        1,
        "wsurgery gabor: conv1.weight is int8: Gabor filters need floating-point weights\n",
    )


def test_show_diff_and_digest_take_every_dtype(invoke, tmp_path):
    tensors = {**every_dtype(0), **odd_shapes(BITS.keys() - SUB_BYTE)}
    write(tmp_path / "X", tensors)
    changed = {
        name: (dtype, shape, data and data[:-1] + bytes([data[-1] ^ 1]))
        for name, (dtype, shape, data) in tensors.items()
    }
    write(tmp_path / "Y", changed)
    shown = json.loads(invoke("show", tmp_path / "X", "--stats", "--json").stdout)
    for row in shown["tensors"]:
        assert ("mean" in row) == (is_float(row["dtype"]) and BITS[row["dtype"]] >= 8), row["name"]
    rows = json.loads(invoke("diff", tmp_path / "X", tmp_path / "Y", "--json").stdout)["tensors"]
    assert {row["name"] for row in rows} == set(tensors)
    for row in rows:
        _, shape, data = tensors[row["name"]]
        assert row["identical"] == (not data)
        elements = int(np.prod(shape))
        assert row["equal"] == (1 - 1 / elements if elements else 1)
    same = json.loads(invoke("diff", tmp_path / "X", tmp_path / "X", "--json").stdout)
    assert same["identical"] is True
    x, y = (json.loads(invoke("digest", tmp_path / side, "--json").stdout)["tensors"] for side in "XY")
    assert {a["name"] for a, b in zip(x, y, strict=True) if a["blake3"] == b["blake3"]} == {
        name for name, (_, _, data) in tensors.items() if not data
    }
