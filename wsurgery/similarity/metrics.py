"""Similarities of two representations, X and Y, all from the same moments. 1 is the same; rows are centred throughout."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from wsurgery.entry_points import find, plug_ins
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.operations.arrays import Array
from wsurgery.similarity.canonical import correlations_of, singular_values, transposed, whiten
from wsurgery.similarity.metric_names import METRICS
from wsurgery.similarity.moments import Pair

Scores = list[float | None]

VARIANCE_KEPT = 0.99
GOOGLE_SVCCA = "google_svcca"
GROUP = "wsurgery.metrics"  # entry points: metrics of other packages
_WITHOUT_CORRELATIONS = ("linear_cka", "unbiased_cka", "procrustes")
_EPSILON = 1e-10
_PINV_CUTOFF = 1e-15


@np.errstate(all="ignore")  # of what is not defined
def similarities(pair: Pair, metrics: Sequence[str]) -> tuple[dict[str, Scores], Array, Array]:
    """Compute similarities, batched; several at once share the work.

    Args:
        pair: the moments, with a batch of r.
        metrics: names in `METRICS`, `google_svcca`, or those of plug-ins; `unbiased_cka` needs `pair.norms`.

    Returns:
        Metric → r values, None where it is not defined: a side has rank 0, or the unbiased estimate of a norm is not
        positive. The ranks of X and of Y, (r,), int64.

    Raises:
        WsurgeryError: a plug-in that cannot be imported, or gives something else than r values.
    """
    whitened, loadings, rank_x, rank_y = whiten(pair.xx, pair.yy, pair.xy, loadings="pwcca" in metrics)
    ranks = rank_x, rank_y
    defined = np.minimum(rank_x, rank_y) > 0
    if not defined.all():
        norms = None if pair.norms is None else pair.norms[defined]
        pair = Pair(pair.xx[defined], pair.yy[defined], pair.xy[defined], pair.rows, norms)
        whitened, loadings, rank_x, rank_y = whitened[defined], loadings[defined], rank_x[defined], rank_y[defined]
    rank = np.minimum(rank_x, rank_y)
    wanted = any(metric not in _WITHOUT_CORRELATIONS for metric in metrics)
    correlations = correlations_of(whitened, rank_x, rank_y) if wanted else whitened
    of_correlations: dict[str, Callable[[], Array]] = {
        "mean_cca": lambda: correlations.sum(-1) / rank,
        "pwcca": lambda: _pwcca(whitened, loadings, rank),
        "r2_cca": lambda: (correlations**2).sum(-1) / rank,
        "adjusted_r2_cca": lambda: _adjusted((correlations**2).sum(-1) / rank, np.maximum(rank_x, rank_y), pair.rows),
    }
    found: dict[str, Scores] = {}
    for metric in metrics:
        values = np.full(defined.shape, np.nan)
        values[defined] = of_correlations[metric]() if metric in of_correlations else _of_moments(metric)(pair)
        found[metric] = [value if math.isfinite(value) else None for value in values.tolist()]
    return found, *ranks


@np.errstate(all="ignore")
def quick_similarities(pair: Pair, metrics: Sequence[str]) -> dict[str, Scores] | None:
    """Compute what `similarities` does without ranks, where all metrics are defined without correlations; else None."""
    if any(metric not in _WITHOUT_CORRELATIONS for metric in metrics):
        return None
    values = {metric: _OF_MOMENTS[metric](pair).tolist() for metric in metrics}
    return {metric: [x if math.isfinite(x) else None for x in some] for metric, some in values.items()}


def check_metrics(metrics: Sequence[str]) -> None:
    """Look for metrics, and import those of plug-ins.

    Raises:
        UsageError: one is not known, or none is named; it lists what there is.
        WsurgeryError: a plug-in cannot be imported.
    """
    for metric in metrics or [""]:
        if metric in METRICS or metric == GOOGLE_SVCCA:
            continue
        if find(GROUP, metric) is None:
            there = ", ".join(dict.fromkeys([*METRICS, *plug_ins(GROUP)]))
            raise UsageError(f"metrics are {there}, not {printable(metric)!r}")
        _of_moments(metric)


def require_rows(where: str, rows: int, channels: tuple[int, int], metrics: Sequence[str], remedy: str) -> int:
    """Require as many rows as metrics need: for CCA more than both sides have channels, or every correlation is 1.

    Args:
        where: what gives the rows, in words.
        rows: how many.
        channels: drawn of A and of B.
        metrics: their names.
        remedy: how to get more rows, or fewer channels.

    Returns:
        The number of rows that there have to be more of.

    Raises:
        UsageError: there are too few.
    """
    need = sum(channels)
    if rows > need:
        return need
    if others := [metric for metric in metrics if metric not in _WITHOUT_CORRELATIONS]:
        raise UsageError(
            f"{where} for {channels[0]} + {channels[1]} channels, which forces every correlation to 1: {remedy}; --metric "
            f"{','.join(_WITHOUT_CORRELATIONS)} need no more ({', '.join(map(printable, others))} do)"
        )
    need = 3 if "unbiased_cka" in metrics else 1
    if rows <= need:
        raise UsageError(f"{where}, of which {' and '.join(metrics)} need more than {need}: {remedy}")
    return need


def _of_moments(metric: str) -> Callable[[Pair], Array]:
    if metric in _OF_MOMENTS:
        return _OF_MOMENTS[metric]
    plug_in = plug_ins(GROUP)[metric]
    function = plug_in.load_function("a function of a Pair that returns an array, (r,)")

    def checked(pair: Pair) -> Array:
        values = function(pair)
        if not isinstance(values, np.ndarray) or values.shape != pair.xx.shape[:1]:
            said = tuple(values.shape) if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
            raise WsurgeryError(f"{plug_in} returned {said} where an array of {len(pair.xx)} values is due")
        return values

    return checked


def _pwcca(whitened: Array, loadings: Array, rank: Array) -> Array:
    """Projection-weighted CCA, by the definition in Morcos et al., *Insights on representational similarity*, 2018.

    The weight of the i-th canonical correlation is Σⱼ |⟨hᵢ, xⱼ⟩|: hᵢ is the i-th canonical variate of X, of unit
    length, and xⱼ a channel of X as it is. So it depends on the scale of channels, and on which side is X.
    """
    u, s, _ = np.linalg.svd(whitened, full_matrices=False)
    beyond = np.arange(s.shape[-1]) >= rank[:, None]
    weights = np.where(beyond, 0.0, abs(transposed(u) @ loadings).sum(-1))
    value: Array = (weights * s.clip(0, 1)).sum(-1) / weights.sum(-1)
    return value


def _adjusted(r2: Array, predictors: Array, rows: int) -> Array:
    """R² less what unrelated data would score: `predictors` is the rank of the larger side. It can be negative."""
    chance = predictors / (rows - 1)
    return (r2 - chance) / (1 - chance)


def _svcca(pair: Pair) -> Array:
    """Mean CCA of the fewest leading principal components that hold 99 % of each side's variance.

    Source: Raghu et al., *SVCCA*, 2017.
    """
    (basis_x, kept_x), (basis_y, kept_y) = _leading(pair.xx), _leading(pair.yy)
    correlations = correlations_of(transposed(basis_x) @ pair.xy @ basis_y, kept_x, kept_y)
    value: Array = correlations.sum(-1) / np.minimum(kept_x, kept_y)
    return value


def _leading(covariance: Array) -> tuple[Array, Array]:
    """Return the whitened leading components, (b, c, c) with 0 for the others, and their number, (b,)."""
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[:, ::-1].clip(0), vectors[:, :, ::-1]
    share = values.cumsum(-1) / values.sum(-1, keepdims=True)
    kept = (share < VARIANCE_KEPT).sum(-1) + 1
    beyond = np.arange(values.shape[-1]) >= kept[:, None]
    return vectors / np.sqrt(np.where(beyond, np.inf, values))[:, None, :], kept


def _linear_cka(pair: Pair) -> Array:
    """Linear centred kernel alignment: Kornblith et al., *Similarity of neural network representations*, 2019."""
    xy, xx, yy = ((matrix**2).sum((-2, -1)) for matrix in (pair.xy, pair.xx, pair.yy))
    value: Array = xy / np.sqrt(xx * yy)
    return value


def _unbiased_cka(pair: Pair) -> Array:
    """Linear CKA with the unbiased estimator of HSIC: 0 on average for unrelated data, and sometimes below.

    Source: Song et al., *Feature selection via dependence maximization*, 2012, equation 5; as CKA in Nguyen et al., *Do
    wide and deep networks learn the same things?*, 2021. That estimator needs the Gram matrices K = XXᵀ and L = YYᵀ with
    their diagonals, ‖xᵢ‖² and ‖yᵢ‖², set to 0. Rows of X are centred, so the rows of K add up to 0, and without the
    diagonal to −‖xᵢ‖². With q = Σᵢ ‖xᵢ‖²‖yᵢ‖², its three terms are

        tr K̃L̃ = ‖XᵀY‖² − q        1ᵀK̃1 · 1ᵀL̃1 = tr XᵀX · tr YᵀY        1ᵀK̃L̃1 = q

    and n(n − 3) HSIC = ‖XᵀY‖² − q n / (n − 2) + tr XᵀX tr YᵀY / ((n − 1)(n − 2)).
    """
    assert pair.norms is not None, "unbiased CKA needs moments with sets"
    if pair.rows < 4:  # n − 3 divides
        return np.full(len(pair.norms), np.nan)
    n, norms = pair.rows, pair.norms

    def hsic(cross: Array, a: Array, b: Array, among: Array) -> Array:
        products: Array = (cross**2).sum((-2, -1)) - among / (n - 2)  # everything over n²
        return products + _trace(a) * _trace(b) / ((n - 1) * (n - 2))

    xx, yy = (hsic(within, within, within, norms[:, i, i]) for i, within in enumerate((pair.xx, pair.yy)))
    value: Array = hsic(pair.xy, pair.xx, pair.yy, norms[:, 0, 1]) / np.sqrt(xx * yy)
    return value


def _procrustes(pair: Pair) -> Array:
    """1 − D² / 2, where D is the distance of X and Y, each of unit Frobenius norm, under the best rotation.

    That is ‖XᵀY‖ nuclear over ‖X‖‖Y‖. D²: Ding et al., *Grounding representation similarity*, 2021.
    """
    nuclear = np.linalg.svd(pair.xy, compute_uv=False).sum(-1)
    value: Array = nuclear / np.sqrt(_trace(pair.xx) * _trace(pair.yy))
    return value


def _google_svcca(pair: Pair) -> Array:
    """The mean of `cca_coef1` of github.com/google/svcca's `get_cca_similarity` at its users' epsilon of 1e-10.

    It differs from `mean_cca` thus: each covariance is divided by its largest element; channels of variance below
    epsilon are dropped; epsilon is added to the diagonal; and the mean is over the smaller number of channels, not rank.
    """
    values = []
    for xx, yy, xy in zip(pair.xx, pair.yy, pair.xy, strict=True):
        (whiten_x, live_x), (whiten_y, live_y) = _google_whitening(xx), _google_whitening(yy)
        cross = whiten_x @ (xy / np.sqrt(abs(xx).max() * abs(yy).max()))[live_x][:, live_y] @ whiten_y.T
        values.append(singular_values(cross[None]).mean())
    return np.array(values)


def _google_whitening(covariance: Array) -> tuple[Array, Array]:
    scaled = covariance / abs(covariance).max()
    live = scaled.diagonal() >= _EPSILON
    values, vectors = np.linalg.eigh(scaled[live][:, live] + _EPSILON * np.eye(int(live.sum())))
    kept = values > _PINV_CUTOFF * values.max()
    return (1 / np.sqrt(np.where(kept, values, np.inf)))[:, None] * vectors.T, live


def _trace(matrix: Array) -> Array:
    trace: Array = matrix.diagonal(axis1=-2, axis2=-1).sum(-1)
    return trace


_OF_MOMENTS: dict[str, Callable[[Pair], Array]] = {
    "svcca": _svcca,
    "linear_cka": _linear_cka,
    "unbiased_cka": _unbiased_cka,
    "procrustes": _procrustes,
    GOOGLE_SVCCA: _google_svcca,
}
