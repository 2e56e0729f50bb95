"""Several experiments side by side."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from wsurgery.errors import UsageError
from wsurgery.experiments.claim_lines import Line
from wsurgery.experiments.networks import Networks, gap_rows, json_of, read_experiments
from wsurgery.figures.page import render_page
from wsurgery.figures.tables import markdown, terminal_tables

WriteRun = Callable[..., Path]


@pytest.fixture
def network(tmp_path: Path, write_run: WriteRun) -> Callable[..., Path]:
    """Write an experiment: for each arm the step at which each seed passes 0.9 (None: never in 200)."""

    def make(name: str, test_auc: float = 0.8, **steps: Sequence[int | None]) -> Path:
        for arm, seeds in steps.items():
            for seed, step in enumerate(seeds, 1):
                curve = {0: 0.5, 200: 0.6} if step is None else {0: 0.5, step: 0.95, 200: 0.95}
                auc = test_auc + (arm == "transfer") * (0.1 - int([*name.split("@"), 0][1]) / 1e5) + seed / 1000
                write_run(tmp_path / name / "runs" / arm / f"{seed}", curve, test_auc=auc)
        return tmp_path / name

    return make


LINES = [
    Line("faster", ("meanvar", "random"), {}, "Meanvar is faster.", ""),
    Line("larger-gain", ("meanvar", "random"), {}, "It gains more.", ""),
    Line("shrinking-gap", ("transfer", "random"), {}, "The gap closes.", ""),
]


def read(*folders: Path, lines: Sequence[Line] = LINES[1:]) -> Networks:
    found = read_experiments(folders, threshold="0.9", claims=lines)
    assert isinstance(found, Networks)
    return found


def test_the_gain_is_larger_on_the_first_network(network: Callable[..., Path]) -> None:
    deep = network("deep", random=[100] * 5, meanvar=[20, 25, 30, 35, 40])
    small = network("small", random=[100] * 5, meanvar=[78, 90, 90, 90, 90])
    (claim,) = read(deep, small).claims
    assert claim.claim == "It gains more. (deep, small)"
    assert claim.verdict == "shown here (p = 0.031, 5 pairs)"
    assert "deep 5×, 4×, 3.3×, 2.9×, 2.5×; small 1.3×, 1.1×" in claim.evidence
    (claim,) = read(small, deep).claims
    assert claim.p == 1


def test_who_never_passed_had_at_the_next_step(network: Callable[..., Path]) -> None:
    deep = network("deep", random=[None] * 5, meanvar=[20] * 5)
    (claim,) = read(deep, network("c", random=[100] * 5, meanvar=[20] * 5)).claims
    assert claim.p == pytest.approx(1 / 32)
    assert "deep 10×" in claim.evidence
    assert "as if who never passed had at the next step" in claim.evidence
    (claim,) = read(network("f", random=[None], meanvar=[None]), network("g", random=[9], meanvar=[9])).claims
    assert (claim.p, claim.verdict[:3]) == (1, "too")


def test_who_moves_less_is_more_alike_to_its_beginning_in_the_mean_of_its_own_layers(
    network: Callable[..., Path], write_cca: Callable[..., Path]
) -> None:
    line = Line("moves-less", ("transfer",), {"except": "third"}, "It moves less.", "")
    layers = {"deep": [0.9, 0.6, 0.6, 0.5, 0.4], "small": [0.8, 0.5, 0.2], "third": [0.1], "same@9": [0.1]}  # 0.6, 0.5
    folders = [network(name, transfer=[9] * 5) for name in layers]
    for folder in folders:
        for seed in range(1, 6):
            alike = [x - seed / 100 for x in layers[folder.name]]
            write_cca(folder / "runs" / "transfer" / f"{seed}" / "cca-init.json", alike)
    found = read(*folders, lines=[line])
    (claim,) = found.claims
    assert claim.evidence in markdown(found, title="T")
    assert claim.claim == "It moves less. (deep, small)"
    assert claim.verdict == "shown here (p = 0.031, 5 pairs)"
    assert "deep 0.59, 0.58, 0.57, 0.56, 0.55; small 0.49, 0.48, 0.47, 0.46, 0.45; difference +0.100" in claim.evidence
    (claim,) = read(folders[1], folders[0], lines=[line]).claims
    assert claim.p == 1
    # A layer that one seed has no value of counts in none: what is left of the small one is 0.8 and 0.2.
    write_cca(folders[1] / "runs/transfer/3/cca-init.json", [0.77, None, 0.17])
    (claim,) = read(*folders[:2], lines=[line]).claims
    assert "small 0.49, 0.48, 0.47, 0.46, 0.45" in claim.evidence
    write_cca(folders[1] / "runs/transfer/3/cca-init.json", [None, None, None])
    assert read(*folders[:2], lines=[line]).claims == []


def test_the_gap_by_size_is_a_table_and_a_slope(network: Callable[..., Path]) -> None:
    arms = {"random": [100] * 5, "transfer": [50] * 5}
    found = read(*(network(name, **arms) for name in ("net@5000", "net@1000", "net@500", "b")))
    head, *rows = gap_rows(found.reports)
    assert [row[:2] for row in rows] == [["net", "500"], ["net", "1,000"], ["net", "5,000"]]
    assert rows[0][-1] == "+0.095 (" + ", ".join(["+0.095"] * 5) + ")"
    (claim,) = found.claims
    slope = np.polyfit(range(3), [0.095, 0.09, 0.05], 1)[0]
    assert f"by seed: {', '.join([f'{slope:+.3f}'] * 5)}." in claim.evidence
    assert claim.verdict == "shown here (p = 0.031, 5 pairs)"
    for text in (markdown(found, title="T"), render_page(found, title="T")):
        assert all(cell in text for cell in (*head, *rows[0]))
        assert claim.verdict in text


def test_equal_epochs_are_no_sizes_of_equal_steps(network: Callable[..., Path]) -> None:
    arms = {"random": [100] * 5, "transfer": [50] * 5}
    found = read(*(network(name, **arms) for name in ("net@500", "net@1000", "net@500@5", "net@1000@5")))
    assert [row[:2] for row in gap_rows(found.reports)[1:]] == [
        ["net", "500"], ["net", "1,000"], ["net, 5 epochs", "500"], ["net, 5 epochs", "1,000"],
    ]  # fmt: skip
    assert [claim.claim for claim in found.claims] == ["The gap closes. (net)", "The gap closes. (net, 5 epochs)"]


def test_a_network_that_is_no_smaller_one_is_left_out(network: Callable[..., Path]) -> None:
    arms = {"random": [100] * 5, "meanvar": [20] * 5}
    line = LINES[1]._replace(options={"except": "other,third"})
    folders = [network(name, **arms) for name in ("deep", "small", "other", "third")]
    assert [claim.claim for claim in read(*folders, lines=[line]).claims] == ["It gains more. (deep, small)"]


def test_what_a_network_lacks_is_said_pair_by_pair(network: Callable[..., Path]) -> None:
    arms = {"random": [100] * 5, "meanvar": [20] * 5}
    found = read(network("deep", **arms), network("small", **arms), network("bare", random=[100] * 5))
    assert [claim.claim for claim in found.claims] == ["It gains more. (deep, small)"]
    assert [(x.claim, x.wants) for x in found.not_judged] == [
        ("It gains more. (deep, bare)", ["meanvar of bare"]),
        ("The gap closes.", ["transfer"]),
    ]
    for form in (markdown(found, title="T"), render_page(found, title="T")):
        assert form.count("Not judged here, for want of meanvar of bare, transfer: 2 claims.") == 1
    moves = [Line("moves-less", ("random",), {}, "It moves less.", "")]
    found = read(network("d", random=[1]), network("s", random=[1]), lines=[*moves, *LINES[2:]])
    assert [x.wants for x in found.not_judged] == [["random-to-init of d", "random-to-init of s"], ["transfer"]]
    both = {"random": [100] * 5, "transfer": [50] * 5}
    found = read(network("n@7", **both), network("n2@9", random=[1]), lines=LINES[2:])
    assert [x.wants for x in found.not_judged] == [["another size of n with transfer and random"]]


def test_sizes_of_one_network_are_no_two_networks(network: Callable[..., Path]) -> None:
    arms = {"random": [100] * 5, "meanvar": [20] * 5}
    assert read(*(network(f"net@{n}", **arms) for n in (500, 1000))).claims == []
    other = read(network("net@7", **arms), network("small@7", **arms), network("small@8", **arms))
    assert [claim.claim for claim in other.claims] == ["It gains more. (net@7, small@7)"]


def test_page_markdown_terminal_and_json_hold_every_network(network: Callable[..., Path]) -> None:
    found = read(
        network("deep", random=[100, 110], meanvar=[20, 30]),
        network("small<b>", random=[100, 90], meanvar=[80, 80]),
        lines=LINES,
    )
    data = json_of(found)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert list(data["networks"]) == ["deep", "small<b>"]
    assert [arm["steps_to_threshold"] for arm in data["networks"]["deep"]["arms"]] == [[100, 110], [20, 30]]
    assert len(data["claims"]) == 1
    page, text = render_page(found, title="T"), markdown(found, title="T")
    assert ">small&lt;b&gt;</h2>" in page
    assert "\n## small&lt;b>\n" in text
    for claim in found.all_claims:
        assert claim.claim.replace("<b>", "&lt;b>") in text
    assert "the 3 claims of this page that were tested" in text  # one a network, one across
    assert "the 3 claims of this page that were tested" in page
    assert all(claim.holm == min(1, 3 * claim.p) for claim in found.all_claims if claim.p == 0.25)
    assert [str(table.title) for table in terminal_tables(found) if table.title] == ["deep", "small<b>"]


def test_two_networks_need_two_names(network: Callable[..., Path], tmp_path: Path) -> None:
    folder = network("a", random=[9])
    with pytest.raises(UsageError, match="have the same name"):
        read_experiments([folder, folder], threshold="0.9")
    (tmp_path / "b").mkdir()
    with pytest.raises(UsageError, match="b holds no runs"):
        read_experiments([folder, tmp_path / "b"], threshold="0.9")


def test_each_network_shows_what_it_has_of_the_choice(network: Callable[..., Path]) -> None:
    folders = [network("a", random=[9], gabor=[9]), network("b", random=[9], meanvar=[9])]
    found = read_experiments(folders, threshold="0.9", arms=["meanvar", "gabor", "random"], comparisons=[])
    assert {name: list(x.arms) for name, x in found.reports.items()} == {
        "a": ["gabor", "random"],
        "b": ["meanvar", "random"],
    }
    with pytest.raises(UsageError, match="none of the folders has runs of x; there are: random, gabor, meanvar"):
        read_experiments(folders, threshold="0.9", arms=["x"])
    with pytest.raises(UsageError, match="none of the folders has comparison x; there are: none"):
        read_experiments(folders, threshold="0.9", comparisons=["x"])
