"""A fabricated experiment: runs with hand-made logs and checkpoints, in the layout that training leaves."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from wsurgery.experiments.runs import Run
from wsurgery.experiments.summary import Arm


@pytest.fixture(name="write_run")
def write_run_fixture() -> Callable[..., Path]:
    return write_run


@pytest.fixture(name="write_cca")
def write_cca_fixture() -> Callable[..., Path]:
    return write_cca


@pytest.fixture
def make_arm() -> Callable[..., Arm]:
    """Make an arm of its seeds' steps to the threshold, None for a run that never passed in `last`."""

    def make(name: str, *steps: int | None, last: int = 200, test_auc: Sequence[float | None] = ()) -> Arm:
        runs = [Run(Path(name), name, f"{i}", {last: 0.9}, {}) for i in range(len(steps))]
        return Arm(name, runs, list(test_auc or [None] * len(steps)), list(steps))

    return make


def write_run(folder: Path, auc: Mapping[int, float], *, test_auc: float | None = None) -> Path:
    folder.mkdir(parents=True)
    lines = [
        json.dumps({"step": s, "epoch": 0, "loss": 1 - a, "lr": 0.1, "macro_auc": a, "auc": {"x": a}})
        for s, a in auc.items()
    ]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "metrics.json").write_text(json.dumps({"steps": max(auc)}))
    if test_auc is not None:
        (folder / "eval.json").write_text(json.dumps({"labels": {}, "macro_auc": test_auc, "n": 9}))
    return folder


def write_cca(path: Path, normalised: Sequence[float | None], *, se: float | None = 0.01) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    layers = [
        {
            "layer": f"block{i}",
            "metric": "mean_cca",
            "value": None if x is None else 0.1 + 0.8 * x,
            "se": se,
            "floor": 0.1,
            "ceiling": 0.9,
            "normalised": x,
        }
        for i, x in enumerate(normalised, 1)
    ]
    path.write_text(json.dumps({"layers": layers}))
    return path


@pytest.fixture
def make_experiment(tmp_path: Path) -> Callable[..., Path]:
    """Write arms, name → one {step: AUC} for each seed, with everything else that a report shows."""

    def make(arms: Mapping[str, Sequence[Mapping[int, float]]], *, bare: bool = False) -> Path:
        random = np.random.default_rng(0)
        for arm, seeds in arms.items():
            for seed, auc in enumerate(seeds, 1):
                folder = write_run(
                    tmp_path / "runs" / arm / str(seed), auc, test_auc=None if bare else 0.8 + seed / 100
                )
                if bare:
                    continue
                write_cca(folder / "cca-init.json", [0.9, 0.7, 0.5])
                for name in ("init", "last"):
                    weight = random.standard_normal((8, 3, 5, 5), np.float32)
                    save_file({"block1.conv.weight": weight}, folder / f"{name}.safetensors")
        if not bare:
            write_cca(tmp_path / "cca" / "pretrained-pair.json", [0.9, 0.7, 0.6])
            write_cca(tmp_path / "cca" / "random-pair.json", [0.5, 0.5, 0.5])
        return tmp_path

    return make
