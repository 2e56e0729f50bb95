"""Canonical correlation analysis from second moments.

Source: Hotelling, *Relations between two sets of variates*, 1936; its mean as a similarity of representations is that
of Raghu et al., *Transfusion*, 2019, appendix C.
"""

import numpy as np

from wsurgery.operations.arrays import Array

TOLERANCE = 1e-10
_SMALL_PIVOT = 10  # times the dimension and the tolerance: below it the rank is in doubt, so Cholesky is not trusted
_SMALL_SQUARE = 1e-10  # a singular value whose square is smaller has too few digits left in it
_SMALL_TRIANGLE = 16  # rows of one that is inverted as any matrix is


def canonical_correlations(
    xx: Array, yy: Array, xy: Array, *, tolerance: float = TOLERANCE
) -> tuple[Array, Array, Array]:
    """Compute canonical correlations from a covariance matrix, batched.

    Each side is scaled to a correlation matrix, whitened, and the correlations are the singular values between the two.
    Whitening is by Cholesky; a side that is near singular is whitened on the eigenvectors of its correlation matrix
    whose eigenvalue is more than `tolerance` times the largest. A channel of variance 0 counts for nothing.

    A covariance squares the condition number of its data: the mean correlation is within 1e-9 of that from singular
    values of the data itself up to a condition of 1e4, and about 1e-8 at 1e8. A direction on the very edge of the
    tolerance may count in one and not in the other.

    Args:
        xx: (..., c_x, c_x), float64, the covariance within X.
        yy: (..., c_y, c_y), float64, within Y.
        xy: (..., c_x, c_y), float64, between X and Y.
        tolerance: relative eigenvalue at and below which a direction does not count.

    Returns:
        The correlations, (..., min(c_x, c_y)), float64, descending, in [0, 1], 0 beyond the smaller rank; the ranks
        of X and of Y, (...), int64.
    """
    batch = xx.shape[:-2]
    xx, yy, xy = (matrix.reshape(-1, *matrix.shape[-2:]) for matrix in (xx, yy, xy))
    whitened, _, rank_x, rank_y = whiten(xx, yy, xy, tolerance=tolerance)
    correlations = correlations_of(whitened, rank_x, rank_y)
    return correlations.reshape(*batch, -1), rank_x.reshape(batch), rank_y.reshape(batch)


def mean_cca(xx: Array, yy: Array, xy: Array, *, tolerance: float = TOLERANCE) -> tuple[Array, Array, Array]:
    """Average the canonical correlations over the smaller rank.

    Args: as for `canonical_correlations`.

    Returns:
        The mean, (...), float64, in [0, 1] (0 where a side has rank 0, which says nothing about similarity); the ranks
        of X and of Y, (...), int64.
    """
    correlations, rank_x, rank_y = canonical_correlations(xx, yy, xy, tolerance=tolerance)
    return correlations.sum(-1) / np.minimum(rank_x, rank_y).clip(1), rank_x, rank_y


def whiten(
    xx: Array, yy: Array, xy: Array, *, loadings: bool = False, tolerance: float = TOLERANCE
) -> tuple[Array, Array, Array, Array]:
    """Whiten both sides, as `canonical_correlations` says; its arguments, with one batch dimension.

    Returns:
        K, (b, c_x, c_y), the covariance between the whitened variables of X and of Y; with `loadings`, the covariance
        between those of X and its channels as they are, (b, c_x, c_x), else (b, c_x, 0); the ranks of X and of Y, (b,).
    """
    scale_x, scale_y = _inverse_deviations(xx), _inverse_deviations(yy)
    cross = xy * scale_x[:, :, None] * scale_y[:, None, :]
    if loadings:
        cross = np.concatenate([cross, xx * scale_x[:, :, None]], axis=-1)
    whitened, rank_x = _whiten(_scaled(xx, scale_x), scale_x > 0, cross, tolerance)
    cross, beside = whitened[..., : yy.shape[-1]], whitened[..., yy.shape[-1] :]
    cross, rank_y = _whiten(_scaled(yy, scale_y), scale_y > 0, transposed(cross), tolerance)
    return transposed(cross), beside, rank_x, rank_y


def correlations_of(whitened: Array, rank_x: Array, rank_y: Array) -> Array:
    """Return the singular values of (b, m, n), descending, clipped to [0, 1] and 0 beyond the smaller rank."""
    values = singular_values(whitened).clip(0, 1)
    beyond = np.arange(values.shape[-1]) >= np.minimum(rank_x, rank_y)[:, None]
    return np.where(beyond, 0.0, values)


