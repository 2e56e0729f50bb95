import json
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import trapezoid

from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.experiments.runs import (
    Run,
    arm_order,
    by_arm,
    find_runs,
    natural,
    read_evaluation,
    read_run,
    read_seeds,
    read_similarities,
    told_apart,
)


def write_log(folder: Path, *records: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records))
    return folder


def test_a_log_read_by_hand(tmp_path: Path) -> None:
    run = read_run(
        write_log(
            tmp_path / "gabor" / "7",
            {"step": 0, "macro_auc": 0.5, "loss": None, "auc": {"ill": 0.5, "odd": None}},
            {"step": 5, "loss": 0.7},
            {
                "step": 10,
                "loss": 0.6,
                "macro_auc": 0.8,
                "auc": {"ill": 0.7, "odd": 0.9},
                "distance_from_init": {"conv1": 0.25, "head": None},
            },
            {"step": 20, "loss": 0.5, "macro_auc": 0.79},
            '{"step": 30, "loss": NaN, "macro_auc": NaN}',
        )
    )
    assert (run.arm, run.seed) == ("gabor", "7")
    assert run.auc == {0: 0.5, 10: 0.8, 20: 0.79}
    assert run.loss == {5: 0.7, 10: 0.6, 20: 0.5}
    assert run.last_step == 20
    assert run.by_label == {"ill": {0: 0.5, 10: 0.7}, "odd": {10: 0.9}}
    assert run.of("odd").auc == {10: 0.9}
    assert run.by_block == {"conv1": {10: 0.25}}


@pytest.mark.parametrize(("threshold", "steps"), [(0.4, 0), (0.6, 50), (0.7, 50), (0.75, 60), (0.81, None)])
def test_a_threshold_is_passed_where_three_evaluations_in_a_row_are_at_or_above_it(
    tmp_path: Path, threshold: float, steps: int | None
) -> None:
    values = (0.5, 0.8, 0.55, 0.7, 0.5, 0.7, 0.75, 0.8, 0.8, 0.9)
    run = read_run(write_log(tmp_path / "a" / "1", *({"step": 10 * i, "macro_auc": a} for i, a in enumerate(values))))
    assert run.steps_to(threshold) == steps
    assert run.last_start == 70


@pytest.mark.parametrize(("evaluations", "row"), [(1, 1), (5, 1), (6, 2), (8, 2), (9, 3), (1000, 3)])
def test_of_few_evaluations_a_third_is_enough(evaluations: int, row: int) -> None:
    run = Run(Path("x"), "x", "1", {step: 0.9 for step in range(evaluations)}, {})
    assert (run.steps_to(0.9), run.last_start) == (0, evaluations - row)
    run.auc[evaluations - row] = 0.5  # what remains is too short
    assert run.steps_to(0.9) == (None if evaluations < 2 * row else 0)


