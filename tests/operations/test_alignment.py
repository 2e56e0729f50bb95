"""Weight matching: the way back from a permutation, never further away, and the same bits whoever computes."""

import json
from itertools import pairwise, permutations

import ml_dtypes
import numpy as np
import pytest
import timm
import torch
from safetensors.numpy import load_file, save_file
from scipy.optimize import linear_sum_assignment
from timm.models.densenet import DenseNet
from timm.models.resnet import Bottleneck, ResNet

import wsurgery
import wsurgery.models  # timm knows the CBR family
from wsurgery.checkpoint import TensorInfo
from wsurgery.checkpoint.writer import write_checkpoint
from wsurgery.errors import WsurgeryError
from wsurgery.operations.alignment import exact_products

NETWORKS = {
    "cbr": lambda: timm.create_model("cbr_tiny", width=0.1, num_classes=7),
    "resnet": lambda: timm.create_model("resnet18", channels=(8, 8, 16, 24), num_classes=7),
    "resnext": lambda: ResNet(
        Bottleneck, (1, 2, 1, 1), num_classes=7, channels=(8, 8, 16, 24), cardinality=4, base_width=64
    ),
    "densenet": lambda: DenseNet(growth_rate=4, block_config=(2, 3), bn_size=2, num_classes=7),
}


def made(name, path, seed=1):
    torch.manual_seed(seed)
    wsurgery.open(NETWORKS[name]()).add_noise(std=0.02, seed=seed).write(path)
    return path


def mlp(*widths, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    tensors = {}
    for i, (inside, out) in enumerate(pairwise(widths)):
        tensors |= {f"fc{i}.weight": rng.normal(size=(out, inside)), f"fc{i}.bias": rng.normal(size=out)}
    return {name: x.astype(dtype) for name, x in tensors.items()}


def vit(seed=0, dim=12, heads=3, depth=2):
    """The tensors of a small vision transformer, and what its header says of it."""
    rng = np.random.default_rng(seed)
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 5, dim), "patch_embed.proj.weight": (dim, 3, 2, 2)}
    shapes |= {"patch_embed.proj.bias": (dim,), "norm.weight": (dim,), "norm.bias": (dim,), "head.weight": (4, dim)}
    for i in range(depth):
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{norm}.{part}": (dim,) for part in ("weight", "bias")}
        for layer, out, into in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            shapes |= {f"blocks.{i}.{layer}.weight": (out * dim, into * dim), f"blocks.{i}.{layer}.bias": (out * dim,)}
    entry = {"architecture": {"name": "vit_tiny", "num_classes": 4, "in_chans": 3, "args": {"num_heads": heads}}}
    return {k: rng.normal(size=v).astype("f4") for k, v in shapes.items()}, {"wsurgery": json.dumps(entry)}


def distance(a, b):
    """Over parameters, as the docstring says."""
    skip = ("running_mean", "running_var", "num_batches_tracked")
    return sum(((a[n].astype("f8") - b[n].astype("f8")) ** 2).sum() for n in a if not n.endswith(skip))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_permuted_network_comes_back_bit_for_bit(name, tmp_path):
    a = made(name, tmp_path / "a")
    permuted = wsurgery.open(a).permute(seed=3)
    assert distance(permuted.state_dict(), load_file(a)) > 1
    back = permuted.align(to=a).state_dict()
    assert all(back[key].tobytes() == value.tobytes() for key, value in load_file(a).items())


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ml_dtypes.bfloat16], ids=str)
def test_so_do_units_that_are_zero_equal_or_very_small(dtype):
    """Of the largest weight these are 1e-7 and less: no distance in float64 tells them apart."""
    a = mlp(3, 40, 30, 5, seed=1, dtype=dtype)
    for name in ("fc0.weight", "fc0.bias", "fc1.weight"):
        x = a[name] if name != "fc1.weight" else a[name].T
        x[5:9] = 0
        x[10:14] = x[10]
        x[20:30] = (x[20:30].astype("f4") * 6e-7).astype(dtype)
    back = wsurgery.open(a).permute(seed=1).align(to=a).state_dict()
    assert all(back[key].tobytes() == value.tobytes() for key, value in a.items())


def test_heads_come_back_too(tmp_path):
    tensors, metadata = vit()
    save_file(tensors, tmp_path / "a", metadata=metadata)
    permuted = wsurgery.open(tmp_path / "a").permute(seed=2)
    back = permuted.align(to=tmp_path / "a").state_dict()
    assert all(back[key].tobytes() == value.tobytes() for key, value in tensors.items())


