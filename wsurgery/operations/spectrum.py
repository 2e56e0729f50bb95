"""A matrix's singular values with other singular vectors.

To multiply a matrix U S Vᵀ by a Haar-random orthogonal Q from the left is to replace U by QU, which is Haar-random, too,
whatever U was: so no decomposition is needed.
"""

from collections.abc import Callable, Sequence

import numpy as np

from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.cast import round_within
from wsurgery.operations.linear_algebra import as_matrix
from wsurgery.operations.products import halves, normals, on_grid, product
from wsurgery.operations.random_streams import RandomStream

_REFLECTIONS = 128  # that are applied at once; part of what defines the result
_AT_ONCE = 1 << 19  # elements of the matrix


def spectrum(x: Array, *, keep: str = "none", random: RandomStream, run: Map = map) -> Array:
    """Replace the singular vectors of a tensor, as a matrix (out, in·kh·kw), by Haar-random ones.

    Args:
        x: floating point, (out, in, …). A vector has no singular vectors, and is left alone.
        keep: `left` keeps the left ones, (out,), `right` the right ones, (in·kh·kw,), `none` none.
        random: where the vectors come from.
        run: `map` over blocks of columns.

    Returns:
        Same shape and dtype and singular values; computed in float64 and rounded once. What is beyond the range of the
        dtype becomes its ends.

    Raises:
        WsurgeryError: it holds NaN, infinity, or numbers near the end of float64.
    """
    if x.ndim < 2:
        return x
    matrix = as_matrix(x)
    if keep != "left":
        _rotate(matrix, random=random, first=0, run=run)
    if keep != "right":
        _rotate(matrix.T, random=random, first=-(-len(x) // _REFLECTIONS), run=run)
    return round_within(matrix, x.dtype).reshape(x.shape)


def _rotate(matrix: Array, *, random: RandomStream, first: int, run: Map) -> None:
    """Multiply a matrix, (n, m), float64, from the left by a Haar-random orthogonal one, in place.

    That is a product of reflections by Gaussian vectors of n, n - 1, … 1 numbers, and of signs (Stewart 1980, "The efficient
    generation of random orthogonal matrices with an application to condition estimators").

    Args:
        matrix: is changed.
        random: where the vectors come from.
        first: the first chunk to draw from; there is one for each 128 reflections.
        run: `map` over blocks of columns.
    """
    rows, columns = matrix.shape
    width = max(1, _AT_ONCE // rows)
    for start in range(0, rows, _REFLECTIONS):
        below = matrix[start:]
        count = min(_REFLECTIONS, len(below))
        vectors = np.tril(normals(random, first + start // _REFLECTIONS, (len(below), count)))
        diagonal = vectors.diagonal().copy()
        signs = np.where(diagonal < 0, -1.0, 1.0)
        lengths = np.sqrt(np.square(vectors).sum(axis=0))
        np.fill_diagonal(vectors, on_grid(diagonal + signs * np.maximum(lengths, 2.0**-16)))
        parts = [below[:, i : i + width] for i in range(0, columns, width)]
        list(run(_reflection(vectors, parts), range(len(parts))))
        below[:count] *= -signs[:, None]


def _reflection(vectors: Array, parts: Sequence[Array]) -> Callable[[int], None]:
    """Return what reflects one of several matrices, (n, m), in place by vectors, (n, k), the first one first.

    In sequence that is I - V T⁻¹ Vᵀ, where T is the lower triangle of VᵀV, its diagonal halved.
    """
    across, along = halves(vectors.T, axis=1), halves(vectors, axis=1)
    gram = product(across, halves(vectors, axis=0))
    triangle = np.tril(gram, -1) + np.diag(gram.diagonal() / 2)

    def reflect(number: int) -> None:
        part = parts[number]
        found = product(across, halves(part, axis=0))
        for i, row in enumerate(found):
            row -= (triangle[i, :i, None] * found[:i]).sum(axis=0)
            row /= triangle[i, i]
        part -= product(along, halves(found, axis=0))

    return reflect
