"""The edits in Python give the bytes of the shell, in one pass over their sources."""

import shlex
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

import wsurgery
from tests.conftest import held, small_resnet
from wsurgery.checkpoint.reader import Checkpoint
from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.registry import edits

# Edit → what stands behind `wsurgery`, and the same in Python; A is what is opened.
METHODS = {
    "adapt": ("A --in-chans 1", lambda a: a.adapt(in_chans=1)),
    "add-noise": ("A --std 0.1 --relative --seed 3", lambda a: a.add_noise(std=0.1, relative=True, seed=3)),
    "align": ("D --to E", lambda a: wsurgery.open("D").align(to="E")),
    "average": ("A B --weights 0.25,0.75", lambda a: a.average("B", weights=[0.25, 0.75])),
    "cast": ("A --to bf16 --only 'layer*'", lambda a: a.cast(to="bf16", only="layer*")),
    "covariance": ("A --of space --bn keep --seed 1", lambda a: a.covariance(of="space", bn="keep", seed=1)),
    "drop": ("A --blocks head", lambda a: a.drop(blocks="head")),
    "freeze-spec": ("A --upto block1", lambda a: a.freeze_spec(upto="block1")),
    "gabor": ("A", lambda a: a.gabor()),
    "keep": ("A --except '*.bias'", lambda a: a.keep(except_=["*.bias"])),
    "lerp": ("A B --t 0.25", lambda a: a.lerp("B", t=0.25)),
    "low-rank": ("A --energy 0.5", lambda a: a.low_rank(energy=0.5)),
    "meanvar": ("A --bn meanvar --seed 1", lambda a: a.meanvar(bn="meanvar", seed=1)),
    "merge": (
        "A --base B --method dare --except '*.running_var' --seed 3",
        lambda a: a.merge(base="B", method="dare", except_="*.running_var", seed=3),
    ),
    "new-head": ("A --num-classes 3 --seed 2", lambda a: a.new_head(num_classes=3, seed=2)),
    "prune": ("A --sparsity 0.8 --scope all", lambda a: a.prune(sparsity=0.8, scope="all")),
    "permute": ("D --seed 5", lambda a: wsurgery.open("D").permute(seed=5)),
    "rename": (r"'^layer(\d)' 'l\1' A", lambda a: a.rename(r"^layer(\d)", r"l\1")),
    "reset-bn": ("A --upto block1", lambda a: a.reset_bn(upto="block1")),
    "sample": ("A --blocks conv1,head", lambda a: a.sample(blocks=["conv1", "head"])),
    "scale": ("A --by 2 --role conv", lambda a: a.scale(by=2, role="conv")),
    "set-metadata": (
        "A --set a=b --set c= --delete author",
        lambda a: a.set_metadata(set_=["a=b", "c="], delete="author"),
    ),
    "shuffle": ("A --block-map map.json --upto body", lambda a: a.shuffle(block_map="map.json", upto="body")),
    "spectrum": ("A --keep right --seed 5", lambda a: a.spectrum(keep="right", seed=5)),
    "transfuse": ("B --upto block1 --into A", lambda a: a.transfuse("B", upto="block1")),
}
FUNCTIONS = {
    "average": ("A B A", lambda: wsurgery.average("A", "B", "A")),
    "convert": ("net.pth --key state_dict", lambda: wsurgery.convert("net.pth", key="state_dict")),
    "init": (
        "cbr_tiny --width 0.05 --arg last_pool=False --seed 3",
        lambda: wsurgery.init("cbr_tiny", width=0.05, arg=["last_pool=False"], seed=3),
    ),
    "join": ("A C", lambda: wsurgery.join("A", "C")),
    "lerp": ("A B --t 0.5", lambda: wsurgery.lerp("A", "B", t=0.5)),
    "merge": ("A B --method slerp", lambda: wsurgery.merge("A", "B", method="slerp")),
    "transfuse": (
        "A --upto conv1 --rest meanvar --bn keep --seed 4",
        lambda: wsurgery.transfuse("A", upto="conv1", rest="meanvar", bn="keep", seed=4),
    ),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with checkpoints A and B, C with another tensor, MLPs D and E, and a network that torch saved."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("AB"):
        save_file(small_resnet(seed), name, metadata={"author": "someone else"})
    save_file({"decoder.weight": small_resnet()["fc.weight"]}, "C")
    for seed, name in enumerate("DE"):
        rng = np.random.default_rng(seed)
        save_file({f"{i}.weight": rng.normal(size=(9, 9 if i else 8)).astype("f4") for i in range(3)}, name)
    (tmp_path / "map.json").write_text('{"first": ["conv1.*", "bn1.*"], "body": ["layer*"], "last": ["fc.*"]}')
    torch.save({"state_dict": {name: torch.from_numpy(x) for name, x in small_resnet(2).items()}}, "net.pth")
    return tmp_path


def test_every_edit_is_here():
    # `fetch` needs a hub, tests/commands/test_fetch.py, and `recalibrate-bn` images, tests/training/test_recalibration.py.
    assert METHODS.keys() | FUNCTIONS.keys() | {"fetch", "recalibrate-bn"} == edits().keys()


@pytest.mark.parametrize("name", METHODS)
def test_a_chain_gives_the_bytes_of_the_pipe(name, here, shell):
    words, method = METHODS[name]
    done = shell(f"wsurgery {name} {words} | wsurgery meanvar --seed 7 | wsurgery scale --by 0.5 > pipe", here)
    assert done.returncode == 0, done.stderr.decode()
    chain = method(wsurgery.open("A")).meanvar(seed=7).scale(by=0.5)
    assert held(here) == []
    chain.write("chain")
    assert held(here) == []
    assert (here / "chain").read_bytes() == (here / "pipe").read_bytes()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_gives_the_bytes_of_the_pipe(name, here, shell):
    words, function = FUNCTIONS[name]
    done = shell(f"wsurgery {name} {words} < /dev/null | wsurgery shuffle --seed 7 > pipe", here)
    assert done.returncode == 0, done.stderr.decode()
    chain = function().shuffle(seed=7)
    for path in ("chain", "again"):  # it can be written twice
        assert held(here) == []
        chain.write(path)
        assert held(here) == []
        assert (here / path).read_bytes() == (here / "pipe").read_bytes()


@pytest.mark.parametrize(
    ("name", "words"), [(name, words) for of in (METHODS, FUNCTIONS) for name, (words, _) in of.items()]
)
def test_any_number_of_threads_gives_the_same_bytes(name, words, here, invoke):
    for threads in ("1", "8"):
        invoke(name, *shlex.split(words), "--threads", threads, "-o", threads)
    assert (here / "1").read_bytes() == (here / "8").read_bytes()


def test_an_input_may_be_a_chain_as_it_may_be_a_pipe(here, shell):
    line = "wsurgery shuffle A --seed 1 | wsurgery transfuse <(wsurgery scale B --by 2 | wsurgery cast --to bf16) --upto block1"
    assert shell(f"{line} | wsurgery average - <(wsurgery meanvar B) > pipe", here).returncode == 0
    donor, other = wsurgery.open("B").scale(by=2).cast(to="bf16"), wsurgery.open("B").meanvar()
    wsurgery.open("A").shuffle(seed=1).transfuse(donor, upto="block1").average(other).write("chain")
    assert (here / "chain").read_bytes() == (here / "pipe").read_bytes()


@pytest.mark.parametrize(
    "edit",
    [
        lambda a: a.drop(blocks="conv1"),
        lambda a: a.keep(only="layer2.*").scale(by=2),
        lambda a: a.transfuse("B", upto="block1"),
    ],
)
def test_what_a_later_edit_leaves_out_of_a_conversion_is_passed_over(edit, here):
    wsurgery.convert("net.pth").write("net")
    edit(wsurgery.open("net")).write("by file")
    edit(wsurgery.convert("net.pth")).write("chain")
    assert (here / "chain").read_bytes() == (here / "by file").read_bytes()


def test_shards_come_out_as_from_the_command(here, shell):
    lines = ("shuffle A -o s/ --shard-size 400kB", "scale s --by 2 -o t/", "sample s | wsurgery scale --by 2 -o u/")
    assert shell(" && ".join(f"wsurgery {line}" for line in lines), here).returncode == 0
    wsurgery.open("A").shuffle().write("s2/", shard_size="400kB")
    wsurgery.open("s").scale(by=2).write("t2/")
    wsurgery.open("s").sample().scale(by=2).write("u2/")
    for name in "stu":
        files = sorted(path.name for path in (here / name).iterdir())
        assert files == sorted(path.name for path in (here / f"{name}2").iterdir())
        for file in files:
            assert (here / name / file).read_bytes() == (here / f"{name}2" / file).read_bytes()


def test_a_chain_reads_each_tensor_once_and_only_when_it_is_written(here, monkeypatch):
    read: Counter[str] = Counter()
    monkeypatch.setattr(Checkpoint, "read", counted(Checkpoint.read, read))
    chain = wsurgery.open("A").meanvar(seed=1).shuffle(seed=2).transfuse("B", upto="conv1").scale(by=2).cast(to="fp16")
    assert not read
    chain.write("chain")
    assert set(read.values()) == {1}
    assert read.keys() == load_file("A").keys()


def counted(read, counts):
    def counting(self, tensor):
        counts[tensor.name] += 1
        return read(self, tensor)

    return counting


def test_importing_it_is_light():
    code = "import sys, wsurgery; wsurgery.open; print({'numpy', 'torch', 'typer'} & set(sys.modules))"
    light = "import sys, wsurgery; print({'numpy', 'torch', 'typer', 'wsurgery.pipeline'} & set(sys.modules))"
    for line, allowed in ((light, "set()"), (code, "{'typer'}")):
        assert subprocess.run([sys.executable, "-c", line], capture_output=True, text=True).stdout.strip() == allowed


@pytest.mark.parametrize("in_torch", [False, True])
def test_what_is_in_memory_is_edited_as_its_file_would_be(here, in_torch):
    arrays = small_resnet() | {"half": np.ones(5, ml_dtypes.bfloat16), "bytes": np.arange(3, dtype=np.uint8)}
    tensors = {name: torch.from_numpy(x) for name, x in small_resnet().items()}
    tensors |= {"half": torch.ones(5, dtype=torch.bfloat16), "bytes": torch.arange(3, dtype=torch.uint8)}
    save_torch(tensors, "memory")
    state = wsurgery.open(tensors if in_torch else arrays).meanvar(seed=4).state_dict(torch=in_torch)
    wsurgery.open("memory").meanvar(seed=4).write("file")
    expected = load_torch("file")
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        found = state[name] if in_torch else torch.from_numpy(np.asarray(state[name], dtype=np.float64))
        assert torch.equal(found.to(torch.float64), value.to(torch.float64)), name
    if in_torch:
        assert all(state[name].dtype == value.dtype for name, value in expected.items())


def test_a_view_that_is_negated_or_conjugate_has_the_values_that_torch_sees():
    x = torch.randn(3, 2, dtype=torch.complex64)
    state = {"conjugate": x.conj(), "negated": x.conj().imag, "both": x.conj().T}
    made = wsurgery.open(state).state_dict(torch=True)
    assert all(torch.equal(made[name], value) for name, value in state.items())


def test_a_networks_weights_go_out_and_come_back():
    network = wsurgery.init("cbr_tiny", width=0.05, num_classes=3, seed=1).load()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    other = wsurgery.open(network).scale(by=3, role="conv").load_into(network)
    assert other is network
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name] * 3 if name.endswith("conv.weight") else before[name])


