"""Moments of rows that pass by once: what a comparison needs of them, in memory that does not grow with them.

Rows are arrays of numpy's, or tensors on a device, where they are gathered without waiting for it; what follows is numpy.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from wsurgery.operations.arrays import Array

if TYPE_CHECKING:
    from torch import Tensor

AnyRows: TypeAlias = "Array | Tensor"
T = TypeVar("T")

# Rows that are converted at a time, at most: float32 sums the products of more with fewer digits.
CHUNK = {np.float32: 1024, np.float64: 2048}
_CHUNK_BYTES = 1 << 24  # of them; numpy's product of fewer than a few hundred rows is slow
_SHORTEST_CHUNK = 256
_FEW = 16  # rows
_GATHERING = 2  # the cost of an element in small products of gathered columns, against that in one large product
_BLOCK_ELEMENTS = 1 << 20  # of the covariances of draws that are in memory at a time


class Varying:
    """Which channels are not constant: exact, whatever their scale.

    Attributes:
        mask: (c,) bool, True where two rows differ; empty before the first row.
    """

    def __init__(self) -> None:
        self.mask: Any = np.zeros(0, bool)
        self._first: Any = None

    def update(self, rows: AnyRows) -> None:
        """Look at rows, (n, c)."""
        if len(rows) == 0:
            return
        if self._first is None:
            self._first = rows[0] + 0  # a copy
            self.mask = self._first != self._first
        # Most channels vary within a few rows: the others need not be read, if to know that is to wait for no device.
        on_cpu = isinstance(rows, np.ndarray)
        for some in (rows[:_FEW], rows[_FEW:]) if on_cpu else (rows,):
            if on_cpu and self.mask.all():
                return
            self.mask = self.mask | (some != self._first).any(0)

    def gathered(self) -> "Varying":
        """Return it in numpy's arrays."""
        return _gathered(self)

    def __add__(self, other: "Varying") -> "Varying":
        """Return what varies in both parts together; neither part may be empty."""
        return Varying._of(np.stack([self._first, other._first]), np.stack([self.mask, other.mask]))

    @staticmethod
    def without_each(parts: Sequence["Varying"]) -> Iterator["Varying"]:
        """Give, for each of two parts or more, what varies in all others together; no part may be empty."""
        firsts, masks = np.stack([part._first for part in parts]), np.stack([part.mask for part in parts])
        for others in ~np.eye(len(parts), dtype=bool):
            yield Varying._of(firsts[others], masks[others])

    @staticmethod
    def _of(firsts: Array, masks: Array) -> "Varying":
        """Return what varies in parts together, of which the first rows and the masks, (parts, c), are given."""
        together = Varying()
        together._first, together.mask = firsts[0], masks.any(0) | (firsts != firsts[0]).any(0)
        return together


@dataclass(frozen=True)
class Pair:
    """The centred second moments of X and Y over the number of rows, batched.

    Attributes:
        xx: (r, c_x, c_x), float64, within X; yy: (r, c_y, c_y), within Y; xy: (r, c_x, c_y), between them.
        rows: number of rows.
        norms: (r, 2, 2), float64: the mean of ‖x‖⁴, ‖x‖²‖y‖² and ‖y‖⁴ of a centred row; None where not gathered.
    """

    xx: Array
    yy: Array
    xy: Array
    rows: int
    norms: Array | None = None


def matrix_elements(channels: int, draws: int, drawn: int) -> int:
    """Return how many elements `Moments` needs: of one matrix over all channels, or of one for each draw."""
    whole, each = channels**2, draws * drawn**2
    return whole if whole <= _GATHERING * each else each