def test_a_run_that_until_auc_stopped_passes_as_if_it_had_stayed_where_it_was(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(200):
        until = 0.8
        values = [*np.minimum(0.5 + 0.015 * np.arange(15) + 0.05 * rng.normal(size=15), until - 1e-6), 0.83]
        curve = {10 * step: float(auc) for step, auc in enumerate(values)}
        folder = tmp_path / f"{i}"
        write_log(folder, *({"step": step, "macro_auc": auc} for step, auc in curve.items()))
        (folder / "config.json").write_text(json.dumps({"settings": {"until_auc": until}}))
        run = read_run(folder)
        stayed = Run(folder, "x", "1", curve | {150 + 10 * more: 0.83 for more in range(1, 9)}, {})
        for threshold in (0.6, 0.7, 0.75, until):
            assert run.steps_to(threshold) == stayed.steps_to(threshold)
            assert run.watched(run.steps_to(threshold)) == np.inf
        assert run.steps_to(until) == 150
        assert (run.steps_to(0.82), run.watched(None)) == (None, 130)  # above what it was to reach, nobody knows


@pytest.mark.parametrize("until", [None, 0.95, "high"])
def test_a_run_that_ended_otherwise_was_watched_up_to_the_last_three(tmp_path: Path, until: object) -> None:
    values = [0.5] * 14 + [0.91, 0.92]
    folder = write_log(tmp_path, *({"step": s, "macro_auc": a, "auc": {"x": a}} for s, a in enumerate(values)))
    (folder / "config.json").write_text(json.dumps({"settings": {"until_auc": until}}))
    assert read_run(folder).steps_to(0.9) is None
    (folder / "config.json").write_text(json.dumps({"settings": {"until_auc": 0.92}}))
    assert read_run(folder).steps_to(0.9) == 14
    assert read_run(folder).of("x").steps_to(0.9) is None  # it was not this AUC that ended it


def test_noise_alone_passes_sooner_the_more_often_it_is_looked_at_but_not_three_times_in_a_row() -> None:
    """Two arms of one level, 1.5 standard deviations below the threshold: a single passage says nothing of them."""
    rng = np.random.default_rng(0)
    curves = [dict(enumerate(0.7 + 0.02 * rng.normal(size=30))) for _ in range(200)]
    first = [next((step for step, auc in curve.items() if auc >= 0.73), None) for curve in curves]
    sustained = [Run(Path("x"), "x", "1", curve, {}).steps_to(0.73) for curve in curves]
    assert sum(step is not None for step in first) > 150
    assert sum(step is not None for step in sustained) < 10


def test_the_area_is_the_integral_of_the_curve_over_the_steps() -> None:
    steps, values = [0, 5, 20, 25], [0.5, 0.7, 0.8, 0.75]
    expected = trapezoid(values, steps) / 25
    run = Run(Path("x"), "x", "1", dict(zip(steps, values, strict=True)), {})
    assert run.area(25) == pytest.approx(expected)
    for last in range(1, 26):
        up_to = np.linspace(0, last, last + 1)
        assert run.area(last) == pytest.approx(trapezoid(np.interp(up_to, steps, values), up_to) / last)
    assert run.area(0) == 0.5
    assert Run(Path("x"), "x", "1", {7: 0.6}, {}).area(7) == 0.6


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (
            [{"step": 0, "macro_auc": 0.5}, '{"step": 10, "macro_'],
            r"log\.jsonl line 2 is not what wsurgery writes: Unterminated string",
        ),
        (["7"], "line 1 is not what wsurgery writes: Expected `object`"),
        ([{"macro_auc": 0.5}], "line 1 is not what wsurgery writes: Object missing required field"),
        ([{"step": 10, "macro_auc": 0.5}, {"step": 0, "macro_auc": 0.5}], "line 2: step 0 after step 10"),
        ([{"step": "ten"}], r"line 1 is not what wsurgery writes: Expected `int`, got `str` - at `\$\.step`"),
        (
            [{"step": 0, "macro_auc": "high"}],
            r"line 1 is not what wsurgery writes: Expected `float \| null`, got `str`",
        ),
        ([{"step": 10**30}], "line 1 is not what wsurgery writes: Expected `int`"),
        (['{"step": 0, "macro_auc": ' + "9" * 5000 + "}"], "line 1 is not what wsurgery writes"),
        (["[" * 100_000], "line 1 is not what wsurgery writes"),
        ([{"step": 0, "macro_auc": 1.5}], "line 1: an AUC of 1.5, which is not from 0 to 1"),
        ([{"step": 0, "macro_auc": 0.5, "auc": {"ill": -1}}], "line 1: an AUC of -1, which is not from 0 to 1"),
        ([{"step": 0, "macro_auc": 0.5, "auc": {"ill": "x"}}], "line 1 is not what wsurgery writes: Expected `float"),
        (
            [{"step": 0, "macro_auc": 0.5, "distance_from_init": {"head": -1.5}}],
            "line 1 is not what wsurgery writes: Expected `float` >= 0",
        ),
        ([{"step": 5, "loss": 0.5}], "no evaluation yet"),
        ([{"step": 0, "macro_auc": None}, {"step": 5, "loss": 0.5}], "no label had both classes"),
    ],
)
def test_a_broken_log_is_one_line_that_names_file_and_line(tmp_path: Path, records: list[object], said: str) -> None:
    with pytest.raises(WsurgeryError, match=said) as caught:
        read_run(write_log(tmp_path / "a" / "1", *records))
    assert "\n" not in str(caught.value)
    assert "log.jsonl" in str(caught.value)