def test_the_arrays_are_the_users_own(here):
    state = wsurgery.open("A").state_dict()
    state["fc.bias"][:] = 7
    assert (load_file("A")["fc.bias"] != 7).all()
    assert list(dict(wsurgery.open("A").tensors())) == wsurgery.open("A").names


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda a: a.scale(by=float("nan")), UsageError, "finite"),
        (lambda a: a.scale(by=2, upto="block9"), UsageError, "block9"),
        (lambda a: a.meanvar(bn="other"), UsageError, "identity, meanvar, keep"),
        (lambda a: a.add_noise(std=-1), UsageError, "at least 0"),
        (lambda a: a.drop(), UsageError, "which tensors"),
        (lambda a: a.transfuse("B", upto="conv1", rest="random"), UsageError, "choose one"),
        (lambda a: a.scale(), TypeError, "by"),
        (lambda a: a.scale(by=2, byte=3), TypeError, "byte"),
        (lambda a: a.nonsense(), AttributeError, "nonsense"),
        (lambda a: wsurgery.open("missing"), FileNotFoundError, "missing"),
        (lambda a: wsurgery.open(3), UsageError, "a int is no checkpoint"),
        (lambda a: a.write("x", threads=-1), UsageError, "threads -1"),
        (lambda a: a.state_dict(threads="2"), UsageError, "threads '2'"),
        (lambda a: wsurgery.open({1: np.ones(2)}), UsageError, "1 is no name"),
        (lambda a: wsurgery.open({"__metadata__": np.ones(2)}), UsageError, "is no name"),
        (lambda a: wsurgery.open({"\ud800": np.ones(2)}), UsageError, "is no name"),
        (lambda a: wsurgery.open({"w": np.array(["x"])}), WsurgeryError, "w: .*<U1"),
        (lambda a: wsurgery.open({"w": torch.ones(2), "epoch": 3}), WsurgeryError, "epoch is a int"),
        (lambda a: wsurgery.open({"w": torch.ones(2).to_sparse()}), WsurgeryError, "w is a sparse"),
        (lambda a: wsurgery.open({"w": torch.ones(2, device="meta")}), WsurgeryError, "w is on the device meta"),
        (
            lambda a: wsurgery.open({"w": torch.ones(2, dtype=torch.complex128)}),
            WsurgeryError,
            "w is of torch.complex128",
        ),
    ],
)
def test_a_mistake_is_told_at_once(call, error, words, here):
    with pytest.raises(error, match=words):
        call(wsurgery.open("A"))


