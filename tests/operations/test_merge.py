"""Merges against the papers' formulas, written here once more, in float64 and on whole vectors."""

from itertools import combinations

import ml_dtypes
import numpy as np
import pytest
from scipy import stats
from scipy.spatial import geometric_slerp

import wsurgery
from wsurgery.errors import UsageError, WsurgeryError

State = dict[str, np.ndarray]
SHAPES = {"w": (600, 512), "x.weight": (7, 5), "empty": (0, 3), "one": (1,), "scalar": ()}  # w: more than a chunk


def networks(count: int, dtype: object = np.float32) -> list[State]:
    """A base, and checkpoints that went from it some way into one direction and some into their own."""
    rng = np.random.default_rng(0)

    def normal() -> dict[str, np.ndarray]:
        return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}

    base, common = normal(), normal()
    own = [normal() for _ in range(count)]
    moved = [{n: base[n] + 0.1 * common[n] + 0.2 * each[n] for n in base} for each in own]
    counter = {"bn.num_batches_tracked": np.array(3)}
    return [{n: np.asarray(x).astype(dtype) for n, x in state.items()} | counter for state in (base, *moved)]


def flat(state: State) -> np.ndarray:
    return np.concatenate([state[name].astype(np.float64).ravel() for name in SHAPES])


def by_tensor(oracle):
    """Apply an oracle of vectors to each tensor by itself."""

    def run(base: State, others: list[State]) -> np.ndarray:
        parts = [[s[name].astype(np.float64).ravel() for s in (base, *others)] for name in SHAPES]
        return np.concatenate([oracle(first, rest) for first, *rest in parts])

    return run


def task(base, others, weights=(1, 1, 1), scale=0.4):
    return base + scale * sum(w * (x - base) for w, x in zip(weights, others, strict=False))


def ties(base, others, density=0.2, scale=1.0):
    vectors = np.array(others) - base
    for vector in vectors:
        vector[abs(vector) < np.sort(abs(vector))[::-1][round(density * len(vector)) - 1]] = 0
    elected = np.sign(vectors.sum(0))
    merged = np.zeros(len(base))
    for p in range(len(base)):
        same = vectors[:, p][(np.sign(vectors[:, p]) == elected[p]) & (elected[p] != 0)]
        merged[p] = same.mean() if len(same) else 0
    return base + scale * merged


def breadcrumbs(base, others, beta=0.85, gamma=0.993, scale=0.4):
    total, n = np.zeros(len(base)), len(base)
    for x in others:
        vector = x - base
        ranked = np.sort(abs(vector))[round(beta * n) : round(gamma * n)]
        stays = (abs(vector) >= ranked[0]) & (abs(vector) <= ranked[-1]) if len(ranked) else np.zeros(n, bool)
        total[stays] += vector[stays]
    return base + scale * total


def stock(base, others):
    vectors, n = np.array(others) - base, len(others)
    if not len(base):
        return base
    cosines = [u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in combinations(vectors, 2)]
    cosine = max(np.mean(cosines), 0)
    t = n * cosine / (1 + (n - 1) * cosine)
    return t * np.mean(others, axis=0) + (1 - t) * base