def test_runs_come_in_the_order_of_the_paper_and_seeds_by_number(tmp_path: Path) -> None:
    for arm in ("zeta", "gabor", "transfuse-block2", "transfuse-block10", "random", "transfer"):
        for seed in (10, 9):
            folder = write_log(tmp_path / "runs" / arm / str(seed), {"step": 0, "macro_auc": 0.5})
            (folder / "metrics.json").write_text("{}")
    found = [(run.arm, run.seed) for run in find_runs(tmp_path)]
    arms = ["random", "transfer", "transfuse-block2", "transfuse-block10", "gabor", "zeta"]
    assert found == [(arm, seed) for arm in arms for seed in ("9", "10")]
    assert sorted(arms, key=arm_order) == arms


def test_arms_of_one_family_are_in_the_order_of_their_blocks() -> None:
    arms = [
        f"{kind}{block}" for kind in ("freeze-", "freeze-hybrid-", "freeze-random-") for block in ("conv1", "block1")
    ]
    arms = ["random", "transfuse-conv1", "transfuse-block1", "bn-identity", "slim-random", *arms, "another"]
    assert sorted(reversed(arms), key=arm_order) == arms


def test_a_run_under_way_and_a_folder_without_runs_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no runs"):
        find_runs(tmp_path)
    write_log(tmp_path / "runs" / "random" / "1", {"step": 0, "macro_auc": 0.5})
    with pytest.raises(WsurgeryError, match="random/1 has not ended"):
        find_runs(tmp_path)
    (tmp_path / "runs" / "random" / "2").mkdir()
    (tmp_path / "runs" / "random" / "1" / "metrics.json").write_text("{}")
    with pytest.raises(WsurgeryError, match="random/2 has no log"):
        find_runs(tmp_path)


def test_evaluation_is_optional_and_checked(tmp_path: Path) -> None:
    assert read_evaluation(tmp_path) is None
    (tmp_path / "eval.json").write_text('{\n"macro_auc": ')
    with pytest.raises(WsurgeryError, match=r"eval\.json is not what wsurgery writes"):
        read_evaluation(tmp_path)
    (tmp_path / "eval.json").write_text('{"macro_auc": 0.75}')
    assert read_evaluation(tmp_path) == (0.75, None, None)
    (tmp_path / "eval.json").write_text('{"macro_auc": 0.75, "n": 1234, "independent": "patients", "units": 40}')
    found = read_evaluation(tmp_path)
    assert found == (0.75, (1234, "patients", 40), None)
    assert found.sample.in_words() == "1,234 images of 40 patients"
    (tmp_path / "eval.json").write_text('{"macro_auc": 0.75, "n": 9, "independent": "\\u001b[2J", "units": 9}')
    with pytest.raises(WsurgeryError, match=r"eval\.json is not what wsurgery writes"):
        read_evaluation(tmp_path)


def test_the_first_metric_of_each_layer_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    layers = [
        {"layer": "conv1", "metric": "mean_cca", "value": 0.5, "floor": 0.1},
        {"layer": "conv1", "metric": "cka", "value": 0.9},
        {"layer": "block1", "metric": "mean_cca", "value": None},
    ]
    path.write_text(json.dumps({"layers": layers}))
    assert [(x.layer, x.value, x.floor, x.se) for x in read_similarities(path)] == [
        ("conv1", 0.5, 0.1, None),
        ("block1", None, None, None),
    ]
    path.write_text('{"layers": [{"value": 1}]}')
    with pytest.raises(WsurgeryError, match="Object missing required field `layer`"):
        read_similarities(path)


def test_seeds_are_sorted_by_their_numbers_however_long():
    long = "9" * 5000
    names = ["1", "02", "9", "10", "a", "b3", "b12", long, "1" + long]
    assert sorted(names, key=natural) == ["a", "1", "02", "b3", "9", "10", "b12", long, "1" + long]


