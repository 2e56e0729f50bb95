"""Several experiments side by side."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from wsurgery.errors import UsageError
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
                auc = test_auc + (arm == "transfer") * (0.1 - int(name.partition("@")[2] or 0) / 1e5) + seed / 1000
                write_run(tmp_path / name / "runs" / arm / f"{seed}", curve, test_auc=auc)
        return tmp_path / name

    return make


def read(*folders: Path) -> Networks:
    found = read_experiments(folders, threshold=0.9)
    assert isinstance(found, Networks)
    return found


def test_meanvar_gains_more_on_the_first_network(network: Callable[..., Path]) -> None:
    deep = network("deep", random=[100] * 5, meanvar=[20, 25, 30, 35, 40])
    small = network("small", random=[100] * 5, meanvar=[78, 90, 90, 90, 90])
    (claim,) = read(deep, small).claims
    assert claim.claim == "Meanvar's gain over random is larger on deep than on small."
    assert claim.verdict == "shown here (p = 0.004, 5 and 5 seeds)"
    assert "deep 5×, 4×, 3.3×, 2.9×, 2.5×; small 1.3×, 1.1×" in claim.evidence
    (claim,) = read(small, deep).claims
    assert claim.p == 1


def test_censored_runs_count_against_the_larger_gain(network: Callable[..., Path]) -> None:
    # Random never passed on the second network: the gain there may be any.
    deep, small = (
        network("deep", random=[100] * 5, meanvar=[20] * 5),
        network("b", random=[None] * 5, meanvar=[100] * 5),
    )
    (claim,) = read(deep, small).claims
    assert claim.p == 1
    assert "b ≥ 2×" in claim.evidence
    # On the first network it is at least 201 / 20.
    deep = network("deep2", random=[None] * 5, meanvar=[20] * 5)
    (claim,) = read(deep, network("c", random=[100] * 5, meanvar=[20] * 5)).claims
    assert claim.p == pytest.approx(1 / 252)
    # Meanvar never passed: the gain is at most 100 / 201, or none at all is known.
    (claim,) = read(network("d", random=[100] * 5, meanvar=[None] * 5), network("e", random=[9], meanvar=[9])).claims
    assert claim.p == 1
    assert "d ≤ 0.5×" in claim.evidence
    (claim,) = read(network("f", random=[None], meanvar=[None]), network("g", random=[0], meanvar=[9])).claims
    assert "f unknown; g 0.11×" in claim.evidence


def test_the_gap_by_size_is_a_table_and_no_verdict(network: Callable[..., Path]) -> None:
    arms = {"random": [100] * 2, "transfer": [50] * 2}
    found = read(*(network(name, **arms) for name in ("net@5000", "net", "net@1000", "net@500", "b")))
    head, *rows = gap_rows(found.reports)
    assert [row[:2] for row in rows] == [["net", "500"], ["net", "1,000"], ["net", "5,000"], ["net", "all"]]
    assert [row[-1] for row in rows] == [
        "+0.095 (+0.095, +0.095)", "+0.090 (+0.090, +0.090)", "+0.050 (+0.050, +0.050)",
        "+0.100 (+0.100, +0.100)",
    ]  # fmt: skip
    (claim,) = found.claims
    assert "by seed: +0.20, +0.20, median +0.20" in claim.evidence
    assert (claim.p, claim.tests) == (None, 0)
    for text in (markdown(found, title="T"), render_page(found, title="T")):
        assert all(cell in text for cell in (*head, *rows[0]))
        assert claim.verdict in text


def test_sizes_of_one_network_are_no_two_networks(network: Callable[..., Path]) -> None:
    arms = {"random": [100] * 5, "meanvar": [20] * 5}
    assert read(*(network(f"net@{n}", **arms) for n in (500, 1000))).claims == []
    other = read(network("net@7", **arms), network("small@7", **arms), network("small@8", **arms))
    assert [claim.claim for claim in other.claims] == ["Meanvar's gain over random is larger on net@7 than on small@7."]


def test_page_markdown_terminal_and_json_hold_every_network(network: Callable[..., Path]) -> None:
    found = read(
        network("deep", random=[100, 110], meanvar=[20, 30]), network("small<b>", random=[100, 90], meanvar=[80, 80])
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
    assert "3 tests were made here" in text  # one a network, one across
    assert "3 tests were made here" in page
    assert [str(table.title) for table in terminal_tables(found)] == ["deep", "small<b>"]


def test_two_networks_need_two_names(network: Callable[..., Path], tmp_path: Path) -> None:
    folder = network("a", random=[9])
    with pytest.raises(UsageError, match="have the same name"):
        read_experiments([folder, folder], threshold=0.9)
    (tmp_path / "b").mkdir()
    with pytest.raises(UsageError, match="b holds no runs"):
        read_experiments([folder, tmp_path / "b"], threshold=0.9)


def test_each_network_shows_what_it_has_of_the_choice(network: Callable[..., Path]) -> None:
    folders = [network("a", random=[9], gabor=[9]), network("b", random=[9], meanvar=[9])]
    found = read_experiments(folders, threshold=0.9, arms=["meanvar", "gabor", "random"], comparisons=[])
    assert {name: list(x.arms) for name, x in found.reports.items()} == {
        "a": ["gabor", "random"],
        "b": ["meanvar", "random"],
    }
    with pytest.raises(UsageError, match="none of the folders has runs of x; there are: random, gabor, meanvar"):
        read_experiments(folders, threshold=0.9, arms=["x"])
    with pytest.raises(UsageError, match="none of the folders has comparison x; there are: none"):
        read_experiments(folders, threshold=0.9, comparisons=["x"])