@pytest.mark.parametrize("seed", range(3))
def test_noise_does_not_hide_the_way_back(seed, tmp_path):
    """Found by descent alone: no unit is equal to another."""
    for tensors, metadata in ((mlp(8, 32, 24, 5, seed=seed), None), vit(seed, dim=48)):
        save_file(tensors, tmp_path / "a", metadata=metadata)
        noisy = wsurgery.open(tmp_path / "a").add_noise(std=0.05, seed=seed)
        back = noisy.permute(seed=seed).align(to=tmp_path / "a").state_dict()
        assert all(back[name].tobytes() == x.tobytes() for name, x in noisy.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_it_never_goes_further_away_and_only_permutes(name, tmp_path):
    a, b = made(name, tmp_path / "a", 1), made(name, tmp_path / "b", 2)
    before, target, after = load_file(a), load_file(b), wsurgery.open(a).align(to=b).state_dict()
    assert distance(after, target) < distance(before, target)
    for key, value in after.items():
        assert (np.sort(value.reshape(-1)) == np.sort(before[key].reshape(-1))).all()
    again = wsurgery.open(after).align(to=b).state_dict()
    assert all(again[key].tobytes() == value.tobytes() for key, value in after.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays(name, tmp_path):
    a, b = made(name, tmp_path / "a", 1), made(name, tmp_path / "b", 2)
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outputs = []
    for source in (wsurgery.open(a), wsurgery.open(a).align(to=b)):
        network = NETWORKS[name]()
        network.load_state_dict(source.state_dict(torch=True))
        with torch.inference_mode():
            outputs.append(network.double().eval()(images))
    assert outputs[0].std() > 1e-3
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-10, atol=1e-10)


def test_one_hidden_layer_is_matched_as_well_as_can_be():
    """Against all 720 orders of six units."""
    for seed in range(5):
        a, b = mlp(4, 6, 3, seed=seed), mlp(4, 6, 3, seed=seed + 50)
        orders = [list(order) for order in permutations(range(6))]
        best = min(
            distance(
                a
                | {"fc0.weight": a["fc0.weight"][o], "fc0.bias": a["fc0.bias"][o], "fc1.weight": a["fc1.weight"][:, o]},
                b,
            )
            for o in orders
        )
        assert distance(wsurgery.open(a).align(to=b).state_dict(), b) == pytest.approx(best, rel=1e-12)


def test_heads_are_matched_as_well_as_can_be(tmp_path):
    """Against all orders of two heads and of the two units in each, apart for q with k and for v."""
    a, b = vit(1, dim=4, heads=2, depth=1)[0], vit(2, dim=4, heads=2, depth=1)[0]
    for name in a:  # nothing else is to change
        if "attn" not in name:
            a[name] = b[name] = np.arange(a[name].size, dtype="f4").reshape(a[name].shape) * 100
    a["blocks.0.attn.proj.bias"] = b["blocks.0.attn.proj.bias"]
    for net, path in ((a, "a"), (b, "b")):
        save_file(net, tmp_path / path, metadata=vit(heads=2)[1])
    swaps = [[0, 1], [1, 0]]
    orders = [
        ([2 * h + u for h, inside in zip(heads, (first, second), strict=True) for u in inside])
        for heads in swaps for first in swaps for second in swaps
    ]  # fmt: skip
    pairs = [(qk, v) for qk in orders for v in orders if qk[0] // 2 == v[0] // 2]
    assert len(pairs) == 32
    p = "blocks.0.attn."

    def moved(qk, v):
        rows = np.concatenate([np.array(qk), 4 + np.array(qk), 8 + np.array(v)])
        return a | {
            f"{p}qkv.weight": a[f"{p}qkv.weight"][rows],
            f"{p}qkv.bias": a[f"{p}qkv.bias"][rows],
            f"{p}proj.weight": a[f"{p}proj.weight"][:, v],
        }

    best = min(distance(moved(*pair), b) for pair in pairs)
    found = wsurgery.open(tmp_path / "a").align(to=tmp_path / "b").state_dict()
    assert distance(found, b) == pytest.approx(best, rel=1e-12)


def test_products_do_not_depend_on_the_order_of_sums():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 999)) * 10.0 ** rng.integers(-9, 9, (5, 1)), rng.normal(size=(4, 999))
    order = rng.permutation(999)
    products = exact_products(x, y)
    assert products.tobytes() == exact_products(x[:, order], y[:, order]).tobytes()
    scale = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
    assert (abs(products - x @ y.T) < 1e-6 * scale).all()
    assert (exact_products(np.zeros((2, 3)), np.ones((1, 3))) == 0).all()
    assert (exact_products(np.full((1, 2), 5e-324), np.ones((1, 2))) == 0).all()
    assert exact_products(np.zeros((2, 0)), np.zeros((1, 0))).shape == (2, 1)
    assert linear_sum_assignment(np.zeros((0, 0)))[1].shape == (0,)


