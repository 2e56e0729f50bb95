"""`prune`: exact counts, the least magnitudes, every set of weights equally likely; against numpy's sort and torch's pruning."""

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from scipy import stats
from torch.nn.utils import prune as torch_prune

from tests.conftest import peak_memory, small_resnet
from wsurgery.operations.random_streams import CHUNK

DTYPES = ["f4", "f8", "f2", ml_dtypes.bfloat16]
PRUNED = {"conv1.weight", "layer1.0.conv1.weight", "layer2.0.conv1.weight", "layer2.0.conv2.weight"}


@pytest.fixture
def prune(invoke, tmp_path):
    """Prune tensors; give the result's."""

    def run(tensors: dict[str, np.ndarray], *arguments: object) -> dict[str, np.ndarray]:
        save_file(tensors, tmp_path / "x")
        invoke("prune", tmp_path / "x", *arguments, "-o", tmp_path / "y", "--force")
        return load_file(tmp_path / "y")

    return run


def zeros(x: np.ndarray) -> int:
    return int((x == 0).sum())


def expected(tensors: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """By a stable sort of all magnitudes, tensors in the order of their names."""
    names = sorted(tensors)
    flat = np.concatenate([tensors[name].ravel().astype(float) for name in names])
    flat[np.argsort(abs(flat), kind="stable")[:count]] = 0
    parts = np.split(flat, np.cumsum([tensors[name].size for name in names])[:-1])
    return {name: part.reshape(tensors[name].shape) for name, part in zip(names, parts, strict=True)}


def network(dtype: object = "f4") -> dict[str, np.ndarray]:
    """Two layers of several chunks together, of weights that tie in narrow types."""
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(0, s, (500, n)).astype(dtype) for name, s, n in (("b.weight", 1, 700), ("a.weight", 3, 90))
    }


@pytest.mark.parametrize("sparsity", [0, 0.37, 0.8, 1])
def test_each_tensor_is_pruned_as_torch_does(prune, sparsity):
    x = small_resnet()
    y = prune(x, "--sparsity", sparsity)
    for name in x:
        if name in PRUNED:
            module = torch.nn.Linear(1, 1)
            module.weight = torch.nn.Parameter(torch.from_numpy(x[name]))
            torch_prune.l1_unstructured(module, "weight", float(sparsity))
            np.testing.assert_array_equal(y[name], module.weight.detach().numpy())
        else:
            assert y[name].tobytes() == x[name].tobytes(), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scope", ["tensor", "all"])
def test_the_least_magnitudes_go_and_of_ties_the_first(prune, scope, dtype, tmp_path):
    x = network(dtype)
    y = prune(x, "--sparsity", 0.6, "--scope", scope, "--only", "*")
    groups = [x] if scope == "all" else [{name: x[name]} for name in x]
    for group in groups:
        want = expected(group, round(0.6 * sum(each.size for each in group.values())))
        for name in group:
            np.testing.assert_array_equal(y[name].astype(float), want[name])


def test_magnitudes_of_several_types_are_compared_exactly(prune):
    x = {"a": np.float64([1 + 2**-50, 1, 3]), "b": np.float32([-1, 1 + 2**-20, 2]), "c": np.float16([1, -0.5, 4])}
    y = prune(x, "--sparsity", 5 / 9, "--scope", "all", "--only", "*")
    assert {name: list(y[name]) for name in y} == {"a": [0, 0, 3], "b": [0, 1 + 2**-20, 2], "c": [0, 0, 4]}


@pytest.mark.parametrize("by", ["magnitude", "random"])
@pytest.mark.parametrize("scope", ["tensor", "all"])
def test_counts_are_exact_and_zeros_that_are_there_count(prune, scope, by):
    x = network()
    x["a.weight"][:, :60] = 0
    y = prune(x, "--sparsity", 0.3, "--scope", scope, "--by", by, "--only", "*")
    assert ((x["a.weight"] == 0) <= (y["a.weight"] == 0)).all()
    counts = {name: zeros(y[name]) for name in y}
    if scope == "all":
        assert sum(counts.values()) == round(0.3 * 500 * 790)
    else:
        assert counts == {"a.weight": 500 * 60, "b.weight": round(0.3 * 500 * 700)}
    kept = y["b.weight"] != 0
    assert y["b.weight"][kept].tobytes() == x["b.weight"][kept].tobytes()


def test_equal_weights_go_by_name_and_position_whatever_the_order_in_the_file(prune):
    x = {name: np.full((3, 4), -2, np.float32) for name in ("b.weight", "a.weight", "c.weight")}
    y = prune(x, "--sparsity", 0.5, "--scope", "all", "--only", "*")
    assert [zeros(y[name]) for name in ("a.weight", "b.weight", "c.weight")] == [12, 6, 0]
    assert not y["b.weight"].ravel()[:6].any()


