"""The pages of barrier and rewind, from files whose numbers are known."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "recipes" / "beyond.py"


def page(recipe, net):
    return subprocess.run([sys.executable, SCRIPT, recipe, net], capture_output=True, text=True, check=True).stdout


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
