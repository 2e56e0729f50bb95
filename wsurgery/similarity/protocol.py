"""What a comparison draws, and what it gathers of one layer.

Source: Raghu et al., *Transfusion*, 2019, appendix C; the floor and the ceiling are ours. Every draw comes from a hash
of (seed, layer, repeat, purpose), on the CPU, so it depends on nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from wsurgery.errors import UsageError, printable
from wsurgery.operations.random_streams import RandomStream
from wsurgery.similarity.activations import Cells, Layout, cells_at, shared_grid
from wsurgery.similarity.canonical import mean_cca_of_draws
from wsurgery.similarity.moments import Moments, Varying

Channels = Literal["independent", "same", "all"]
Rows = Literal["spatial", "whole"]
Scores = list[float | None]

_FEW_IMAGES = 8
_ENOUGH_ROWS = 10  # times the number of channels


@dataclass(frozen=True)
class Plan:
    """What a repeat takes from one layer: `k` positions in each of `n` images, `d_a` channels of A and `d_b` of B.

    Attributes:
        layer: its name.
        a, b: its layout in A and in B.
        notes: what a reader of the result should know, in words.
    """

    layer: str
    a: Layout
    b: Layout
    n: int
    k: int
    d_a: int
    d_b: int
    notes: list[str]


def plan_layer(layer: str, a: Layout, b: Layout, *, p: int, d: int, pool: int, channels: Channels, rows: Rows) -> Plan:
    """Decide what is taken from a layer, for `p` rows wanted, `d` channels wanted, and `pool` images that there are.

    Raises:
        UsageError: there would be too few rows for the number of channels, or the same channels are wanted of sides
            that do not have as many.
    """
    where = printable(layer)
    if channels == "same" and a.channels != b.channels:
        raise UsageError(
            f"{where} has {a.channels} channels in A and {b.channels} in B: --channels same needs as many in both"
        )
    height, width = shared_grid(a, b)
    cells = height * width
    if rows == "whole":
        n, k = min(max(2, -(-p // cells)), pool), cells
    else:
        n, k = pool, min(max(1, -(-p // pool)), cells)
    d = min(d, a.channels, b.channels)
    d_a, d_b = (a.channels, b.channels) if channels == "all" else (d, d)
    if n * k <= d_a + d_b:
        raise UsageError(
            f"{where} gives {n * k} rows ({n} images × {k}) for {d_a} + {d_b} channels, which forces every correlation "
            "to 1: use more images (--images, -p), fewer channels (-d), or leave the layer out (--layers)"
        )
    notes = []
    if n * k < _ENOUGH_ROWS * max(d_a, d_b):
        notes.append(
            f"only {n * k} rows for {max(d_a, d_b)} channels, so the floor is high: "
            "use more images (--images, -p) or a smaller -d"
        )
    if n < _FEW_IMAGES:
        notes.append(
            f"only {n} images, so the spread is large: use more images (--images), a larger -p, or --rows spatial"
        )
    return Plan(layer, a, b, n, k, d_a, d_b, notes)


class LayerSample:
    """One layer in one pass over images: its draws, and the moments of the rows that have been seen.

    The rows of A are paired with those of B at the same positions of the same image, and, for the floor, with those of
    B at the same positions of the next image (the last with the first).

    Attributes:
        plan: what is taken.
        varying_a, varying_b: which of all channels vary.
    """

    def __init__(self, plan: Plan, repeats: range, *, channels: Channels, seed: int) -> None:
        self.plan = plan
        c_a, c_b = plan.a.channels, plan.b.channels
        if plan.d_a == c_a and plan.d_b == c_b:
            repeats = repeats[:1]  # every further draw would be the same

        def draw(purpose: str, c: int, d: int) -> Tensor:
            draws = [np.sort(generator(seed, plan.layer, r, purpose).permutation(c)[:d]) for r in repeats]
            return torch.from_numpy(np.stack(draws))

        purpose_b = "channels of A" if channels == "same" else "channels of B"
        draws_a, draws_b = draw("channels of A", c_a, plan.d_a), draw(purpose_b, c_b, plan.d_b)
        draws_self = draw(purpose_b, c_a, plan.d_a)  # A in B's place, drawn as B is: A against A is the ceiling
        self._columns_a = torch.unique(torch.cat([draws_a, draws_self]))
        self._columns_b = torch.unique(draws_b)
        self._a, self._self = (torch.searchsorted(self._columns_a, draws) for draws in (draws_a, draws_self))
        self._b = torch.searchsorted(self._columns_b, draws_b) + len(self._columns_a)

        self._grid = shared_grid(plan.a, plan.b)
        cells, rng = self._grid[0] * self._grid[1], generator(seed, plan.layer, 0, "positions")
        self._positions = np.stack([rng.choice(cells, plan.k, replace=False, shuffle=False) for _ in range(plan.n)])
        self._paired, self._rolled = Moments(), Moments()
        self._first_a = self._first_b = self._last_a = torch.zeros(0)
        self.varying_a, self.varying_b = Varying(), Varying()

    def cells(self, start: int, stop: int) -> tuple[Cells, Cells]:
        """Return where to look in images `start` to `stop` (or the plan's last), as cells of A and of B.

        In A at each image's positions, (n, k); in B also at those of the image before it, (n, 2k).
        """
        here = np.arange(start, min(stop, self.plan.n))
        own, before = self._positions[here], self._positions[here - 1]
        both = np.concatenate([own, before], axis=1)
        return cells_at(own, self._grid, self.plan.a), cells_at(both, self._grid, self.plan.b)

    def update(self, a: Tensor, b: Tensor) -> None:
        """Add what was found at `cells`, (n, k, c_a) and (n, 2k, c_b), batch after batch in the order of the images."""
        k = self.plan.k
        self.varying_a.update(a.flatten(0, 1))
        self.varying_b.update(b[:, :k].flatten(0, 1))
        a, b = a[..., self._columns_a], b[..., self._columns_b]
        _add(self._paired, a, b[:, :k])
        at_previous = b[:, k:]
        if len(self._last_a):
            _add(self._rolled, torch.cat([self._last_a, a[:-1]]), at_previous)
        else:
            self._first_b = at_previous[:1]
            _add(self._rolled, a[:-1], at_previous[1:])
        self._last_a = a[-1:]

    def close(self) -> None:
        """Pair the last image of A with the first of B."""
        _add(self._rolled, self._last_a, self._first_b)

    @property
    def finite(self) -> bool:
        """Whether the moments are finite: a network that diverged has no similarity."""
        return bool(self._paired.covariance().isfinite().all() and self._rolled.covariance().isfinite().all())

    def scores(self) -> tuple[dict[str, Scores], int, int]:
        """Return `value`, `floor` and `ceiling` of each repeat, and the smallest ranks of A's and of B's draws.

        A score is None where nothing varies or something is not finite; the floor also where there is but one image.
        """
        nothing: Scores = [None] * len(self._a)
        if not self.finite:
            return {"value": nothing, "floor": nothing, "ceiling": nothing}, 0, 0
        paired, rolled = self._paired.covariance(), self._rolled.covariance()
        value, rank_a, rank_b = _scores(paired, self._a, self._b)
        ceiling, *_ = _scores(paired, self._a, self._self)
        floor = _scores(rolled, self._a, self._b)[0] if self.plan.n > 1 else nothing
        return {"value": value, "floor": floor, "ceiling": ceiling}, rank_a, rank_b


def draw_passes(
    plans: Sequence[Plan], pool: Cells, *, repeats: int, channels: Channels, rows: Rows, seed: int
) -> list[tuple[Cells, list[LayerSample]]]:
    """Draw the passes over the images in `pool`, (n,): for each, the images in order and a sample for each layer.

    With `spatial` rows one pass serves all repeats; with `whole` each has its own, and a layer takes the first images.
    """
    if rows == "spatial":
        orders, served = [pool], [range(repeats)]
    else:
        most = max(plan.n for plan in plans)
        orders = [pool[generator(seed, "", r, "images").permutation(len(pool))[:most]] for r in range(repeats)]
        served = [range(r, r + 1) for r in range(repeats)]
    return [
        (order, [LayerSample(plan, which, channels=channels, seed=seed) for plan in plans])
        for order, which in zip(orders, served, strict=True)
    ]


def generator(seed: int, layer: str, repeat: int, purpose: str) -> np.random.Generator:
    """Return the generator of one draw."""
    return RandomStream(seed, "cca", repeat, layer).generator(0, purpose)


def _add(moments: Moments, a: Tensor, b: Tensor) -> None:
    moments.update(torch.cat([a, b], dim=2).flatten(0, 1))


def _scores(covariance: Tensor, draws_x: Tensor, draws_y: Tensor) -> tuple[Scores, int, int]:
    means, ranks_x, ranks_y = mean_cca_of_draws(covariance, draws_x, draws_y)
    live = (torch.minimum(ranks_x, ranks_y) > 0).tolist()
    scores = [mean if alive else None for mean, alive in zip(means.tolist(), live, strict=True)]
    return scores, int(ranks_x.min()), int(ranks_y.min())
