"""The pages of barrier, rewind and soup, from files whose numbers are known."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

SCRIPT = Path(__file__).parents[2] / "recipes" / "beyond.py"


def page(recipe, net):
    return subprocess.run([sys.executable, SCRIPT, recipe, net], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_barriers_are_compared_seed_by_seed(tmp_path):
    net = tmp_path / "net"
    barriers = {
        "random-recalibrated": 0.5,
        "random-aligned": 0.25,
        "random-as-it-is": 0.9,
        "transfer-recalibrated": 0.1,
        "transfer-aligned": 0.1,
        "transfer-as-it-is": 0.0,
    }
    for way, height in barriers.items():
        for seed in range(1, 6):
            file = net / "barrier" / way / f"{seed}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            points = [{"macro_auc": auc} for auc in (0.9, 0.6, 0.8)]
            file.write_text(json.dumps({"points": points, "barrier": {"loss": {"value": height + seed / 100}}}))
    lines = page("barrier", net).splitlines()
    assert "| random-recalibrated | 5 | 0.5300 ± 0.0158 | 0.8500 ± 0.0527 | 0.6000 ± 0.0000 |" in lines
    first, aligned, recalibrated = (line for line in lines if line.startswith("- **"))
    assert "+0.4000" in first
    assert "*shown here (p = 0.031, Holm 0.094, 5 pairs" in first
    assert "+0.2500" in aligned
    assert "-0.1000" in recalibrated
    assert "*not shown here (p = 1, Holm 1, 5 pairs" in recalibrated


def test_a_block_that_is_set_back_costs_what_the_whole_network_had_more(tmp_path):
    net = tmp_path / "net"
    for arm, start in (("transfer", 0.01), ("random", 0.2)):
        for seed in range(1, 6):
            folder = net / "rewind" / arm / str(seed)
            aucs = {
                "whole": 0.9,
                "conv1-start": 0.9 - start,
                "conv1-fresh": 0.5,
                "block1-start": 0.9,
                "block1-fresh": 0.7,
            }
            for name, auc in aucs.items():
                (folder / name).mkdir(parents=True)
                (folder / name / "eval.json").write_text(json.dumps({"macro_auc": auc + seed / 1000}))
            (folder / "done").touch()
    lines = page("rewind", net).splitlines()
    assert "| conv1 | 0.0100 ± 0.0000 | 0.4000 ± 0.0000 | 0.2000 ± 0.0000 | 0.4000 ± 0.0000 |" in lines
    assert lines.index(next(x for x in lines if x.startswith("| conv1"))) < lines.index(
        next(x for x in lines if x.startswith("| block1"))
    )
    effects = [line.partition("By ")[2].split()[0] for line in lines if line.startswith("- **")]
    assert effects == ["+0.0950", "+0.2950", "+0.2000", "+0.2000"]


@pytest.mark.slow
def test_soups_stand_beside_the_best_single_network(tmp_path):
    net = tmp_path / "net"
    (net / "soup").mkdir(parents=True)
    for seed in range(1, 6):
        found = {"single": 0.9, "uniform": 0.92, "greedy": 0.95, "ensemble": 0.91}
        found = {way: value + seed / 1000 for way, value in found.items()}
        found |= {"greedy_members": ["a"] * seed, "runs": {"a": 0.9, "b": 0.5}}
        (net / "soup" / f"{seed}.json").write_text(json.dumps(found))
        points = [{"t": t, "macro_auc": 0.5 + t / 4, "loss": 0.7 - t / 2} for t in (0, 0.5, 1)]
        (net / "soup" / f"line-{seed}.json").write_text(json.dumps({"points": points}))
    lines = page("soup", net).splitlines()
    assert "| the greedy soup, of 3.0 networks | 0.9530 ± 0.0016 |" in lines
    assert "| `b` | 0.5000 ± 0.0000 |" in lines
    assert "| 0.5 | 0.6250 ± 0.0000 | 0.4500 ± 0.0000 |" in lines
    uniform, greedy, ensemble = (line for line in lines if line.startswith("- **"))
    assert "+0.0200" in uniform
    assert "+0.0500" in greedy
    assert "-0.0100" in ensemble


TINY = ["NETS=cbr_tiny", "WIDTH=0.05", "SEEDS=1", "IMAGES=64", "STEPS=10", "EVAL_EVERY=5", "PRETRAIN=4"]


@pytest.mark.slow
def test_tickets_are_what_they_are_called_and_stay_so(make, tmp_path):
    arms = "random ticket-80 early-80 fresh-80 mask-80"
    make("lottery", *TINY, f"OUT={tmp_path}", f"ARMS={arms}", "SPARSITIES=80")

    def weights(part, arm, file):
        found = load_file(tmp_path / "cbr_tiny" / part / arm / file)
        return {name: x for name, x in found.items() if x.ndim == 4}

    trained, start = (weights("runs", "random", f"1/{file}.safetensors") for file in ("last", "init"))
    early = weights("runs", "random-early", "1/last.safetensors")
    fresh = weights("init", "random-twin", "1.safetensors")
    for name, x in trained.items():
        least = np.sort(abs(x), axis=None)[round(0.8 * x.size) - 1]
        zeros = abs(x) <= least
        tickets = {
            arm: weights("init", f"{arm}-80", "1.safetensors")[name] for arm in ("ticket", "early", "fresh", "mask")
        }
        for arm, whole in (("ticket", start), ("early", early), ("fresh", fresh)):
            np.testing.assert_array_equal(tickets[arm], np.where(zeros, 0, whole[name]))
        anywhere = tickets["mask"] == 0
        assert anywhere.sum() == zeros.sum()
        assert (anywhere != zeros).any()
        np.testing.assert_array_equal(tickets["mask"], np.where(anywhere, 0, start[name]))
        for arm in tickets:
            ended = weights("runs", f"{arm}-80", "1/last.safetensors")[name]
            np.testing.assert_array_equal(ended == 0, tickets[arm] == 0)
            assert (ended != tickets[arm]).any()


@pytest.mark.slow
def test_parts_alone_are_trained(make, tmp_path):
    arms = ["norm-transfer", "only-block2", "head", "head-then-all"]
    make("partial", *TINY, f"OUT={tmp_path}", f"ARMS={' '.join(['random', 'transfer', *arms])}")

    def moved(arm):
        files = (tmp_path / "cbr_tiny" / "runs" / arm / "1" / f"{name}.safetensors" for name in ("init", "last"))
        before, after = map(load_file, files)
        return {name for name in before if before[name].tobytes() != after[name].tobytes()}

    everything = moved("transfer")
    heads = {name for name in everything if name.startswith("fc.")}
    assert moved("norm-transfer") == {name for name in everything if ".bn." in name} | heads
    assert moved("only-block2") == {name for name in everything if name.startswith("block2.")} | heads
    assert moved("head") == heads
    assert moved("head-then-all") == everything
    begun, trained = (
        load_file(tmp_path / "cbr_tiny" / "runs" / arm / "1" / f"{name}.safetensors")
        for arm, name in (("head-then-all", "init"), ("head-half", "last"))
    )
    assert all(begun[name].tobytes() == trained[name].tobytes() for name in begun)


def test_a_page_names_the_data_and_its_digests_once(tmp_path):
    net = tmp_path / "net"
    for seed in (1, 2):
        folder = net / "soup"
        folder.mkdir(parents=True, exist_ok=True)
        ways = dict.fromkeys(("single", "uniform", "greedy", "ensemble"), 0.9)
        (folder / f"{seed}.json").write_text(json.dumps({**ways, "greedy_members": ["a"], "runs": {"a": 0.8}}))
        (folder / f"line-{seed}.json").write_text(json.dumps({"points": [{"t": 0, "macro_auc": 0.5, "loss": 1}]}))
        run = net / "runs" / "transfer" / str(seed)
        run.mkdir(parents=True)
        data = {"spec": "m.csv?fit=pad", "train": "a" * 64, "validation": "b" * 64}
        (run / "config.json").write_text(json.dumps({"data": data, "settings": {}}))
    lines = page("soup", net).splitlines()
    assert "### What was run" in lines
    assert [line for line in lines if line.startswith("- data")] == [
        f"- data: `m.csv?fit=pad (digests: train {'a' * 12}, validation {'b' * 12})`"
    ]