def a_run(folder: Path, **settings: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text('{"step": 10, "epoch": 1.0, "macro_auc": 0.5}\n')
    (folder / "metrics.json").write_text("{}")
    config = {"settings": {"lr": 0.1, "seed": 1, **settings}, "labels": ["ill"], "data": {"train": "abc"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_arm_is_the_folder_unless_that_is_a_number(tmp_path: Path) -> None:
    names = ["one", "two", "random/1", "random/2", "other/random/1"]
    runs = told_apart([read_run(a_run(tmp_path / name)) for name in names])
    assert [run.arm for run in runs][:2] == ["one", "two"]
    assert [(run.arm.endswith("random"), run.seed) for run in runs[2:]] == [(True, "1"), (True, "2"), (True, "1")]
    assert [len(members) for members in by_arm(runs).values()] == [1, 1, 2, 1]
    with pytest.raises(UsageError, match="is there twice"):
        told_apart([runs[0], runs[0]])


@pytest.mark.parametrize(
    ("other", "words"),
    [({"lr": 0.2}, "lr is 0.1 in .* and 0.2 in "), ({"image_size": 32}, "image_size is null in .* and 32 in")],
)
def test_runs_of_other_settings_are_no_arm(other: dict[str, object], words: str, tmp_path: Path) -> None:
    a_run(tmp_path / "runs" / "random" / "1")
    a_run(tmp_path / "runs" / "random" / "2", seed=2)
    assert [run.seed for run in find_runs(tmp_path)] == ["1", "2"]
    a_run(tmp_path / "runs" / "random" / "3", seed=3, **other)
    with pytest.raises(UsageError, match=words):
        find_runs(tmp_path)
    with pytest.raises(UsageError, match=words):
        read_seeds(tmp_path / "runs" / "random")


def test_runs_on_folds_of_the_same_patients_are_an_arm(tmp_path: Path) -> None:
    def fold(k: int, said: str) -> None:
        file = a_run(tmp_path / "runs" / "random" / f"{k}", seed=k) / "config.json"
        data = {"spec": f"target-{k}.csv", "train": f"a{k}", "validation": f"b{k}", "fit": "crop", "fold": said}
        file.write_text(json.dumps({**json.loads(file.read_text()), "data": data}))

    fold(1, "1/8")
    fold(2, "2/8")
    assert [run.seed for run in find_runs(tmp_path)] == ["1", "2"]
    fold(3, "3/5")
    with pytest.raises(UsageError, match=r"data \(folds\) is \"8\" in .* and \"5\" in"):
        find_runs(tmp_path)


@pytest.mark.parametrize(("spec", "alike"), [("here/m.csv", True), ("synthetic:fundus?contrast=1", False)])
def test_seeds_of_the_same_rows_are_an_arm_wherever_they_lay_but_not_other_drawings(
    spec: str, alike: bool, tmp_path: Path
) -> None:
    for k, said in ((1, spec), (2, spec.replace("here", "there").replace("=1", "=2"))):
        file = a_run(tmp_path / "runs" / "random" / f"{k}", seed=k) / "config.json"
        data = {"spec": said, "train": "a", "validation": "b"}
        file.write_text(json.dumps({**json.loads(file.read_text()), "data": data}))
    if alike:
        assert [run.seed for run in find_runs(tmp_path)] == ["1", "2"]
    else:
        with pytest.raises(UsageError, match=r"not alike: data \(spec\) is "):
            find_runs(tmp_path)


def test_a_run_from_before_there_was_a_setting_has_its_default(tmp_path: Path) -> None:
    configs = [a_run(tmp_path / "runs" / "random" / f"{k}", seed=k) / "config.json" for k in (1, 2)]
    data = {"train": "a", "validation": "b"}
    earlier, later = ({**json.loads(path.read_text()), "data": data} for path in configs)
    later["settings"]["deterministic"], later["data"] = False, {**data, "fit": "crop", "window": "auto"}
    earlier["settings"].pop("deterministic", None)
    for path, config in zip(configs, (earlier, later), strict=True):
        path.write_text(json.dumps(config))
    assert [run.seed for run in find_runs(tmp_path)] == ["1", "2"]
    later["settings"]["deterministic"] = True
    configs[1].write_text(json.dumps(later))
    with pytest.raises(UsageError, match=r"not alike: deterministic is false in .* and true in"):
        find_runs(tmp_path)


@pytest.mark.parametrize("changed", [{"labels": ["healthy"]}, {"data": {"train": "def"}}])
def test_runs_on_other_data_or_for_other_labels_are_no_arm(changed: dict[str, object], tmp_path: Path) -> None:
    a_run(tmp_path / "runs" / "random" / "1")
    config = a_run(tmp_path / "runs" / "random" / "2") / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changed}))
    with pytest.raises(UsageError, match=r"not alike: (labels|data \(train\)) is"):
        find_runs(tmp_path)
    other = a_run(tmp_path / "runs" / "transfer" / "1") / "config.json"
    other.write_text(config.read_text())
    assert len(find_runs(tmp_path, ["transfer"])) == 1  # arms may differ