class Moments:
    """Centred moments in float64 of draws of channels, of the rows seen so far, additive over parts of the data.

    Sums are taken about the mean of the first chunk: about zero they would cancel where a channel's mean is large
    against its spread. The draws are sub-blocks of one matrix over all channels, or each has a matrix of its own,
    whichever is cheaper.

    Attributes:
        rows: number of rows seen.
    """

    def __init__(self, *parts: Array, channels: int, norms: bool = False, fast: bool = False) -> None:
        """Begin with no rows.

        Args:
            parts: (r, d), int64, the channels of one side in each of r draws; any number of sides.
            channels: number of channels of a row.
            norms: gather what `Pair.norms` needs: the squared norm of a row's channels in each part is related to all
                channels and to the other parts' norms, third and fourth moments.
            fast: multiply in float32, which is faster and leaves an error of about 1e-7 in a covariance of unit variances.
        """
        self.rows = 0
        self._varying = Varying()
        self._dtype = np.float32 if fast else np.float64
        self._parts = parts
        self._draws: Any = np.concatenate(parts, axis=1)
        r, k = self._draws.shape
        if matrix_elements(channels, r, k) == channels**2:
            self._draws = None
        else:  # channels are counted within a draw
            channels, ends = k, np.cumsum([part.shape[1] for part in parts])[:-1]
            self._parts = tuple(np.tile(places, (r, 1)) for places in np.split(np.arange(k), ends))
        self._sets: Any = None
        if norms:
            self._sets = np.zeros((r, len(parts), channels))
            for i, part in enumerate(self._parts):
                np.put_along_axis(self._sets[:, i], part, 1.0, axis=1)
            if self._draws is None:
                self._sets = self._sets.reshape(1, -1, channels)

    @np.errstate(all="ignore")  # of what is not finite; `finite` says so
    def update(self, rows: AnyRows) -> None:
        """Add rows, (n, channels), of any floating type."""
        on_cpu = isinstance(rows, np.ndarray)
        step = min(max(_SHORTEST_CHUNK, _CHUNK_BYTES // (rows.shape[1] * self._dtype().itemsize)), CHUNK[self._dtype])
        if not on_cpu:  # a device's products are as exact of any number of rows, and wait to begin
            step = max(1, len(rows))
        for start in range(0, len(rows), step):
            chunk: Any = rows[start : start + step]
            self._varying.update(chunk)
            if self.rows == 0:
                self._begin(chunk)
            z = np.subtract(chunk, self._shift, dtype=self._dtype) if on_cpu else chunk - self._shift
            self._sums += z.sum(0, dtype=self._sums.dtype)
            for i, products in enumerate(self._products):
                own = z if self._draws is None else _columns(z, self._draws[i])
                products += own.T @ own
                if self._sets is not None:
                    norms = (own * own) @ self._sets[i].T
                    self._cubes[i] += norms.T @ own
                    self._quartics[i] += norms.T @ norms
            self.rows += len(z)

    def _begin(self, chunk: AnyRows) -> None:
        zeros: Any = np.zeros
        if isinstance(chunk, np.ndarray):
            self._shift: Any = chunk.mean(0, dtype=np.float64).astype(self._dtype).astype(np.float64)
        else:
            from torch import from_numpy

            self._shift = chunk.double().mean(0)
            zeros = self._shift.new_zeros
            for name in ("_draws", "_sets"):
                if (value := getattr(self, name)) is not None:
                    setattr(self, name, from_numpy(value).to(chunk.device))
        r, k = (1, chunk.shape[1]) if self._draws is None else self._draws.shape
        self._sums, self._products = zeros(chunk.shape[1]), zeros((r, k, k))
        if self._sets is not None:
            g = self._sets.shape[1]
            self._cubes, self._quartics = zeros((r, g, k)), zeros((r, g, g))

    def gathered(self) -> "Moments":
        """Return them in numpy's arrays, as all that follows wants them."""
        found = _gathered(self)
        found._varying = self._varying.gathered()
        return found

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments of both parts together; neither part may be empty."""
        both = other._about(self._shift)
        both.rows += self.rows
        both._sums += self._sums
        both._products += self._products
        if self._sets is not None:
            both._cubes += self._cubes
            both._quartics += self._quartics
        both._varying = self._varying + other._varying
        return both

    @staticmethod
    def together(parts: Sequence["Moments"]) -> "Moments":
        """Return the moments of all parts together, some of which may be empty."""
        return reduce(add, [part for part in parts if part.rows] or parts[:1])

    @staticmethod
    def without_each(parts: Sequence["Moments"], *, draws: int) -> Iterator["Moments"]:
        """Give, for each of two parts or more, the moments of all others together; no part may be empty.

        Args:
            parts: of the same draws.
            draws: only the first so many are kept.
        """
        parts = [part._first(draws) for part in parts]
        total = reduce(add, parts)
        varying = Varying.without_each([part._varying for part in parts])
        for part, others in zip(parts, varying, strict=True):
            rest = part._about(total._shift)
            rest.rows = total.rows - rest.rows
            rest._sums = total._sums - rest._sums
            rest._products = total._products - rest._products
            if rest._sets is not None:
                rest._cubes = total._cubes - rest._cubes
                rest._quartics = total._quartics - rest._quartics
            rest._varying = others
            yield rest

    @property
    def finite(self) -> bool:
        """Whether all rows seen are finite, and not so large that their squares are not."""
        return self.rows == 0 or bool(np.isfinite(self._sums).all() and np.isfinite(_diagonal(self._products)).all())

    def pairs(self, x: int, y: int) -> Iterator[Pair]:
        """Give the moments of part `x` against part `y`, some draws at a time; a constant channel's are 0."""
        covariances, norms = self._covariances(), None if self._sets is None else self._norms()
        k = covariances.shape[-1]
        step = max(1, _BLOCK_ELEMENTS // max(self._parts[x].shape[1], self._parts[y].shape[1]) ** 2)
        for start in range(0, len(self._parts[x]), step):
            in_x, in_y = (self._parts[side][start : start + step] for side in (x, y))
            draws = np.arange(start, start + len(in_x))
            matrix = draws * (self._draws is not None)
            # By one index into all matrices end to end, which takes less time than three.
            from_x, from_y = ((((matrix * k)[:, None] + rows) * k)[:, :, None] for rows in (in_x, in_y))
            xx, yy, xy = (
                covariances.take(rows + columns[:, None, :])
                for rows, columns in ((from_x, in_x), (from_y, in_y), (from_x, in_y))
            )
            among = None
            if norms is not None:
                sides = np.array([[x, y]]) + (draws - matrix)[:, None] * len(self._parts)
                among = norms[matrix[:, None, None], sides[:, :, None], sides[:, None, :]]
            yield Pair(xx, yy, xy, self.rows, among)

    def _covariances(self) -> Array:
        """Return the centred second moments over the number of rows, (r, k, k) or (1, channels, channels)."""
        sums = self._of_draws(self._sums)
        covariances: Array = sums[:, :, None] * sums[:, None, :]
        covariances /= -self.rows
        covariances += self._products
        covariances /= self.rows
        live = self._of_draws(self._varying.mask)
        if not live.all():
            covariances *= live[:, :, None] & live[:, None, :]
        return covariances

    def _norms(self) -> Array:
        """Return the mean of ‖u‖²‖v‖² of a centred row for any two parts of channels u and v, (r, g, g)."""
        norms: Array = self._about(self._shift + self._sums / self.rows)._quartics / self.rows
        return norms

    def _first(self, draws: int) -> "Moments":
        """Return those of the first draws."""
        first = copy(self)
        first._parts = tuple(part[:draws] for part in self._parts)
        if self._draws is not None:
            first._draws, first._products = self._draws[:draws], self._products[:draws]
            if self._sets is not None:
                first._sets, first._cubes, first._quartics = (
                    each[:draws] for each in (self._sets, self._cubes, self._quartics)
                )
        return first

    def _of_draws(self, values: Array) -> Array:
        return values[None] if self._draws is None else values[self._draws]

    def _about(self, shift: Array) -> "Moments":
        """Return the same moments about another point: z becomes z + m, and ‖z‖² becomes ‖z‖² + 2 m·z + ‖m‖²."""
        moved, n = copy(self), self.rows
        s, m = self._of_draws(self._sums), self._of_draws(self._shift - shift)
        half = (s + n / 2 * m)[:, :, None] * m[:, None, :]
        moved._shift, moved._sums = shift, self._sums + n * (self._shift - shift)
        moved._products = self._products + half + half.swapaxes(1, 2)
        if self._sets is not None:
            along = self._sets * m[:, None]
            across = along.swapaxes(1, 2)
            squares, offset, slope = (
                (side @ each[:, :, None])[:, :, 0]
                for side, each in ((self._sets, _diagonal(self._products)), (along, m), (2 * along, s))
            )
            grown = squares + slope + n * offset
            moved._cubes = self._cubes + 2 * along @ self._products
            moved._cubes += offset[:, :, None] * s[:, None] + grown[:, :, None] * m[:, None]
            cross = 2 * self._cubes @ across + (squares + slope)[:, :, None] * offset[:, None]
            within = 4 * along @ self._products @ across + n * offset[:, :, None] * offset[:, None]
            moved._quartics = self._quartics + cross + cross.swapaxes(1, 2) + within
        return moved


def _gathered(found: T) -> T:
    moved = copy(found)
    vars(moved).update({name: value.cpu().numpy() for name, value in vars(found).items() if hasattr(value, "cpu")})
    return moved


def _columns(rows: Any, which: Any) -> Any:
    return rows.take(which, axis=1) if isinstance(rows, np.ndarray) else rows[:, which]


def _diagonal(matrices: Array) -> Array:
    return matrices.diagonal(axis1=-2, axis2=-1)
