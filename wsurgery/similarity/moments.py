"""Moments of rows that pass by once: what a comparison needs of them, in memory that does not grow with them."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

CHUNK = 1024  # rows that are converted at a time, at most: float32 sums the products of more with fewer digits
_CHUNK_BYTES = 1 << 22  # what stays in the cache; the product of fewer than a few hundred rows is slow
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
        self.mask = torch.zeros(0, dtype=torch.bool)

    def update(self, rows: Tensor) -> None:
        """Look at rows, (n, c)."""
        if len(rows) == 0:
            return
        if len(self.mask) == 0:
            self._first = rows[0].clone()
            self.mask = torch.zeros_like(self._first, dtype=torch.bool)
        # Most channels vary within a few rows: the others need not be read, if to know that is to wait for no device.
        on_cpu = rows.device.type == "cpu"
        for some in (rows[:_FEW], rows[_FEW:]) if on_cpu else (rows,):
            if on_cpu and self.mask.all():
                return
            self.mask = self.mask | (some != self._first).any(0)

    def cpu(self) -> "Varying":
        """Return it on the CPU."""
        return _on_cpu(self)

    def __add__(self, other: "Varying") -> "Varying":
        """Return what varies in both parts together; neither part may be empty."""
        return Varying._of(torch.stack([self._first, other._first]), torch.stack([self.mask, other.mask]))

    @staticmethod
    def without_each(parts: Sequence["Varying"]) -> Iterator["Varying"]:
        """Give, for each of two parts or more, what varies in all others together; no part may be empty."""
        firsts, masks = torch.stack([part._first for part in parts]), torch.stack([part.mask for part in parts])
        for others in ~torch.eye(len(parts), dtype=torch.bool):
            yield Varying._of(firsts[others], masks[others])

    @staticmethod
    def _of(firsts: Tensor, masks: Tensor) -> "Varying":
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

    xx: Tensor
    yy: Tensor
    xy: Tensor
    rows: int
    norms: Tensor | None = None


class Moments:
    """Centred moments in float64 of the rows seen so far, additive over parts of the data.

    Sums are taken about the mean of the first chunk: about zero they would cancel where a channel's mean is large
    against its spread. To relate X, (n, c_x), to Y, (n, c_y), pass the rows of [X|Y].

    Attributes:
        rows: number of rows seen.
    """

    def __init__(self, *, sets: Tensor | None = None, fast: bool = False) -> None:
        """Begin with no rows.

        Args:
            sets: (g, c), 0 or 1, sets of channels. For each, the squared norm of a row's channels is related to all
                channels and to the other sets' norms: third and fourth moments, for `norms`.
            fast: multiply in float32, which is faster and leaves an error of about 1e-7 in a covariance of unit variances.
        """
        self.rows = 0
        self._varying = Varying()
        self._sets = None if sets is None else sets.double()
        self._dtype = torch.float32 if fast else torch.float64

    def update(self, rows: Tensor) -> None:
        """Add rows, (n, c), of any floating type."""
        step = min(
            max(_SHORTEST_CHUNK, _CHUNK_BYTES // (rows.shape[1] * self._dtype.itemsize)), CHUNK, max(1, len(rows))
        )
        if rows.device.type != "cpu":  # whose products are as exact of any number of rows, and wait to be started
            step = max(1, len(rows))
        buffer = rows.new_empty(step, rows.shape[1], dtype=self._dtype)
        for chunk in torch.split(rows, step):
            if len(chunk) == 0:
                continue
            self._varying.update(chunk)
            if self.rows == 0:
                self._begin(chunk)
            z = buffer[: len(chunk)].copy_(chunk).sub_(self._shift.to(self._dtype))
            self._sums += z.sum(0, dtype=torch.float64)
            _add_products(self._products, z)
            if self._sets is not None:
                wide = z.double()
                norms = wide.square() @ self._sets.T
                self._cubes += norms.T @ wide
                self._quartics += norms.T @ norms
            self.rows += len(z)

    def _begin(self, chunk: Tensor) -> None:
        c = chunk.shape[1]
        self._shift = chunk.mean(0, dtype=torch.float64).to(self._dtype).double()
        self._sums = torch.zeros_like(self._shift)
        self._products = self._shift.new_zeros(c, c)  # only the lower triangle is kept
        if self._sets is not None:
            self._sets = self._sets.to(chunk.device)
            self._cubes = torch.zeros_like(self._sets)
            self._quartics = self._shift.new_zeros(len(self._sets), len(self._sets))

    def cpu(self) -> "Moments":
        """Return them on the CPU."""
        moved = _on_cpu(self)
        moved._varying = self._varying.cpu()
        return moved

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

    @property
    def finite(self) -> bool:
        """Whether all rows seen are finite, and not so large that their squares are not."""
        return self.rows == 0 or bool((self._sums + self._products.diagonal()).isfinite().all())

    def covariance(self) -> Tensor:
        """Return the centred second moments over the number of rows, (c, c), float64; a constant channel's are 0."""
        products = torch.addr(self._products, self._sums, self._sums, alpha=-1 / self.rows)
        covariance = products.tril_().add_(products.tril(-1).T.contiguous()).div_(self.rows)
        constant = ~self._varying.mask
        if constant.any():
            covariance[constant] = 0.0
            covariance[:, constant] = 0.0
        return covariance

    def norms(self) -> Tensor:
        """Return the mean of ‖u‖²‖v‖² of a centred row for any two sets of channels u and v, (g, g), float64."""
        return self._about(self._shift + self._sums / self.rows)._quartics / self.rows

    @staticmethod
    def without_each(parts: Sequence["Moments"]) -> Iterator["Moments"]:
        """Give, for each of two parts or more, the moments of all others together; no part may be empty."""
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

    def pair(self, c_x: int) -> Pair:
        """Split the channels into X, the first `c_x`, and Y; with `sets`, these two must be the sets."""
        covariance = self.covariance()[None]
        norms = None if self._sets is None else self.norms()[None]
        x, y = slice(c_x), slice(c_x, None)
        return Pair(covariance[:, x, x], covariance[:, y, y], covariance[:, x, y], self.rows, norms)

    def _about(self, shift: Tensor) -> "Moments":
        """Return the same moments about another point: z becomes z + m, and ‖z‖² becomes ‖z‖² + 2 m·z + ‖m‖²."""
        moved = Moments(sets=self._sets)
        n, s, m = self.rows, self._sums, self._shift - shift
        moved.rows, moved._dtype, moved._varying, moved._shift = n, self._dtype, self._varying, shift
        moved._sums = s + n * m
        moved._products = torch.addr(self._products, s, m).addr_(m, s).addr_(m, m, alpha=n)
        if self._sets is not None:
            lower = self._products.tril()
            products = lower + lower.tril(-1).T
            along = self._sets * m
            squares, offset, slope = self._sets @ products.diagonal(), along @ m, 2 * along @ s
            grown = squares + slope + n * offset
            moved._cubes = self._cubes + 2 * along @ products + torch.outer(offset, s) + torch.outer(grown, m)
            cross = 2 * self._cubes @ along.T + torch.outer(squares + slope, offset)
            within = 4 * along @ products @ along.T + n * torch.outer(offset, offset)
            moved._quartics = self._quartics + cross + cross.T + within
        return moved