def test_random_weights_go_everywhere_alike_and_by_the_seed(prune):
    x = {"w.weight": np.random.default_rng(1).normal(size=(2, CHUNK)).astype("f4")}
    first, again, other = (
        prune(x, "--sparsity", 0.4, "--by", "random", "--seed", seed, "--only", "*")["w.weight"] == 0
        for seed in (1, 1, 2)
    )
    assert (first == again).all()
    # Of two independent masks the share in both is the product.
    assert (first & other).mean() == pytest.approx(0.16, abs=5 * np.sqrt(0.16 * 0.84 / first.size))
    counts = first.reshape(64, -1).sum(1)
    assert stats.chisquare(counts, np.full(64, counts.mean())).pvalue > 1e-4
    assert stats.ks_2samp(abs(x["w.weight"][first]), abs(x["w.weight"]).ravel()).pvalue > 1e-4


def test_selectors_choose_what_is_not_pruned_by_itself(prune):
    x = small_resnet()
    for part, changed in (
        (["--role", "linear"], {"fc.weight"}),
        (["--only", "*.bias", "--only", "fc.weight"], {name for name in x if name.endswith(".bias")} | {"fc.weight"}),
        (["--except", "conv1.*"], PRUNED - {"conv1.weight"}),
        (["--blocks", "block1"], {"layer1.0.conv1.weight"}),
    ):
        y = prune(x, "--sparsity", 0.5, "--scope", "all", *part)
        assert {name for name in x if x[name].tobytes() != y[name].tobytes()} == changed


def test_a_second_pruning_goes_on_from_the_first(prune):
    x = network()
    once = prune(x, "--sparsity", 0.9, "--scope", "all", "--only", "*")
    twice = prune(
        prune(x, "--sparsity", 0.5, "--scope", "all", "--only", "*"), "--sparsity", 0.9, "--scope", "all", "--only", "*"
    )
    assert {name: y.tobytes() for name, y in once.items()} == {name: y.tobytes() for name, y in twice.items()}


def test_zeros_of_another_are_put_on_what_it_began_from(invoke, tmp_path):
    start, trained = small_resnet(0), small_resnet(1)
    start["layer2.0.conv1.weight"][0] = 0  # stays, whatever the other has there
    save_file(start, tmp_path / "start")
    save_file({f"module.{name}": x for name, x in trained.items()}, tmp_path / "trained")
    invoke("prune", tmp_path / "trained", "--sparsity", 0.7, "--scope", "all", "-o", tmp_path / "mask")
    invoke("prune", tmp_path / "start", "--zeros-of", tmp_path / "mask", "-o", tmp_path / "ticket")
    mask, ticket = load_file(tmp_path / "mask"), load_file(tmp_path / "ticket")
    for name, x in start.items():
        want = np.where(mask[f"module.{name}"] == 0, 0, x) if name in PRUNED else x
        assert ticket[name].tobytes() == want.astype(x.dtype).tobytes(), name
    log = invoke("log", tmp_path / "ticket").stdout
    assert log.startswith("wsurgery prune start --zeros-of <(wsurgery prune trained --sparsity 0.7 --scope all")


def test_zeros_of_a_network_of_other_shapes_names_the_tensor(invoke, tmp_path):
    x = small_resnet()
    save_file(x, tmp_path / "x")
    whole = np.zeros(x["conv1.weight"].shape, np.int8)
    for name, wrong in (("shape", np.zeros((3, 3, 7, 7), np.float32)), ("missing", None), ("integers", whole)):
        other = {key: value for key, value in x.items() if key != "conv1.weight"}
        save_file(other | ({} if wrong is None else {"conv1.weight": wrong}), tmp_path / name)
        done = invoke("prune", tmp_path / "x", "--zeros-of", tmp_path / name, "-o", tmp_path / "y", check=False)
        assert done.exit_code == 1
        assert "conv1.weight" in done.stderr
        assert str(tmp_path / name) in done.stderr
        assert "--except" in done.stderr
        assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sparsity", 1.1], "--sparsity"),
        (["--sparsity", 0.5, "--blocks", "head"], "no weight of a convolution or linear layer below the head: choose"),
        (["--sparsity", 0.5, "--scope", "layer"], "--scope"),
        ([], "say which weights go: --sparsity S or --zeros-of FILE"),
        (["--sparsity", 0.5, "--zeros-of", "RESNET"], "one of them"),
        (["--zeros-of", "RESNET", "--by", "random"], "leave out --scope and --by"),
    ],
)
def test_a_mistake_leaves_no_file(arguments, words, invoke, resnet, tmp_path):
    arguments = [resnet if word == "RESNET" else word for word in arguments]
    done = invoke("prune", resnet, *arguments, "-o", tmp_path / "y", check=False)
    assert done.exit_code == 2
    assert words in done.stderr
    assert not (tmp_path / "y").exists()


def test_all_together_take_the_memory_of_a_tensor(tmp_path):
    for name, count in (("small", 2), ("large", 40)):
        rng = np.random.default_rng(0)
        save_file({f"l{i}.weight": rng.normal(size=(1000, 500)).astype("f4") for i in range(count)}, tmp_path / name)
    peaks = [
        peak_memory("prune", tmp_path / n, "--sparsity", 0.9, "--scope", "all", "-o", tmp_path / "y", "--force")
        for n in ("small", "large")
    ]
    assert peaks[1] < peaks[0] + 20_000  # KiB; the larger file has 76 MB more
