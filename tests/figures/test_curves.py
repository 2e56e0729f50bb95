import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsurgery.errors import UsageError
from wsurgery.experiments.runs import Run, read_run
from wsurgery.figures.curves import band_caption, draw_curves, draw_curves_by, seed_curve, smoothed
from wsurgery.training.flags import Loss
from wsurgery.training.run_folder import LOSSES


def run(arm: str, auc: dict[int, float], loss: dict[int, float] | None = None) -> Run:
    return Run(Path(arm), arm, "1", auc, loss or {})


def test_the_lines_and_bands_are_those_of_the_logs() -> None:
    runs = [
        run("random", {0: 0.5, 10: 0.6, 20: 0.7}),
        run("random", {0: 0.4, 10: 0.8}),  # stopped early: its curve ends where a mean over all seeds does
        run("transfer", {0: 0.5, 20: 0.9}),
    ]
    axes = draw_curves(runs, thresholds=[0.75]).axes[0]
    random, transfer, threshold = axes.get_lines()
    np.testing.assert_allclose(random.get_xydata(), [[0, 0.45], [10, 0.7]])
    np.testing.assert_allclose(transfer.get_xydata(), [[0, 0.5], [20, 0.9]])
    assert set(threshold.get_ydata()) == {0.75}
    (band,) = axes.collections  # one seed has none
    corners = {(x, round(y, 9)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(0, 0.4), (0, 0.5), (10, 0.6), (10, 0.8)}
    assert axes.get_xlabel() == "optimiser steps"


def test_loss_is_drawn_from_the_loss() -> None:
    axes = draw_curves([run("a", {0: 0.5}, {5: 0.7, 10: 0.3})], metric="loss").axes[0]
    np.testing.assert_allclose(axes.get_lines()[0].get_xydata(), [[5, 0.7], [10, 0.3]])
    assert "loss" in axes.get_ylabel()


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ([{}], "training loss (binary cross-entropy, nats)"),
        ([{"loss": "softmax"}] * 2, "training loss (softmax cross-entropy, nats)"),
        ([{"pos_weight": "auto"}], "training loss (weighted binary cross-entropy, nats)"),
        ([{}, {"loss": "softmax"}], "training loss (binary cross-entropy or softmax cross-entropy, nats)"),
        ([{}, None], "training loss"),
        ([{"loss": "of another version"}], "training loss"),
    ],
)
def test_the_axis_of_the_loss_is_what_the_runs_say_it_was(
    tmp_path: Path, settings: list[dict[str, object] | None], label: str
) -> None:
    for i, each in enumerate(settings):
        folder = tmp_path / f"arm{i}" / "1"
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text(json.dumps({"step": 5, "macro_auc": 0.5, "loss": 0.7}))
        if each is not None:
            (folder / "config.json").write_text(json.dumps({"settings": each}))
    runs = [read_run(tmp_path / f"arm{i}" / "1") for i in range(len(settings))]
    assert draw_curves(runs, metric="loss").axes[0].get_ylabel() == label


def test_the_axis_names_the_split_that_training_was_watched_on_and_there_is_one(
    fresh: Path, fundus: str, invoke: Callable[..., Any], tmp_path: Path
) -> None:
    short = ["--data", fundus, "--steps", 2, "--eval-every", 1, "--batch-size", 4, "--device", "cpu", "--threads", 1]
    for name, split in (("usual", "valid"), ("other", "test")):
        run = tmp_path / "runs" / name / "1"
        invoke("train", fresh, *short, "--eval-split", split, "-o", run, "--quiet")
        assert read_run(run).split == split
        invoke("curves", run, "-o", tmp_path / f"{name}.svg")
    assert "macro AUC, validation split" in (tmp_path / "usual.svg").read_text()
    assert "macro AUC, test split" in (tmp_path / "other.svg").read_text()
    both = [tmp_path / "runs" / name / "1" for name in ("usual", "other")]
    for words in (
        ["curves", *both, "-o", tmp_path / "both.svg"],
        ["report", tmp_path, "-o", tmp_path / "r.html"],
        ["compare", *both],
    ):
        refused = invoke(*words, check=False)
        assert refused.exit_code == 2, words
        assert "of usual on valid" in refused.stderr
        assert "of other on test" in refused.stderr
    invoke("curves", *both, "-o", tmp_path / "both.svg", "--metric", "loss")


def test_the_losses_that_have_a_name_are_those_of_train() -> None:
    assert {loss.value for loss in Loss} == set(LOSSES)