def matrix_elements(channels: int, draws: int, drawn: int) -> int:
    """Return how many elements `DrawnMoments` needs: of one matrix over all channels, or of one for each draw."""
    whole, each = channels**2, draws * drawn**2
    return whole if whole <= _GATHERING * each else each


class DrawnMoments:
    """The moments of draws of channels, all from one pass.

    They are sub-blocks of one matrix over all channels, or each draw has a matrix of its own, whichever is cheaper. Memory
    does not grow with the rows.
    """

    def __init__(self, *parts: Tensor, channels: int, norms: bool = False, fast: bool = False) -> None:
        """Begin with no rows.

        Args:
            parts: (r, d), int64, the channels of one side in each of r draws; any number of sides.
            channels: number of channels of a row.
            norms: gather what `Pair.norms` needs.
            fast: as for `Moments`.
        """
        self._draws = torch.cat(parts, dim=1)
        self._parts = parts
        self._norms = norms
        r, k = self._draws.shape
        self._whole = matrix_elements(channels, r, k) == channels**2
        if not self._whole:  # channels are counted within a draw
            ends = torch.split(torch.arange(k), [part.shape[1] for part in parts])
            self._parts = tuple(places.expand(r, -1) for places in ends)
        sets = [torch.zeros(r, channels if self._whole else k).scatter_(1, part, 1.0) for part in self._parts]
        each = torch.stack(sets, dim=1)  # (r, parts, channels)
        if self._whole:
            self._moments = [Moments(sets=each.flatten(0, 1) if norms else None, fast=fast)]
        else:
            self._moments = [Moments(sets=members if norms else None, fast=fast) for members in each]

    def update(self, rows: Tensor) -> None:
        """Add rows, (n, channels), of any floating type."""
        if self._whole:
            self._moments[0].update(rows)
        else:
            self._draws = self._draws.to(rows.device)
            for moments, draw in zip(self._moments, self._draws, strict=True):
                moments.update(rows[:, draw])

    def cpu(self) -> "DrawnMoments":
        """Return them on the CPU, where they are compared."""
        moved = _on_cpu(self)
        moved._moments = [moments.cpu() for moments in self._moments]
        return moved

    @staticmethod
    def together(parts: Sequence["DrawnMoments"]) -> "DrawnMoments":
        """Return the moments of all parts together; parts of the same draws, some of which may be empty."""
        seen = [part for part in parts if part.rows] or parts[:1]
        both = copy(seen[0])
        both._moments = [reduce(add, moments) for moments in zip(*(part._moments for part in seen), strict=True)]
        return both

    @staticmethod
    def without_each(parts: Sequence["DrawnMoments"], *, draws: int) -> Iterator["DrawnMoments"]:
        """Give, for each of two parts or more, the moments of all others together; no part may be empty.

        Args:
            parts: of the same draws.
            draws: only the first so many are kept.
        """
        first = copy(parts[0])
        first._draws, first._parts = first._draws[:draws], tuple(part[:draws] for part in first._parts)
        kept = zip(*(part._moments[:draws] for part in parts), strict=True)
        for moments in zip(*map(Moments.without_each, kept), strict=True):
            rest = copy(first)
            rest._moments = list(moments)
            yield rest

    @property
    def rows(self) -> int:
        """Number of rows seen."""
        return self._moments[0].rows

    @property
    def finite(self) -> bool:
        """Whether all moments are finite."""
        return all(moments.finite for moments in self._moments)

    def pairs(self, x: int, y: int) -> Iterator[Pair]:
        """Give the moments of part `x` against part `y`, some draws at a time."""
        covariances = torch.stack([moments.covariance() for moments in self._moments])  # (1, c, c) or (r, k, k)
        norms = torch.stack([moments.norms() for moments in self._moments]) if self._norms else None
        k = covariances.shape[-1]
        step = max(1, _BLOCK_ELEMENTS // max(self._parts[x].shape[1], self._parts[y].shape[1]) ** 2)
        for draws in torch.split(torch.arange(len(self._draws)), step):
            matrix = torch.zeros_like(draws) if self._whole else draws
            in_x, in_y = self._parts[x][draws], self._parts[y][draws]
            starts = ((matrix * k)[:, None] + rows for rows in (in_x, in_y))  # of rows, in all matrices end to end
            from_x, from_y = ((start * k)[:, :, None] for start in starts)
            # By one index, which takes less time than three.
            xx, yy, xy = (
                covariances.take(start + columns[:, None, :])
                for start, columns in ((from_x, in_x), (from_y, in_y), (from_x, in_y))
            )
            among = None
            if norms is not None:
                sides = torch.tensor([x, y]).expand(len(draws), -1)
                if self._whole:
                    sides = sides + draws[:, None] * len(self._parts)
                among = norms[matrix[:, None, None], sides[:, :, None], sides[:, None, :]]
            yield Pair(xx, yy, xy, self.rows, among)


def _on_cpu(found: T) -> T:
    moved = copy(found)
    vars(moved).update({name: value.cpu() for name, value in vars(found).items() if isinstance(value, Tensor)})
    return moved


def _add_products(products: Tensor, z: Tensor) -> None:
    """Add zᵀz, (c, c), to the lower triangle of `products`; z: (n, c), float64 or float32."""
    if products.device.type != "cpu":
        products += z.T @ z  # in float32, TF32 must be off: it keeps ten bits
        return
    from scipy.linalg import blas  # takes a third of a second, which training, which knows this module, need not

    if z.dtype == torch.float64:
        # The upper triangle of the transpose, which is how Fortran reads the same memory: nothing is copied.
        blas.dsyrk(1.0, z.numpy().T, beta=1.0, c=products.numpy().T, overwrite_c=True)
    else:
        products += torch.from_numpy(blas.ssyrk(1.0, z.numpy().T).T)