def test_nothing_is_overwritten_or_half_written(here):
    save_file({"x": np.array([1, np.nan], np.float32), "y": np.ones(400_000, np.float32)}, "bad")
    with pytest.raises(WsurgeryError, match=r"^x holds NaN"):
        wsurgery.open("bad").scale(by=2).meanvar().write("out")
    assert not (here / "out").exists()
    with pytest.raises(UsageError, match="A exists"):
        wsurgery.open("B").scale(by=2).write("A")
    wsurgery.open("A").scale(by=2).write("A", force=True)  # also onto its own source
    np.testing.assert_array_equal(load_file("A")["fc.bias"], small_resnet()["fc.bias"] * 2)


def test_a_source_that_changed_is_not_taken_for_what_it_was(here):
    chain = wsurgery.open("A").scale(by=2)
    save_file(small_resnet(5, classes=3), "A")
    with pytest.raises(WsurgeryError, match="A has changed since it was opened"):
        chain.write("out")
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    "words", ["prune IN --sparsity 0.5 --scope all --only fc.weight", "merge IN B --base B --method ties --only 'fc.*'"]
)
def test_a_dry_run_of_a_stream_says_what_that_of_the_file_says(words, here, shell):
    named, piped = (words.replace("IN", of) + " --density 0.5" * ("ties" in words) for of in ("A", "-"))
    done = shell(f"wsurgery {named} --dry-run > named; cat A | wsurgery {piped} --dry-run > piped; cat named", here)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith((b"1 of 21 tensors", b"2 of 21 tensors"))
    assert (here / "named").read_text() == (here / "piped").read_text()


