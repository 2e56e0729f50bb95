from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.experiments.cca import Comparison, differences, find_comparisons
from wsurgery.experiments.claim_lines import Line
from wsurgery.experiments.claims import Basis, NotJudged, judge, require_layers
from wsurgery.experiments.runs import LayerScore
from wsurgery.experiments.thresholds import Thresholds
from wsurgery.statistics.permutation import NOT_SHOWN, SHOWN

BASIS = Basis(Thresholds([0.9]), {})
WriteCca = Callable[..., Path]


def compared(name: str, by_seed: Mapping[str, list[float | None]], se: float | None = 0.01) -> Comparison:
    return Comparison(
        name,
        {
            seed: [LayerScore(f"b{i}", x, se, 0.1, 0.9, None) for i, x in enumerate(values)]
            for seed, values in by_seed.items()
        },
    )


def seeds(*values: list[float | None]) -> dict[str, list[float | None]]:
    return {f"{seed}": row for seed, row in enumerate(values, 1)}


LINES = [
    Line("moves-least-below", ("transfer",), {}, "The", ""),
    Line("more-alike", ("pretrained-pair", "random-pair"), {}, "Two", ""),
    Line("most-alike-below", ("pretrained-pair", "random-pair"), {}, "That", ""),
    Line("more-alike", ("random-pair", "transfer-random"), {"layers": "top2"}, "In", ""),
    Line("more-alike", ("random-pair", "transfer-random"), {"layers": "b1,b2"}, "Named", ""),
    Line("stays-alike", ("random-pair",), {}, "Those", ""),
]


def judged(*comparisons: Comparison) -> dict[str, str]:
    return {claim.claim: claim.verdict for claim in judge(LINES, {}, {x.name: x for x in comparisons}, BASIS)[0]}


def test_comparisons_are_found_in_their_three_places_and_chosen_in_order(tmp_path: Path, write_cca: WriteCca) -> None:
    write_cca(tmp_path / "runs" / "transfer" / "1" / "cca-init.json", [0.5])
    for seed in (10, 9):
        write_cca(tmp_path / "cca" / "random-pair" / f"{seed}.json", [0.5])
    write_cca(tmp_path / "cca" / "a.json", [0.5])
    found = find_comparisons(tmp_path, [], None)
    assert {name: list(x.by_seed) for name, x in found.items()} == {
        "transfer-to-init": ["1"], "random-pair": ["9", "10"], "a": [""],
    }  # fmt: skip
    assert list(find_comparisons(tmp_path, ["random"], None)) == ["random-pair", "a"]
    assert list(find_comparisons(tmp_path, ["random"], ["a", "transfer-to-init"])) == ["a", "transfer-to-init"]
    assert find_comparisons(tmp_path, ["transfer"], []) == {}
    with pytest.raises(UsageError, match="no comparison b; there are: a, random-pair, transfer-to-init"):
        find_comparisons(tmp_path, [], ["b"])
    (tmp_path / "cca" / "broken.json").write_text("{")
    assert list(find_comparisons(tmp_path, [], ["a"])) == ["a"]  # the others are not looked at
    with pytest.raises(WsurgeryError, match="broken"):
        find_comparisons(tmp_path, [], None)
    write_cca(tmp_path / "cca" / "a" / "1.json", [0.5])
    with pytest.raises(UsageError, match=r"a is in .*a\.json and in .*1\.json"):
        find_comparisons(tmp_path, [], ["a"])


def test_a_layer_that_one_seed_lacks_has_no_mean() -> None:
    assert compared("a", seeds([0.5, 0.25], [0.75, None])).means() == {"b0": 0.625}


