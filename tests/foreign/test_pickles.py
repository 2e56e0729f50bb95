"""Files that torch.save wrote: equal to what torch.load reads, and nothing that a hostile one can do."""

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import functools
import os
import pickle
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from wsurgery.errors import WsurgeryError
from wsurgery.foreign.pickles import TorchFile
from wsurgery.foreign.stored import StoredTensor

FORMATS = {"zip": True, "legacy": False}


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def save(request, tmp_path):
    def save(content: object, **options: object) -> Path:
        path = tmp_path / "saved.pth"
        torch.save(content, path, _use_new_zipfile_serialization=request.param, **options)
        return path

    return save


def read_all(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    with TorchFile(path) as file:
        return {
            name: (tensor.info(name).dtype, tensor.shape, bytes(file.read(tensor, name)))
            for name, tensor in file.content.items()
            if isinstance(tensor, StoredTensor)
        }


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_every_dtype_has_the_bytes_that_torch_reads(save):
    names = {
        torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
        torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
        torch.complex64: "C64",
    }  # fmt: skip
    path = save({name: (numbers(3, 5) * 10).abs().to(dtype) for dtype, name in names.items()})
    expected = torch.load(path, weights_only=True)
    assert read_all(path) == {name: (name, (3, 5), as_bytes(tensor)) for name, tensor in expected.items()}


def test_dtypes_without_a_storage_type_of_their_own(tmp_path):
    names = {
        torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64", torch.float8_e4m3fn: "F8_E4M3",
        torch.float8_e5m2: "F8_E5M2", torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
        torch.float8_e8m0fnu: "F8_E8M0",
    }  # fmt: skip
    tensors = {name: (numbers(3, 5) * 10).abs().to(dtype)[1:, ::2] for dtype, name in names.items()}
    torch.save(tensors, tmp_path / "new.pth")
    assert read_all(tmp_path / "new.pth") == {name: (name, (2, 3), as_bytes(tensors[name])) for name in tensors}


def test_every_layout_has_the_numbers_that_torch_reads(save):
    base = numbers(6, 4, 5)
    tied = numbers(7)
    layouts = {
        "whole": base,
        "transposed": base[0].T,
        "permuted": base.permute(1, 2, 0),
        "slice": base[2:4],
        "column": base[:, 1],
        "every second": base[::2, :, 1::2],
        "scalar": torch.tensor(3.5),
        "scalar in a storage": base[3, 2, 1],
        "empty": torch.empty(0, 3),
        "empty slice": base[6:],
        "expanded": torch.tensor([1.0, 2.0]).reshape(2, 1).expand(2, 9),
        "channels last": numbers(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "a": tied,
        "b": tied,
        "parameter": torch.nn.Parameter(numbers(2, 2)),
        "buffer": torch.nn.Buffer(numbers(2)),
    }
    path = save(layouts)
    found = read_all(path)
    for name, tensor in torch.load(path, weights_only=True).items():
        assert found[name] == ("F32", tuple(tensor.shape), as_bytes(tensor)), name
    assert list(found) == list(layouts)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(protocol, save):
    path = save({"w": numbers(3)}, pickle_protocol=protocol)
    assert read_all(path)["w"][2] == as_bytes(numbers(3))


def test_a_parameter_with_attributes_is_its_tensor(save):
    weight = torch.nn.Parameter(numbers(2, 3))
    weight.sharded = True
    assert read_all(save({"w": weight}))["w"] == ("F32", (2, 3), as_bytes(weight))


def test_a_network_s_own_state_dict_and_what_scripts_save_beside_it(save):
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    path = save(
        {
            "state_dict": network.state_dict(),
            "args": argparse.Namespace(lr=0.1, out=Path("runs/1")),
            "best": np.float64(0.93),
            "milestones": collections.Counter([30, 60]),
            "meters": collections.defaultdict(list, {"loss": [1.0, 2.0]}),
            "seen": {1, 2},
            "shape": torch.Size([3, 224, 224]),
            "device": torch.device("cpu"),
            "torch": torch.__version__,
            "optimizer": torch.optim.Adam(network.parameters()).state_dict(),
        }
    )
    with TorchFile(path) as file:
        assert list(file.content["state_dict"]) == list(network.state_dict())
        assert file.content["meters"] == {"loss": [1.0, 2.0]}
        assert file.content["milestones"] == {30: 1, 60: 1}
        assert file.content["seen"] == {1, 2}
        assert file.content["shape"] == (3, 224, 224)


class Calls:
    """Pickled as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda mark: Calls(os.system, f"touch {mark}"), "posix.system"),
        (lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"), "builtins.eval"),
        (lambda mark: Calls(open, str(mark), "w"), "io.open"),
        (lambda mark: Calls(os.mkdir, str(mark)), "posix.mkdir"),
        (lambda mark: Calls(__import__, "os"), "builtins.__import__"),
        (
            lambda mark: Calls(subprocess.check_output, ["touch", str(mark)]),
            "commands.check_output",
        ),  # as Python 2 called it
    ],
)
def test_code_is_refused_by_name_and_not_run(harm, named, save, tmp_path):
    mark = tmp_path / "ran"
    path = save({"w": numbers(2), "harm": harm(mark)})
    with pytest.raises(WsurgeryError, match=rf"saved\.pth asks for the Python object {named},.*sandbox") as raised:
        TorchFile(path)
    assert "\n" not in str(raised.value)
    assert not mark.exists()


class Harmful:
    """A class of this file, whose every way to come back from a pickle leaves a mark."""

    ran: ClassVar[list[str]] = []

    def __init__(self, *arguments):
        self.ran.append("init")

    def __new__(cls, *arguments):
        cls.ran.append("new")
        return super().__new__(cls)

    def __setstate__(self, state):
        self.ran.append("setstate")

    def __reduce__(self):
        return Harmful, (1,), {"attribute": 2}


@pytest.mark.parametrize(
    "thing",
    [
        lambda: np.arange(100_000),
        lambda: np.float64(0.5),
        lambda: np.random.default_rng(0),
        lambda: np.random.get_state(),
        lambda: np.array([{"a": 1}], object),
        lambda: datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
        lambda: argparse.Namespace(model="resnet18"),
        lambda: collections.UserDict(lr=0.1, layers=collections.UserList([1])),  # made as OmegaConf's containers are
        lambda: torch.nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)),
        lambda: torch.nn.Linear(2, 2),
        lambda: [1j, range(3), slice(1), decimal.Decimal(1), fractions.Fraction(1, 2), uuid.UUID(int=1)],
        lambda: collections.deque([1, 2], maxlen=2),
        lambda: Colour.RED,
        lambda: functools.partial(len, [1]),
        lambda: collections.ChainMap({"a": 1}),
        lambda: Calls(getattr, {}, "clear"),
        lambda: Harmful(),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_an_object_beside_the_weights_is_inert(thing, protocol, save):
    made = thing()
    try:
        path = save({"w": numbers(3), "thing": made}, pickle_protocol=protocol)
    except (pickle.PicklingError, AttributeError):
        pytest.skip("cannot be pickled")
    Harmful.ran.clear()
    assert read_all(path) == {"w": ("F32", (3,), as_bytes(numbers(3)))}
    assert Harmful.ran == []


class Colour(enum.Enum):
    RED = 1


def test_an_object_cannot_set_attributes_on_what_is_allowed(tmp_path):
    # BUILD with a slot state is setattr on whatever lies on the stack, here a function of the reader itself.
    path = tmp_path / "forged.pth"
    forged = b"\x80\x02ctorch._utils\n_rebuild_parameter\nN}X\x04\x00\x00\x00evilK\x01s\x86b."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("forged/data.pkl", forged)
    with TorchFile(path) as file:
        assert callable(file.content)
        assert not hasattr(file.content, "evil")


class Forged(Calls):
    """A tensor with numbers that torch would not write, in a real storage of 12 bytes."""

    def __init__(self, offset, shape, stride):
        storage = torch.zeros(12, dtype=torch.uint8).untyped_storage()
        super().__init__(torch._utils._rebuild_tensor_v2, storage, offset, shape, stride, False, {})


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (1, (3, 4), (4, 1)),
        (-1, (3,), (1,)),
        (0, (3,), (-1,)),
        (0, (-3,), (1,)),
        (0, (13,), (1,)),
        (0, (2,), (12,)),
        (0, (2, 2), (2**62, 1)),
        (0, (2**70,), (0,)),
        (0, (2**40,), (0,)),
        (0, (2**30, 2**30), (0, 0)),
        (0, (3,), ()),
        (0, (1,) * 65, (1,) * 65),
        (0, ("3",), (1,)),
        (0, (1.5,), (1,)),
        ("0", (3,), (1,)),
    ],
)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(offset, shape, stride, save):
    with TorchFile(save({"w": Forged(offset, shape, stride)})) as file, pytest.raises(WsurgeryError, match="w"):
        file.content["w"].info("w")


def test_a_stride_along_a_single_element_may_be_anything(save):
    path = save({"w": Forged(2, (1, 3, 1), (2**62, 2, 2**62))})
    assert read_all(path)["w"] == ("U8", (1, 3, 1), bytes(3))


def rezip(path: Path, change, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in change(members).items():
            archive.writestr(name, data)


@pytest.fixture
def zipped(tmp_path):
    path = tmp_path / "saved.pth"
    torch.save({"layer.weight": numbers(300), "layer.bias": numbers(5)}, path)
    return path


def test_a_compressed_archive_reads_the_same(zipped):
    before = read_all(zipped)
    rezip(zipped, lambda members: members, zipfile.ZIP_DEFLATED)
    assert read_all(zipped) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: {n: d for n, d in m.items() if not n.endswith("data/0")}, "layer.weight misses its member data/0"),
        (lambda m: m | {"saved/data/0": m["saved/data/0"][:-4]}, "layer.weight has a broken storage 0: 1196 bytes"),
        (lambda m: m | {"saved/data/0": bytes(4000)}, "layer.weight has a broken member saved/data/0 of 4000 bytes"),
        (lambda m: {n: d for n, d in m.items() if not n.endswith("pkl")}, "0 data.pkl"),
        (lambda m: m | {"other/data.pkl": b""}, "2 data.pkl"),
        (lambda m: m | {"saved/byteorder": b"big"}, "big-endian"),
        (lambda m: m | {"saved/constants.pkl": b""}, "TorchScript archive"),
    ],
)
def test_an_archive_with_members_missing_or_wrong(change, words, zipped):
    rezip(zipped, change)
    with pytest.raises(WsurgeryError, match=words) as raised:
        read_all(zipped)
    assert str(raised.value).startswith(str(zipped))


def test_a_member_that_lies_about_its_size_takes_no_memory(zipped):
    content = zipped.read_bytes()
    size = (1200).to_bytes(4, "little")
    zipped.write_bytes(content.replace(size * 2, (0xFFFFFFF0).to_bytes(4, "little") * 2))
    assert zipped.read_bytes() != content
    with pytest.raises(WsurgeryError, match="has a broken member saved/data/0 of 4294967280 bytes"):
        read_all(zipped)


def test_a_pickle_that_names_a_huge_memo_index_takes_no_memory(zipped):
    rezip(zipped, lambda members: members | {"saved/data.pkl": b"\x80\x02]r\xff\xff\xff\x7f."})
    limit = (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from pathlib import Path\nfrom wsurgery.foreign.pickles import TorchFile\n"
        "print(TorchFile(Path(sys.argv[1])).content)"
    )
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", limit, zipped], capture_output=True, env=env, check=False)
    assert done.stdout == b"[]\n", done.stderr.decode()


HOSTILE = {
    "a key that takes for ever": b"\x80\x02})2\x86" + b"2\x86" * 120 + b"Ns.",
    "three gigabytes": b"\x80\x05\x96" + (3 * 10**9).to_bytes(8, "little") + b"x.",
    "a tower of subclasses": b"\x80\x02](ctorch._tensor\n_rebuild_from_type_v2\nNh\x00Ntq\x00.",
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)
def test_a_hostile_pickle_is_one_line(kind, zipped, tmp_path):
    path = tmp_path / "hostile.pth"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", HOSTILE[kind])
    else:
        path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + HOSTILE[kind])
    with pytest.raises(WsurgeryError, match=r"hostile\.pth [^\n]+$"):
        TorchFile(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_arrays_has_their_numbers(protocol, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "small": rng.normal(size=(3, 4)).astype(np.float32),
        "large": rng.normal(size=(300, 80)),
        "fortran": np.asfortranarray(rng.normal(size=(200, 90)).astype(np.float16)),
        "bytes": np.arange(256, dtype=np.uint8),
        "scalar": np.array(7),
        "empty": np.zeros((0, 3), np.float32),
    }
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}, protocol))
    with TorchFile(path) as file:
        found = file.content["model"]
        for name, array in arrays.items():
            tensor = found[name].tensor
            info = tensor.info(name)
            assert info.shape == array.shape
            assert bytes(file.read(tensor, name)) == array.tobytes(), name


def test_arrays_that_are_not_of_numbers_are_no_tensors(tmp_path):
    odd = {"object": np.array([{}], object), "text": np.array(["a"]), "big": np.arange(3, dtype=">f4")}
    path = tmp_path / "odd.pkl"
    path.write_bytes(pickle.dumps(odd))
    with TorchFile(path) as file:
        assert all(value.tensor is None for value in file.content.values())


def test_an_array_whose_bytes_do_not_fit_its_shape_is_refused(tmp_path):
    path = tmp_path / "forged.pkl"
    honest = pickle.dumps({"w": np.zeros(5, np.float64)}, 3)
    path.write_bytes(honest.replace(b"K\x05\x85", b"K\x06\x85"))
    assert path.read_bytes() != honest
    with TorchFile(path) as file:
        tensor = file.content["w"].tensor
        tensor.info("w")
        with pytest.raises(WsurgeryError, match="broken array: 40 bytes, not 48"):
            file.read(tensor, "w")