ORACLES = {
    "task": ({}, lambda base, others: task(flat(base), [flat(x) for x in others])),
    "task, weighted": (
        {"weights": "2,-0.5,0", "lambda_": 0.3},
        lambda base, others: task(flat(base), [flat(x) for x in others], (2, -0.5, 0), 0.3),
    ),
    "ties": ({}, lambda base, others: ties(flat(base), [flat(x) for x in others])),
    "ties, of others": (
        {"density": 0.55, "lambda_": 0.7},
        lambda base, others: ties(flat(base), [flat(x) for x in others], 0.55, 0.7),
    ),
    "breadcrumbs": ({}, by_tensor(breadcrumbs)),
    "breadcrumbs, of others": (
        {"beta": 0.2, "gamma": 0.7, "lambda_": 2},
        by_tensor(lambda base, others: breadcrumbs(base, others, 0.2, 0.7, 2)),
    ),
    "stock": ({}, by_tensor(stock)),
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16], ids=str)
def test_it_is_the_papers_formula_rounded_once(name, dtype):
    options, oracle = ORACLES[name]
    base, *others = networks(3, dtype)
    result = wsurgery.merge(*others, base=base, method=name.partition(",")[0], **options).state_dict()
    want = oracle(base, others)
    found = flat(result)
    if dtype == np.float64:
        np.testing.assert_allclose(found, want, rtol=1e-11, atol=1e-13)
    else:  # as near as can be; which of two that are as near, the order of the sum decides
        nearest = abs(want.astype(dtype).astype(np.float64) - want)
        assert (abs(found - want) <= nearest + 1e-12).all()
    assert all(result[key].dtype == dtype for key in SHAPES)
    assert result["bn.num_batches_tracked"] == 3


def test_dare_drops_each_vectors_elements_by_themselves_and_rescales_the_others():
    base, a, b = networks(2, np.float64)
    merged = wsurgery.merge(a, b, base=base, method="dare", weights="1,10", drop=0.75, seed=5).state_dict()["w"]
    vectors = [(each["w"] - base["w"]) / 0.25 * weight for each, weight in ((a, 1), (b, 10))]
    stays = np.stack(np.meshgrid([0, 1], [0, 1], indexing="ij")).reshape(2, 4)
    sums = stays[0, :, None] * vectors[0].ravel() + stays[1, :, None] * vectors[1].ravel()
    found = abs(sums - (merged - base["w"]).ravel()).argmin(0)
    np.testing.assert_allclose(
        merged.ravel(), base["w"].ravel() + np.take_along_axis(sums, found[None], 0)[0], atol=1e-9
    )
    expected = np.array([0.75**2, 0.75 * 0.25, 0.25 * 0.75, 0.25**2])
    for part in (found[: 1 << 18], found[1 << 18 :]):  # chunk by chunk
        assert stats.chisquare(np.bincount(part, minlength=4), expected * len(part)).pvalue > 1e-4
    again, other = (wsurgery.merge(a, b, base=base, method="dare", seed=seed).state_dict()["w"] for seed in (5, 6))
    assert (again != other).any()


def test_where_methods_agree():
    base, a, b = networks(2)

    def merged(*sources: State, **options: object) -> bytes:
        state = wsurgery.merge(*sources, base=base, **options).state_dict()
        return b"".join(x.tobytes() for x in state.values())

    whole = merged(a, b, method="task", lambda_=1)
    assert merged(a, b, method="dare", drop=0) == whole
    assert merged(a, b, method="breadcrumbs", beta=0, gamma=1, lambda_=1) == whole
    alone = b"".join(x.tobytes() for x in a.values())
    for options in ({"method": "task", "lambda_": 1}, {"method": "ties", "density": 1}):
        assert merged(a, **options) == alone
    assert merged(a, a, method="stock") == alone
    unmoved = b"".join(x.tobytes() for x in base.values())
    for method in ("task", "ties", "dare", "breadcrumbs"):
        assert merged(a, b, method=method, lambda_=0) == unmoved
    assert merged(a, b, method="ties", density=0) == unmoved
    away = {name: 2 * base[name] - x if x.dtype == np.float32 else x for name, x in a.items()}
    assert merged(a, away, method="stock") == unmoved