def test_differences_are_by_seed_where_seeds_match() -> None:
    a, b = compared("a", seeds([0.9, 0.5], [0.5, None])), compared("b", seeds([0.6, 0.4], [0.1, 0.3]))
    (found,) = differences(a, b)  # b1 has no value in a seed
    assert found.layer == "b0"
    assert found.difference == pytest.approx(0.35)
    assert found.se == pytest.approx(np.std([0.3, 0.4], ddof=1) / 2**0.5)
    once = [compared(name, {"": [value]}, se) for name, value, se in (("a", 0.9, 0.03), ("b", 0.5, 0.04))]
    assert differences(*once)[0][1:] == pytest.approx((0.4, 0.05))
    assert differences(once[0], compared("b", {"": [0.5]}, None))[0].se is None


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([[0.9, 0.5, 0.4]] * 5, f"{SHOWN} (p = 0.031, 5 pairs)"),
        ([[0.9, 0.5, 0.4]] * 2, "too few seeds to show it (smallest possible p = 0.25); suggestive: every seed agrees"),
        ([[0.9, 0.5, 0.95]] * 5, f"{NOT_SHOWN} (p = 1, 5 pairs)"),
    ],
)
def test_lowest_layer_moves_least_only_if_it_does(scores: list[list[float | None]], words: str) -> None:
    assert judged(compared("transfer-to-init", seeds(*scores))) == {"The": words}


@pytest.mark.parametrize(
    ("gain", "more_alike", "most_at_the_bottom"),
    [
        ([0.3, 0.2, 0.1], "suggestive", "suggestive"),
        ([0.1, 0.2, 0.3], "suggestive", "not"),
        ([0.3, 0.2, -0.1], "not", "suggestive"),
        ([0.3, 0.2, 0.02], "not", "suggestive"),  # within twice its standard error, 0.014
        ([0.02, 0.0, 0.0], "not", "not"),
    ],
)
def test_one_pair_of_each_kind_is_never_more_than_suggestive(
    gain: list[float], more_alike: str, most_at_the_bottom: str
) -> None:
    found = judged(
        compared("pretrained-pair", {"": [0.4 + x for x in gain]}), compared("random-pair", {"": [0.4] * len(gain)})
    )
    assert found["Two"].startswith(more_alike)
    assert found["That"].startswith(most_at_the_bottom)


def test_pairs_of_several_seeds_are_paired_by_seed() -> None:
    # Seeds differ by more than the pairs do: only the pairing shows it.
    base = [[0.1 * seed, 0.1 * seed] for seed in range(1, 6)]
    random = compared("random-pair", seeds(*base))
    pretrained = compared("pretrained-pair", seeds(*([x + 0.05, y + 0.01] for x, y in base)))
    assert judged(pretrained, random) == dict.fromkeys(["Two", "That"], f"{SHOWN} (p = 0.031, 5 pairs)")
    one_layer_fails = compared("pretrained-pair", seeds(*([x + 0.05, y - 0.01] for x, y in base)))
    assert judged(one_layer_fails, random)["Two"] == f"{NOT_SHOWN} (p = 1, 5 pairs)"
    others = compared("random-pair", {f"other{seed}": row for seed, row in enumerate(base)})
    assert judged(pretrained, others)["Two"] == f"{NOT_SHOWN}: no seed has both"
    assert "That" not in judged(pretrained, others)


def test_a_layer_without_a_value_is_not_passed_over() -> None:
    random = compared("random-pair", seeds(*[[0.5, 0.5, 0.5]] * 5))
    lacking = compared("pretrained-pair", seeds([0.9, 0.6, None], *[[0.9, 0.6, 0.9]] * 4))
    words = f"{NOT_SHOWN}: b2 has no value in all networks; the layers are b0, b1, b2"
    assert judged(lacking, random) == {"Two": words, "That": words}