def test_smoothing_is_the_weighted_mean_of_what_was_logged_so_far() -> None:
    values = np.random.default_rng(0).random(20)
    curve = {7 * i: value for i, value in enumerate(values)}
    for factor in (0.0, 0.6, 0.99):
        found = smoothed(Run(Path("a"), "a", "1", curve, curve, by_block={"conv1": curve}), factor)
        expected = [np.average(values[: n + 1], weights=factor ** np.arange(n, -1.0, -1)) for n in range(20)]
        np.testing.assert_allclose(list(found.auc.values()), expected)
        assert list(found.auc) == list(curve)
        assert found.loss == found.auc == found.by_block["conv1"]
    assert smoothed(run("a", curve), 0.0).auc == curve


def test_each_seed_is_smoothed_before_the_mean_and_the_picture_says_so() -> None:
    runs = [run("a", {0: 0.2, 10: 0.6}), run("a", {0: 0.4, 10: 0.8})]
    figure = draw_curves(runs, smooth=0.5)
    np.testing.assert_allclose(figure.axes[0].get_lines()[0].get_ydata(), [0.3, 0.3 + 0.4 / 1.5])
    said = figure.legends[0].get_title().get_text().replace("\n", " ")
    assert "mean of 2 seeds" in said
    assert "exponential moving average, factor 0.5" in said


def labelled(arm: str, **by_label: dict[int, float]) -> Run:
    return Run(Path(arm), arm, "1", {0: 0.5}, {}, by_label)


def test_a_panel_a_label_is_of_that_labels_auc_alone() -> None:
    ill = {name: {0: 0.5, 10: 0.6 + i / 100} for i, name in enumerate("abcde")}
    runs = [labelled("random", **ill), labelled("transfer", z={0: 0.1}, **{**ill, "c": {0: 0.4, 20: 0.9}})]
    figure = draw_curves_by("label", runs, thresholds=[0.75])
    assert [axes.get_title() for axes in figure.axes] == list("abcde")  # z is not the other run's
    for axes, (name, curve) in zip(figure.axes, ill.items(), strict=True):
        random, transfer, threshold = axes.get_lines()
        np.testing.assert_allclose(random.get_xydata(), list(curve.items()))
        np.testing.assert_allclose(transfer.get_xydata(), list(runs[1].by_label[name].items()))
        assert set(threshold.get_ydata()) == {0.75}
        assert random.get_color() == figure.axes[0].get_lines()[0].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["random", "transfer"]


def test_a_panel_a_block_is_of_its_distance_on_an_axis_of_its_own() -> None:
    def moved(arm: str, head: float) -> Run:
        return Run(Path(arm), arm, "1", {0: 0.5}, {}, by_block={"conv1": {0: 0.0, 9: 0.01}, "head": {0: 0.0, 9: head}})

    figure = draw_curves_by("block", [moved("random", 3.0), moved("random", 5.0), moved("transfer", 2.0)])
    assert [axes.get_title() for axes in figure.axes] == ["conv1", "head"]
    low, high = figure.axes
    np.testing.assert_allclose([x.get_ydata()[-1] for x in low.get_lines()], [0.01, 0.01])
    np.testing.assert_allclose([x.get_ydata()[-1] for x in high.get_lines()], [4.0, 2.0])
    assert low.get_ylim()[1] < 1 < high.get_ylim()[1]
    assert "‖W − W₀‖ / ‖W₀‖" in figure.get_supylabel()
    with pytest.raises(UsageError, match="no block in common whose distance from initialisation was logged"):
        draw_curves_by("block", [moved("a", 1.0), labelled("b")])


def test_labels_that_no_picture_holds_are_an_error() -> None:
    with pytest.raises(UsageError, match="no label in common"):
        draw_curves_by("label", [labelled("a", x={0: 0.5}), labelled("b", y={0: 0.5})])
    with pytest.raises(UsageError, match="31 labels, and a picture has room for 30"):
        draw_curves_by("label", [labelled("a", **{f"x{i}": {0: 0.5} for i in range(31)})])


def test_runs_without_a_common_step_are_an_error() -> None:
    with pytest.raises(UsageError, match="share no step"):
        seed_curve([{0: 0.5}, {1: 0.5}], arm="a", what="auc")


def test_the_caption_says_what_the_band_is() -> None:
    few, many = [run("a", {0: 0.5})] * 2, [run("b", {0: 0.5})] * 5
    assert "one seed" in band_caption(few[:1])
    assert "smallest to largest" in band_caption(few)
    assert "standard deviation" not in band_caption(few)
    assert "standard deviation" in band_caption(many)
    assert "smallest" not in band_caption(many)
    assert {"smallest", "standard", "2", "5"} <= set(band_caption(few + many).split())
