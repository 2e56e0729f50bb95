"""`path`: its ends are what `eval` finds, its points what `lerp` and `recalibrate-bn` make."""

import csv
import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import wsurgery
from tests.conftest import held
from wsurgery.errors import UsageError, WsurgeryError

CPU = {"device": "cpu", "threads": 1}


def loss_and_auc(source, fundus, tmp_path):
    """As `eval` has it; the loss by hand from the logits that it writes."""
    found = wsurgery.evaluate(source, data=fundus, bootstrap=0, predictions=tmp_path / "p.csv", force=True, **CPU)
    with (tmp_path / "p.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    labels, logits = (
        np.array([[float(row[kind + name]) for name in found["labels"]] for row in rows]) for kind in ("", "logit_")
    )
    p = 1 / (1 + np.exp(-logits))
    loss = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean()
    return loss, {name: label["auc"] for name, label in found["labels"].items()}


@pytest.mark.parametrize("recalibrated", [False, True])
def test_points_are_what_lerp_and_recalibrate_bn_make(recalibrated, finished, fresh, fundus, tmp_path):
    last = finished / "last.safetensors"
    found = wsurgery.path(fresh, last, data=fundus, points=3, images=20, recalibrate=recalibrated, **CPU)
    middle = wsurgery.open(fresh).lerp(last, t=0.5)
    if recalibrated:
        middle = middle.recalibrate_bn(data=fundus, images=20)
    assert held(finished) == []  # an edit that reads its weights closes them
    middle.write(tmp_path / "middle.safetensors")
    assert held(finished) == []
    assert found["recalibrated"] == (20 if recalibrated else None)
    for point, source in zip(found["points"], (fresh, tmp_path / "middle.safetensors", last), strict=True):
        loss, aucs = loss_and_auc(source, fundus, tmp_path)
        assert point["auc"] == aucs
        assert point["macro_auc"] == np.mean(list(aucs.values()))
        assert point["loss"] == pytest.approx(loss, rel=1e-6)


def test_the_barrier_is_the_largest_excess_over_the_line_between_the_ends(finished, fundus, tmp_path, invoke):
    invoke("scale", finished, "--by", -1, "--role", "conv,linear", "-o", tmp_path / "minus")  # between: nothing
    command = [
        "path",
        finished,
        tmp_path / "minus",
        "--data",
        fundus,
        "--points",
        5,
        "--no-recalibrate",
        "--threads",
        1,
    ]
    files = ["--csv", tmp_path / "x.csv", "--plot", tmp_path / "x.svg"]
    found = json.loads(invoke(*command, *files, "--json").stdout)
    for key, name, sign in (("loss", "loss", 1), ("macro_auc", "error", -1)):
        t, value = np.array([[point["t"], point[key]] for point in found["points"]]).T
        excess = sign * (value - np.interp(t, [0, 1], [value[0], value[-1]]))
        assert found["barrier"][name]["value"] == pytest.approx(excess.max(), abs=1e-12)
        assert excess[t == found["barrier"][name]["t"]] == pytest.approx(excess.max(), abs=1e-12)
    assert found["barrier"]["error"]["value"] > 0
    rows = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines()))
    assert [{k: float(v) for k, v in row.items()} for row in rows] == [
        {k: point[k] for k in ("t", "loss", "macro_auc")} for point in found["points"]
    ]
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")
    shown = invoke(*command).stdout
    assert f"barrier of the loss: {found['barrier']['loss']['value']:.4f}, at t =" in shown
    refused = invoke(*command, *files, check=False)
    assert refused.exit_code == 2
    assert "exists: add --force" in refused.stderr


@pytest.mark.parametrize(
    ("edit", "options", "error", "words"),
    [
        (lambda net: net.new_head(num_classes=3), {}, WsurgeryError, r"is \(5, .*\) in .* and \(3, .*one architecture"),
        (lambda net: net, {"points": 1}, UsageError, "--points 1: at least 2"),
        (lambda net: net, {"plot": "x.gif"}, UsageError, "a figure is a .pdf"),
        (lambda net: net, {"split": "other"}, UsageError, "other"),
    ],
)
def test_what_has_no_line_is_refused(edit, options, error, words, fresh, fundus):
    with pytest.raises(error, match=words):
        wsurgery.path(fresh, edit(wsurgery.open(fresh)), data=fundus, **CPU, **options)


def with_record(source, target, **changes):
    with safe_open(source, "np") as file:
        entry = json.loads(file.metadata()["wsurgery"])
    entry["log"][-1]["trained_on"] |= changes
    save_file(load_file(source), target, metadata={"wsurgery": json.dumps(entry)})
    return target


def test_both_ways_along_a_line_are_one_where_only_one_end_was_trained(finished, fresh, fundus, tmp_path):
    trained = with_record(finished / "last.safetensors", tmp_path / "x", mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    given = {"data": fundus, "points": 3, "images": 20, **CPU}
    there, back = (wsurgery.path(*ends, **given)["points"] for ends in ((fresh, trained), (trained, fresh)))
    for one, other in zip(there, reversed(back), strict=True):
        assert one["auc"] == other["auc"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"loss": "softmax"}, "has loss bce and .* softmax"), ({"std": [0.5, 0.5, 0.5]}, "standard deviation")],
)
def test_ends_that_are_evaluated_in_two_ways_have_no_line(change, words, finished, fundus, tmp_path):
    other = with_record(finished / "last.safetensors", tmp_path / "x", **change)
    with pytest.raises(UsageError, match=words):
        wsurgery.path(finished / "best.safetensors", other, data=fundus, points=3, **CPU)


def test_of_one_network_twice_the_line_is_level(finished, fundus):
    found = wsurgery.path(finished, finished, data=fundus, points=3, recalibrate=False, **CPU)
    assert len({point["loss"] for point in found["points"]}) == 1
    assert found["barrier"] == {"loss": {"value": 0, "t": 0}, "error": {"value": 0, "t": 0}}
