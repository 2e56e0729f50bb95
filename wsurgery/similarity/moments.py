"""Second moments of rows that pass by once: what a comparison needs of them, in memory that does not grow with them."""

import torch
from torch import Tensor

CHUNK = 4096  # rows that are converted to float64 at a time


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
            self.mask = torch.zeros(rows.shape[1], dtype=torch.bool)
        self.mask = self.mask | (rows != self._first).any(0)

    def __add__(self, other: "Varying") -> "Varying":
        """Return what varies in both parts together; neither part may be empty."""
        both = Varying()
        both.update(torch.stack([self._first, other._first]))
        both.mask = both.mask | self.mask | other.mask
        return both


class Moments:
    """Centred second moments in float64 of the rows seen so far, additive over parts of the data.

    Sums are taken about the mean of the first chunk: about zero they would cancel where a channel's mean is large
    against its spread. To relate X, (n, c_x), to Y, (n, c_y), pass the rows of [X|Y].

    Attributes:
        rows: number of rows seen.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._varying = Varying()

    def update(self, rows: Tensor) -> None:
        """Add rows, (n, c), of any floating type."""
        self._varying.update(rows)
        for chunk in torch.split(rows, CHUNK):
            if len(chunk) == 0:
                continue
            z = chunk.double()
            if self.rows == 0:
                self._shift = z.mean(0)
                self._sums = torch.zeros_like(self._shift)
                self._products = z.new_zeros(z.shape[1], z.shape[1])
            z = z - self._shift
            self._sums = self._sums + z.sum(0)
            self._products = torch.addmm(self._products, z.T, z)
            self.rows += len(z)

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments of both parts together; neither part may be empty."""
        both = Moments()
        both.rows = self.rows + other.rows
        both._shift = self._shift
        move = other._shift - self._shift  # the other part's sums, moved to be about this part's shift
        cross = torch.outer(other._sums, move)
        both._sums = self._sums + other._sums + other.rows * move
        both._products = self._products + other._products + cross + cross.T + other.rows * torch.outer(move, move)
        both._varying = self._varying + other._varying
        return both

    def covariance(self) -> Tensor:
        """Return the centred second moments over the number of rows, (c, c), float64; a constant channel's are 0."""
        covariance = (self._products - torch.outer(self._sums, self._sums) / self.rows) / self.rows
        varies = self._varying.mask
        return torch.where(varies[:, None] & varies[None, :], covariance, 0.0)