def singular_values(matrix: Array) -> Array:
    """Return the singular values, descending, of (b, m, n), float64: by the smaller Gram matrix where that is exact."""
    if matrix.shape[-1] > matrix.shape[-2]:
        matrix = transposed(matrix)
    squares = np.linalg.eigvalsh(transposed(matrix) @ matrix)[:, ::-1]
    values: Array = np.sqrt(squares.clip(0))
    # Squaring halves the digits: a value of 1e-8 beside one of 1 would be noise.
    exact = squares[:, -1] > _SMALL_SQUARE * squares[:, 0]
    if not exact.all():
        values[~exact] = np.linalg.svd(matrix[~exact], compute_uv=False)
    return values


def smallest_eigenvalue(covariance: Array) -> Array:
    """Return the smallest eigenvalue, (b,), of the correlation matrices of live channels, 1 without any.

    It says how many digits of a correlation whitening loses: an error of e in the moments is one of e / λ.
    """
    scale = _inverse_deviations(covariance)
    smallest: Array = np.linalg.eigvalsh(_with_ones(_scaled(covariance, scale), scale > 0))[:, 0]
    return smallest


def transposed(matrices: Array) -> Array:
    """Return the transposes of (..., m, n)."""
    return matrices.swapaxes(-1, -2)


def _inverse_deviations(covariance: Array) -> Array:
    """Return 1 / standard deviation, (b, c), and 0 for a channel of variance 0."""
    variances = covariance.diagonal(axis1=-2, axis2=-1)
    deviations: Array = np.sqrt(np.where(variances > 0, variances, np.inf))
    return 1 / deviations


def _scaled(covariance: Array, scale: Array) -> Array:
    return covariance * scale[:, :, None] * scale[:, None, :]


def _with_ones(correlation: Array, live: Array) -> Array:
    """Put ones on the diagonal of correlation matrices where a channel is dead."""
    return correlation if live.all() else correlation + np.eye(live.shape[-1]) * ~live[:, None]


def _whiten(correlation: Array, live: Array, cross: Array, tolerance: float) -> tuple[Array, Array]:
    """Whiten one side: W @ cross, (b, c, k), where Wᵀ W is the pseudo-inverse of `correlation`; and its rank, (b,)."""
    # A dead channel's row in `cross` is 0: with a 1 on its diagonal it has a factor and stays without effect.
    factor = _cholesky(_with_ones(correlation, live))
    pivots = factor.diagonal(axis1=-2, axis2=-1).min(-1) ** 2
    sound = pivots > _SMALL_PIVOT * correlation.shape[-1] * tolerance
    if sound.all():
        return _inverse(factor) @ cross, live.sum(-1)
    whitened, rank = np.zeros_like(cross), live.sum(-1)
    whitened[sound] = _inverse(factor[sound]) @ cross[sound]
    values, vectors = np.linalg.eigh(correlation[~sound])
    kept = (values > tolerance * values[:, -1:]) & (values > 0)
    weights = 1 / np.sqrt(np.where(kept, values, np.inf))
    whitened[~sound] = weights[:, :, None] * (transposed(vectors) @ cross[~sound])
    rank[~sound] = kept.sum(-1)
    return whitened, rank


def _cholesky(matrices: Array) -> Array:
    """Return the lower Cholesky factors, (b, c, c), 0 for a matrix that is not positive definite."""
    try:
        return np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:  # of any of them
        if len(matrices) == 1:
            return np.zeros_like(matrices)
        return np.concatenate([_cholesky(half) for half in np.array_split(matrices, 2)])


def _inverse(lower: Array) -> Array:
    """Invert lower triangles, (b, c, c), by halves: numpy's own inverse does not know that they are triangles."""
    n = lower.shape[-1]
    if n <= _SMALL_TRIANGLE:
        return np.linalg.inv(lower)
    h = n // 2
    inverse = np.zeros_like(lower)
    inverse[:, :h, :h], inverse[:, h:, h:] = _inverse(lower[:, :h, :h]), _inverse(lower[:, h:, h:])
    inverse[:, h:, :h] = -inverse[:, h:, h:] @ lower[:, h:, :h] @ inverse[:, :h, :h]
    return inverse
