"""Canonical correlation analysis from second moments.

Source: Hotelling, *Relations between two sets of variates*, 1936; its mean as a similarity of representations is that
of Raghu et al., *Transfusion*, 2019, appendix C.
"""

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-10
_SMALL_PIVOT = 10  # times the dimension and the tolerance: below it the rank is in doubt, so Cholesky is not trusted
_SMALL_SQUARE = 1e-10  # a singular value whose square is smaller has too few digits left in it


def canonical_correlations(
    xx: Tensor, yy: Tensor, xy: Tensor, *, tolerance: float = TOLERANCE
) -> tuple[Tensor, Tensor, Tensor]:
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


def mean_cca(xx: Tensor, yy: Tensor, xy: Tensor, *, tolerance: float = TOLERANCE) -> tuple[Tensor, Tensor, Tensor]:
    """Average the canonical correlations over the smaller rank.

    Args: as for `canonical_correlations`.

    Returns:
        The mean, (...), float64, in [0, 1] (0 where a side has rank 0, which says nothing about similarity); the ranks
        of X and of Y, (...), int64.
    """
    correlations, rank_x, rank_y = canonical_correlations(xx, yy, xy, tolerance=tolerance)
    return correlations.sum(-1) / torch.minimum(rank_x, rank_y).clamp_min(1), rank_x, rank_y


def whiten(
    xx: Tensor, yy: Tensor, xy: Tensor, *, loadings: bool = False, tolerance: float = TOLERANCE
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Whiten both sides, as `canonical_correlations` says; its arguments, with one batch dimension.

    Returns:
        K, (b, c_x, c_y), the covariance between the whitened variables of X and of Y; with `loadings`, the covariance
        between those of X and its channels as they are, (b, c_x, c_x), else (b, c_x, 0); the ranks of X and of Y, (b,).
    """
    scale_x, scale_y = _inverse_deviations(xx), _inverse_deviations(yy)
    cross = (xy * scale_x[:, :, None]).mul_(scale_y[:, None, :])
    if loadings:
        cross = torch.cat([cross, xx * scale_x[:, :, None]], dim=-1)
    whitened, rank_x = _whiten(_scaled(xx, scale_x), scale_x > 0, cross, tolerance)
    cross, beside = whitened[..., : yy.shape[-1]], whitened[..., yy.shape[-1] :]
    cross, rank_y = _whiten(_scaled(yy, scale_y), scale_y > 0, cross.mT, tolerance)
    return cross.mT, beside, rank_x, rank_y


def correlations_of(whitened: Tensor, rank_x: Tensor, rank_y: Tensor) -> Tensor:
    """Return the singular values of (b, m, n), descending, clipped to [0, 1] and 0 beyond the smaller rank."""
    values = singular_values(whitened).clamp(0, 1)
    beyond = torch.arange(values.shape[-1], device=values.device) >= torch.minimum(rank_x, rank_y)[:, None]
    return values.masked_fill(beyond, 0.0)


def singular_values(matrix: Tensor) -> Tensor:
    """Return the singular values, descending, of (b, m, n), float64: by the smaller Gram matrix where that is exact."""
    if matrix.shape[-1] > matrix.shape[-2]:
        matrix = matrix.mT
    squares = _eigenvalues(matrix.mT @ matrix).flip(-1)
    values = squares.clamp_min(0).sqrt()
    # Squaring halves the digits: a value of 1e-8 beside one of 1 would be noise.
    exact = squares[:, -1:].amin(-1) > _SMALL_SQUARE * squares[:, :1].amax(-1)
    if not exact.all():
        values[~exact] = torch.linalg.svdvals(matrix[~exact])
    return values


def smallest_eigenvalue(covariance: Tensor) -> Tensor:
    """Return the smallest eigenvalue, (b,), of the correlation matrices of live channels, 1 without any.

    It says how many digits of a correlation whitening loses: an error of e in the moments is one of e / λ.
    """
    scale = _inverse_deviations(covariance)
    dead = torch.diag_embed((scale == 0).to(covariance.dtype))
    return _eigenvalues(_scaled(covariance, scale) + dead)[:, 0]


def _inverse_deviations(covariance: Tensor) -> Tensor:
    """Return 1 / standard deviation, (b, c), and 0 for a channel of variance 0."""
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    return torch.where(variances > 0, variances, torch.inf).rsqrt()


def _scaled(covariance: Tensor, scale: Tensor) -> Tensor:
    return (covariance * scale[:, :, None]).mul_(scale[:, None, :])


def _eigenvalues(symmetric: Tensor) -> Tensor:
    if symmetric.device.type == "cpu":  # numpy's LAPACK takes two thirds of the time of torch's
        return torch.from_numpy(np.linalg.eigvalsh(symmetric.numpy()))
    values: Tensor = torch.linalg.eigvalsh(symmetric)
    return values


def _whiten(correlation: Tensor, live: Tensor, cross: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Whiten one side: W @ cross, (b, c, k), where Wᵀ W is the pseudo-inverse of `correlation`; and its rank, (b,)."""
    # A dead channel's row in `cross` is 0: with a 1 on its diagonal it has a factor and stays without effect.
    with_ones = correlation if live.all() else correlation + torch.diag_embed((~live).to(correlation.dtype))
    factor, failed = torch.linalg.cholesky_ex(with_ones)
    pivots = factor.diagonal(dim1=-2, dim2=-1).amin(-1) ** 2
    sound = (failed == 0) & (pivots > _SMALL_PIVOT * correlation.shape[-1] * tolerance)
    if sound.all():
        return torch.linalg.solve_triangular(factor, cross, upper=False), live.sum(-1)
    whitened, rank = torch.zeros_like(cross), live.sum(-1)
    whitened[sound] = torch.linalg.solve_triangular(factor[sound], cross[sound], upper=False)
    values, vectors = torch.linalg.eigh(correlation[~sound])
    kept = (values > tolerance * values[:, -1:]) & (values > 0)
    weights = torch.where(kept, values, torch.inf).rsqrt()
    whitened[~sound] = weights[:, :, None] * (vectors.mT @ cross[~sound])
    rank[~sound] = kept.sum(-1)
    return whitened, rank