@pytest.mark.parametrize("t", [0, 0.3, 0.5, 1])
def test_slerp_is_the_arc_between_the_directions_and_linear_in_the_norms(t):
    a, b, _ = networks(2, np.float64)
    a["same"], b["same"] = np.arange(4.0), 3 * np.arange(4.0)
    a["opposite"], b["opposite"] = np.arange(4.0), -np.arange(4.0)
    a["zero"], b["zero"] = np.zeros(4), np.arange(4.0)
    result = wsurgery.merge(a, b, method="slerp", weights=[1 - t, t]).state_dict()
    for name in ("w", "x.weight"):
        u, v = a[name].ravel(), b[name].ravel()
        norms = np.linalg.norm(u), np.linalg.norm(v)
        direction = geometric_slerp(u / norms[0], v / norms[1], [t])[0]
        np.testing.assert_allclose(result[name].ravel(), ((1 - t) * norms[0] + t * norms[1]) * direction, atol=1e-12)
    for name in ("same", "opposite", "zero"):
        np.testing.assert_allclose(result[name], (1 - t) * a[name] + t * b[name], atol=1e-12)


def test_a_running_variance_that_would_become_negative_is_refused():
    base = {"bn.running_var": np.float32([1, 1]), "bn.weight": np.float32([1, 1])}
    a = {"bn.running_var": np.float32([0.1, 1]), "bn.weight": np.float32([0, 0])}
    for method in ("task", "ties"):
        with pytest.raises(WsurgeryError, match=r"bn\.running_var is a running variance .* --except"):
            wsurgery.merge(
                a, base=base, method=method, lambda_=3, **({"density": 1} if method == "ties" else {})
            ).state_dict()
    wsurgery.merge(a, base=base, method="task", lambda_=3, except_="*.running_var").state_dict()


@pytest.mark.parametrize("method", ["ties", "dare", "breadcrumbs", "stock", "slerp"])
def test_what_is_not_finite_is_not_lost_among_the_others(method):
    base, a, b = networks(2)
    a["x.weight"][3, 3] = np.nan
    given = {} if method == "slerp" else {"base": base}
    with pytest.raises(WsurgeryError, match=r"^x.weight holds NaN or infinity.*--except"):
        wsurgery.merge(a, b, **given, method=method).state_dict()


def test_heads_of_other_shapes_stay_the_firsts():
    base, a, b = networks(2)
    for state, classes in ((base, 1000), (a, 2), (b, 3)):
        state["head.weight"] = np.ones((classes, 4), np.float32)
    with pytest.raises(WsurgeryError, match=r"head.weight is .* --except"):
        wsurgery.merge(a, b, base=base, method="ties")
    merged = wsurgery.merge(a, b, base=base, method="ties", except_="head.*").state_dict()
    assert merged["head.weight"].shape == (2, 4)


def test_what_is_tied_in_one_alone_comes_apart():
    a, base = (
        {"embed.weight": np.float32([1, 2])},
        {"embed.weight": np.float32([0, 0]), "head.weight": np.float32([1, 1])},
    )
    assert wsurgery.open(a).merge(base, base=base, method="task", only="embed.*").names == ["embed.weight"]


@pytest.mark.parametrize(
    ("count", "options", "words"),
    [
        (2, {"method": "slerp", "weights": "0.5,0.6"}, "sum to 1.1"),
        (3, {"method": "slerp"}, "slerp is of 2 checkpoints: 3 given"),
        (1, {"method": "stock"}, "at least 2 checkpoints: 1 given"),
        (2, {"method": "ties", "weights": "1"}, "2 checkpoints and 1 weights"),
        (2, {"method": "ties", "weights": "1,-1"}, "above 0"),
        (2, {"method": "dare", "weights": "1,nan"}, "write numbers"),
        (2, {"method": "dare", "drop": 1}, "below 1"),
        (2, {"method": "breadcrumbs", "beta": 0.9, "gamma": 0.8}, "--beta is above --gamma"),
        (2, {"method": "task", "density": 0.5}, "--density is not for --method task"),
        (2, {"method": "stock", "lambda_": 0.5}, "--lambda is not for --method stock"),
        (2, {"method": "stock", "weights": "1,1"}, "--weights is not for --method stock"),
    ],
)
def test_what_means_nothing_is_refused(count, options, words):
    base, *others = networks(count)
    given = {} if options["method"] == "slerp" else {"base": base}
    with pytest.raises(UsageError, match=words):
        wsurgery.merge(*others, **given, **options)