def test_a_layer_that_no_network_of_the_page_has_is_an_error_and_one_of_another_is_said() -> None:
    def page(*layers: str) -> dict[str, Comparison]:
        scores = [LayerScore(layer, 0.5) for layer in layers]
        return {name: Comparison(name, dict.fromkeys("123", scores)) for name in ("a", "b")}

    deep, shallow = page("conv1", "block1", "block2"), page("conv1", "block1")
    line = Line("more-alike", ("a", "b"), {"layers": "conv1,block2"}, "So", "claims.txt, line 7")
    require_layers([line], [deep, shallow])
    require_layers([line], [{}])  # without comparisons nobody knows
    assert judge([line], {}, shallow, BASIS) == ([], [NotJudged("So", ["the layer block2"])])
    assert len(judge([line], {}, deep, BASIS)[0]) == 1
    typo = line._replace(options={"layers": "conv1,blok1"})
    with pytest.raises(UsageError) as refused:
        require_layers([typo], [shallow, deep])
    assert str(refused.value) == "claims.txt, line 7: a and b have no layer blok1; there are conv1, block1, block2"
    for words in ("all", "top2", "top3"):
        require_layers([line._replace(options={"layers": words})], [shallow, deep])
    with pytest.raises(UsageError, match=r"have no 3 layers; there are conv1, block1$"):
        require_layers([line._replace(options={"layers": "top3"})], [shallow])


def test_only_the_top_two_layers_count_against_a_mixed_pair() -> None:
    random = compared("random-pair", seeds(*[[0.5, 0.5, 0.5]] * 5))
    mixed = compared("transfer-random", seeds(*[[0.9, 0.4, 0.4]] * 5))
    assert judged(random, mixed) == dict.fromkeys(["In", "Named"], f"{SHOWN} (p = 0.031, 5 pairs)")
    mixed = compared("transfer-random", seeds(*[[0.4, 0.9, 0.4]] * 5))
    assert judged(random, mixed)["In"].startswith(NOT_SHOWN)


def test_pairs_that_begin_alike_and_end_alike() -> None:
    begun = compared("random-pair-at-init", seeds(*([x, 0.1] for x in (0.5, 0.6, 0.7, 0.8, 0.9))))
    ended = compared("random-pair", seeds(*([x, 0.9 - x] for x in (0.2, 0.3, 0.4, 0.5, 0.6))))
    mixed = compared("random-pair", seeds(*([x, 0.1] for x in (0.4, 0.2, 0.6, 0.3, 0.5))))
    for after, expected in ((ended, SHOWN), (mixed, NOT_SHOWN)):
        assert judged(begun, after)["Those"].startswith(expected)
    assert judged(begun, compared("random-pair", seeds([0.5], [0.6]))) == {}


@pytest.mark.parametrize(
    ("sources", "wants"),
    [
        ("abc", None),
        ("ab", "three source networks of random-pair and random-pair-at-init"),
        ("a", None),  # all seeds of one network: each counts
    ],
)
def test_what_stays_alike_is_told_by_three_independent_pairs_at_least(sources: str, wants: str | None) -> None:
    begun = compared("random-pair-at-init", seeds(*([x] for x in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95))))
    ended = compared("random-pair", seeds(*([x] for x in (0.2, 0.3, 0.45, 0.5, 0.6, 0.8))))
    basis = BASIS._replace(units={f"{seed}": sources[seed % len(sources)] for seed in range(1, 7)})
    claims, others = judge(LINES[-1:], {}, {x.name: x for x in (begun, ended)}, basis)
    assert [other.wants for other in others] == ([[wants]] if wants else [])
    assert all(claim.effect == "ρ +1.00" for claim in claims)
    # Seeds that differ, and means of the sources that do not, have no correlation.
    level = compared("random-pair", seeds(*([x] for x in (0.25, 0.5, 0.75, 0.75, 0.5, 0.25))))
    units = {f"{seed}": "abccba"[seed - 1] for seed in range(1, 7)}
    alike = compared("random-pair-at-init", seeds(*([x] for x in (0.25, 0.25, 0.25, 0.75, 0.75, 0.75))))
    claims, others = judge(LINES[-1:], {}, {x.name: x for x in (alike, level)}, BASIS._replace(units=units))
    assert (claims, others) == ([], [NotJudged("Those", ["random-pair that differ in b0"])])
