"""Canonical correlation analysis from second moments.

Source: Hotelling, *Relations between two sets of variates*, 1936; its mean as a similarity of representations is that
of Raghu et al., *Transfusion*, 2019, appendix C.
"""

import torch
from torch import Tensor

TOLERANCE = 1e-10
_SMALL_PIVOT = 10  # times the dimension and the tolerance: below it the rank is in doubt, so Cholesky is not trusted
_BLOCK_ELEMENTS = 1 << 22  # of the matrices of one side that are in memory at a time


def canonical_correlations(
    xx: Tensor, yy: Tensor, xy: Tensor, *, tolerance: float = TOLERANCE
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute canonical correlations from a covariance matrix, batched.

    Each side is scaled to a correlation matrix, whitened, and the correlations are the singular values between the two.
    Whitening is by Cholesky; a side that is near singular is whitened on the eigenvectors of its correlation matrix
    whose eigenvalue is more than `tolerance` times the largest. A channel of variance 0 counts for nothing.

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
    scale_x, scale_y = _inverse_deviations(xx), _inverse_deviations(yy)
    xx, yy = xx * scale_x[:, :, None] * scale_x[:, None, :], yy * scale_y[:, :, None] * scale_y[:, None, :]
    xy = xy * scale_x[:, :, None] * scale_y[:, None, :]
    whitened, rank_x = _whiten(xx, scale_x > 0, xy, tolerance)
    whitened, rank_y = _whiten(yy, scale_y > 0, whitened.mT, tolerance)
    if whitened.shape[-1] > whitened.shape[-2]:
        whitened = whitened.mT
    squares = torch.linalg.eigvalsh(whitened.mT @ whitened).flip(-1)
    beyond = torch.arange(squares.shape[-1]) >= torch.minimum(rank_x, rank_y)[:, None]
    correlations = squares.clamp(0, 1).sqrt().masked_fill(beyond, 0.0)
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


def mean_cca_of_draws(covariance: Tensor, draws_x: Tensor, draws_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `mean_cca` for draws of channels, all from one covariance matrix.

    Args:
        covariance: (c, c), float64.
        draws_x: (r, d_x), int64, the channels of X in each draw.
        draws_y: (r, d_y), int64, the channels of Y in each draw.

    Returns:
        The mean, float64, and the ranks of X and of Y, int64, each (r,).
    """
    step = max(1, _BLOCK_ELEMENTS // max(draws_x.shape[1], draws_y.shape[1]) ** 2)
    parts = [
        mean_cca(*(covariance[rows[:, :, None], columns[:, None, :]] for rows, columns in ((x, x), (y, y), (x, y))))
        for x, y in zip(torch.split(draws_x, step), torch.split(draws_y, step), strict=True)
    ]
    value, rank_x, rank_y = (torch.cat(part) for part in zip(*parts, strict=True))
    return value, rank_x, rank_y


def _inverse_deviations(covariance: Tensor) -> Tensor:
    """Return 1 / standard deviation, (b, c), and 0 for a channel of variance 0."""
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    return torch.where(variances > 0, variances, torch.inf).rsqrt()


def _whiten(correlation: Tensor, live: Tensor, cross: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Whiten one side: W @ cross, (b, c, k), where Wᵀ W is the pseudo-inverse of `correlation`; and its rank, (b,)."""
    # A dead channel's row in `cross` is 0: with a 1 on its diagonal it has a factor and stays without effect.
    factor, failed = torch.linalg.cholesky_ex(correlation + torch.diag_embed((~live).to(correlation.dtype)))
    pivots = factor.diagonal(dim1=-2, dim2=-1).amin(-1) ** 2
    sound = (failed == 0) & (pivots > _SMALL_PIVOT * correlation.shape[-1] * tolerance)
    whitened, rank = torch.zeros_like(cross), live.sum(-1)
    whitened[sound] = torch.linalg.solve_triangular(factor[sound], cross[sound], upper=False)
    if not sound.all():
        values, vectors = torch.linalg.eigh(correlation[~sound])
        kept = (values > tolerance * values[:, -1:]) & (values > 0)
        weights = torch.where(kept, values, torch.inf).rsqrt()
        whitened[~sound] = weights[:, :, None] * (vectors.mT @ cross[~sound])
        rank[~sound] = kept.sum(-1)
    return whitened, rank
