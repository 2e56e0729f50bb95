"""Beyond the paper: the rungs of `ladder` that treat some layers alone, or keep the pretrained batch norm."""

import json

import pytest


@pytest.mark.slow
def test_a_rung_differs_from_its_neighbours_in_the_layers_that_it_names(make, invoke, tmp_path):
    net, fresh, source = "tf_efficientnet_lite0", tmp_path / "fresh.safetensors", tmp_path / "source.safetensors"
    invoke("init", net, "--num-classes", 10, "-o", fresh)
    invoke("scale", fresh, "--by", 2, "--role", "batch_norm", "-o", source)
    whole = {"covariance-space-depthwise": "covariance-space", "covariance-filter-pointwise": "covariance-filter"}
    whole |= {"covariance-filter-first": "covariance-filter", "meanvar-filter-depthwise": "meanvar-filter"}
    kept = {f"{rung}-bn": rung for rung in ("random", "meanvar-filter", "covariance-space", "covariance-filter")}
    kept["bn-transfer"] = "meanvar"
    names = {"meanvar", *whole, *whole.values(), *kept, *kept.values()}
    arms = {arm: tmp_path / f"out/{net}/init/{arm}/1.safetensors" for arm in names}
    given = ["SCALE=real", "DATA=synthetic:fundus?n=40&size=32", f"NETS={net}", f"SOURCE_{net}={source}", "SEEDS=1"]
    make("ladder", f"OUT={tmp_path / 'out'}", *given, *map(str, arms.values()))

    def other(a, b):
        rows = json.loads(invoke("diff", arms[a], arms[b], "--json").stdout)["tensors"]
        return {row["name"] for row in rows if not row["identical"]}

    shown = json.loads(invoke("show", source, "--json").stdout)["tensors"]
    kernels = {t["name"]: (t["role"], t["shape"][2:]) for t in shown if t["role"] in ("conv", "depthwise")}
    treated = {
        "covariance-space-depthwise": {name for name, (role, _) in kernels.items() if role == "depthwise"},
        "meanvar-filter-depthwise": {name for name, (role, _) in kernels.items() if role == "depthwise"},
        "covariance-filter-pointwise": {name for name, (role, k) in kernels.items() if role == "conv" and k == [1, 1]},
        "covariance-filter-first": {t["name"] for t in shown if t["block"] == "stem" and t["name"] in kernels},
    }
    for arm, names in treated.items():
        assert names
        assert other(arm, "meanvar") == names
        assert other(arm, whole[arm]) == kernels.keys() - names
    batch_norm = {t["name"] for t in shown if t["role"] == "batch_norm"}
    for arm, rung in kept.items():
        assert set() < other(arm, rung) <= batch_norm, arm
    arms["source"] = source
    for arm in kept:
        assert not other(arm, "source") & batch_norm, arm