def test_standard_input_is_a_source(here, shell):
    python = "import wsurgery; wsurgery.open('-').scale(by=2).shuffle(seed=1).write('chain')"
    chain = f'wsurgery meanvar A | {sys.executable} -c "{python}"'
    line = f"{chain}; wsurgery meanvar A | wsurgery scale --by 2 | wsurgery shuffle --seed 1"
    assert shell(f"{line} > pipe", here).returncode == 0
    assert (here / "chain").read_bytes() == (here / "pipe").read_bytes()


def test_overflow_is_a_warning(here):
    with pytest.warns(UserWarning, match="2 finite values in 1 tensors became infinite, first in x"):
        wsurgery.open({"x": np.array([1e30, -1e30, 1], np.float32)}).scale(by=1e20).write("out")


def test_a_chain_prints_as_the_pipeline(here):
    assert repr(wsurgery.open("A").meanvar(seed=7).scale(by=2)) == (
        "wsurgery meanvar A --bn identity --seed 7 \\\n  | wsurgery scale --by 2.0"
    )


def test_branches_of_one_file_are_written_by_several_threads_at_once(tmp_path):
    """And read within each other: the file stays open for the one that is at it still."""
    rng = np.random.default_rng(0)
    values = {f"l{i}.weight": rng.normal(size=(300, 500)).astype(np.float32) for i in range(12)}
    save_file(values, tmp_path / "source")
    source = wsurgery.open(tmp_path / "source")

    def scaled(k):
        source.scale(by=float(k)).write(tmp_path / f"{k}", threads=1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(scaled, range(1, 25)))
    for name, _ in source.tensors():
        source.scale(by=2).write(tmp_path / name)
    for k, path in [*((k, f"{k}") for k in range(1, 25)), (2, "l3.weight")]:
        made = load_file(tmp_path / path)
        assert all(np.array_equal(made[name], x * np.float32(k)) for name, x in values.items())


@pytest.mark.parametrize("name", ["only", "blocks", "role"])
def test_an_empty_choice_is_not_everything(name, here):
    with pytest.raises(UsageError, match=f"{name} is empty"):
        wsurgery.open("A").meanvar(**{name: []})