@pytest.mark.slow
def test_every_number_of_threads_and_every_way_gives_the_same_bytes(tmp_path, shell):
    for seed, name in enumerate("ab"):
        save_file(mlp(3, 600, 500, 5, seed=seed), tmp_path / name)
    lines = [
        "wsurgery align a --to b -o 1 --threads 1",
        "OPENBLAS_NUM_THREADS=1 wsurgery align a --to b -o 2 --threads 8",
        "wsurgery permute a --seed 1 -o p --threads 1 && wsurgery permute a --seed 1 --threads 8 > q && cmp p q",
        "cat p | wsurgery align - --to b > r1; wsurgery align p --to b > r2",
        "wsurgery align p --to a --shard-size 100kB -o s/",
        "wsurgery replay 1 && wsurgery replay p",
    ]
    for line in lines:
        done = shell(line, tmp_path)
        assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    pipe, file = load_file(tmp_path / "r1"), load_file(tmp_path / "r2")
    assert all(pipe[name].tobytes() == x.tobytes() for name, x in file.items())
    shards = wsurgery.open(tmp_path / "s").state_dict()
    assert all(shards[name].tobytes() == x.tobytes() for name, x in load_file(tmp_path / "a").items())


def test_a_wrapper_and_another_element_type_are_looked_through(tmp_path):
    a = mlp(4, 20, 16, 3)
    permuted = wsurgery.open(a).permute(seed=4).state_dict()
    b = {f"module.{name}": x.astype("f8") for name, x in a.items()}
    back = wsurgery.open(permuted).align(to=b).state_dict()
    assert all(back[name].tobytes() == x.tobytes() for name, x in a.items())


@pytest.mark.parametrize("widths", [(3, 1, 2), (3, 0, 2), (3, 2)])
def test_networks_with_nothing_to_permute_are_left_as_they_are(widths):
    a, b = mlp(*widths, seed=1), mlp(*widths, seed=2)
    for result in (wsurgery.open(a).permute(seed=1), wsurgery.open(a).align(to=b)):
        assert all(result.state_dict()[name].tobytes() == x.tobytes() for name, x in a.items())


def test_bad_input_ends_in_one_line(tmp_path, invoke, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a = mlp(4, 6, 3)
    save_file(a, tmp_path / "a")
    save_file(mlp(4, 7, 3), tmp_path / "wide")
    save_file({"conv.weight": a["fc0.weight"]}, tmp_path / "other")
    save_file(a | {"fc0.bias": np.full(6, np.nan, "f4")}, tmp_path / "nan")
    save_file({n: x for n, x in a.items() if n != "fc1.bias"}, tmp_path / "tied", metadata={"fc1.bias": "fc0.bias"})
    for words, said in (
        (["align", "a", "--to", "wide"], "fc0.weight is F32 (6, 4) in a and F32 (7, 4) in wide"),
        (["align", "a", "--to", "other"], "fc0.weight is F32 (6, 4) in a and not in other"),
        (["align", "a", "--to", "nan"], "fc0.bias of a or nan holds NaN"),
        (["permute", "other"], "names like conv.weight are of none of"),
        (["permute", "tied"], "fc1.bias is tied to fc0.bias"),
    ):
        done = invoke(*words, "-o", "out", check=False)
        assert done.exit_code == 1
        assert said in done.stderr
        assert done.stderr.splitlines()[-1].startswith(f"wsurgery {words[0]}: ")
        assert not (tmp_path / "out").exists()


def test_running_statistics_do_not_decide_who_matches(tmp_path):
    """They may be of other images, and are as large as they like."""
    a = made("resnet", tmp_path / "a")
    permuted = wsurgery.open(a).permute(seed=3)
    state = permuted.state_dict()
    rng = np.random.default_rng(0)
    others = {n: rng.normal(0, 1e3, x.shape).astype(x.dtype) for n, x in state.items() if n.endswith("running_mean")}
    back = wsurgery.open({**state, **others}).align(to=a).state_dict()
    assert all(back[n].tobytes() == x.tobytes() for n, x in load_file(a).items() if n not in others)


def test_elements_smaller_than_a_byte_are_refused(tmp_path):
    path = tmp_path / "packed"
    tensors = [(TensorInfo(f"{i}.weight", "F4", (8, n), 0, 0).placed(0), bytes(4 * n)) for i, n in enumerate((4, 8, 8))]
    write_checkpoint(path, tensors, {})
    with pytest.raises(WsurgeryError, match=r"0\.weight is F4, whose elements are smaller than a byte"):
        wsurgery.open(path).permute(seed=1).write(tmp_path / "out")
    assert not (tmp_path / "out").exists()
