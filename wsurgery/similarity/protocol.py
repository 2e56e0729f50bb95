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
from wsurgery.similarity.canonical import smallest_eigenvalue
from wsurgery.similarity.metrics import Scores, similarities
from wsurgery.similarity.moments import DrawnMoments, Varying, matrix_elements

Channels = Literal["independent", "same", "all"]
Rows = Literal["spatial", "whole"]

_FEW_IMAGES = 8
_MOST_BYTES = 2 << 30  # of moments in one pass
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
    notes = few_rows(n * k, max(d_a, d_b), "more images (--images, -p)")
    if n < _FEW_IMAGES:
        notes.append(
            f"only {n} images, so the spread is large: use more images (--images), a larger -p, or --rows spatial"
        )
    return Plan(layer, a, b, n, k, d_a, d_b, notes)


def few_rows(rows: int, channels: int, more: str) -> list[str]:
    """Return a note if there are few rows for a number of channels; `more` is how to get more rows, in words."""
    if rows >= _ENOUGH_ROWS * channels:
        return []
    return [f"only {rows} rows for {channels} channels, so the floor is high: use {more} or a smaller -d"]


def repeats_at_once(layers: Sequence[tuple[tuple[int, int], tuple[int, int]]], repeats: int) -> int:
    """Return how many repeats one pass can serve within the memory limit; at least one.

    Args:
        layers: for each, the channels that A and B have, and those that are drawn.
        repeats: number of repeats wanted.
    """

    def bytes_at_most(repeats: int) -> int:
        # Two sets of moments; A is drawn twice, the second time in B's place.
        return sum(16 * matrix_elements(sum(c), repeats, 2 * d[0] + d[1]) for c, d in layers)

    return max((r for r in range(1, repeats + 1) if bytes_at_most(r) <= _MOST_BYTES), default=1)


class Draws:
    """Draws of channels of one layer, and the moments of what was drawn.

    Attributes:
        columns_a, columns_b: the channels that are in some draw, int64.
    """

    def __init__(
        self,
        layer: str,
        c: tuple[int, int],
        d: tuple[int, int],
        repeats: range,
        *,
        channels: Channels,
        seed: int,
        metrics: Sequence[str],
        fast: bool = False,
    ) -> None:
        """Draw `d` of `c` channels of A and of B."""
        (c_a, c_b), (d_a, d_b) = c, d
        if d == c:
            repeats = repeats[:1]  # every further draw would be the same

        def draw(purpose: str, c: int, d: int) -> Tensor:
            draws = [np.sort(generator(seed, layer, r, purpose).permutation(c)[:d]) for r in repeats]
            return torch.from_numpy(np.stack(draws))

        purpose_b = "channels of A" if channels == "same" else "channels of B"
        draws_a, draws_b = draw("channels of A", c_a, d_a), draw(purpose_b, c_b, d_b)
        draws_self = draw(purpose_b, c_a, d_a)  # A in B's place, drawn as B is: A against A is the ceiling
        self._repeats = len(draws_a)
        self._metrics = metrics
        self.columns_a = torch.unique(torch.cat([draws_a, draws_self]))
        self.columns_b = torch.unique(draws_b)
        self._a, self._self = (torch.searchsorted(self.columns_a, draws) for draws in (draws_a, draws_self))
        self._b = torch.searchsorted(self.columns_b, draws_b) + len(self.columns_a)
        channels_drawn, norms = len(self.columns_a) + len(self.columns_b), "unbiased_cka" in metrics
        self._paired = DrawnMoments(self._a, self._b, self._self, channels=channels_drawn, norms=norms, fast=fast)
        self._rolled = DrawnMoments(self._a, self._b, channels=channels_drawn, norms=norms, fast=fast)

    def add_paired(self, a: Tensor, b: Tensor) -> None:
        """Add rows of A, (n, columns_a), and the rows of B, (n, columns_b), that belong to them."""
        self._paired.update(torch.cat([a, b], dim=1))

    def add_rolled(self, a: Tensor, b: Tensor) -> None:
        """Add rows of A with rows of B that do not belong to them."""
        self._rolled.update(torch.cat([a, b], dim=1))

    @property
    def finite(self) -> bool:
        """Whether the moments are finite: a network that diverged has no similarity."""
        return self._paired.finite and self._rolled.finite

    @property
    def smallest_eigenvalue(self) -> float:
        """The smallest eigenvalue of the correlation matrices of the draws."""
        pairs = list(self._paired.pairs(0, 1)) + list(self._paired.pairs(2, 1))
        return min(float(smallest_eigenvalue(matrix).min()) for pair in pairs for matrix in (pair.xx, pair.yy))

    def scores(self) -> tuple[dict[str, dict[str, Scores]], int, int]:
        """Return, by metric, `value`, `floor` and `ceiling` of each draw, and the smallest ranks of A's and B's draws.

        A score is None where nothing varies or something is not finite; the floor also where nothing was rolled.
        """
        nothing: Scores = [None] * self._repeats
        if not self.finite:
            return {metric: dict.fromkeys(("value", "floor", "ceiling"), nothing) for metric in self._metrics}, 0, 0
        value, rank_a, rank_b = self._similarities(self._paired, 1)
        ceiling, *_ = self._similarities(self._paired, 2)
        floor = self._similarities(self._rolled, 1)[0] if self._rolled.rows else dict.fromkeys(self._metrics, nothing)
        return {m: {"value": value[m], "floor": floor[m], "ceiling": ceiling[m]} for m in self._metrics}, rank_a, rank_b

    def _similarities(self, moments: DrawnMoments, against: int) -> tuple[dict[str, Scores], int, int]:
        found = [similarities(pair, self._metrics) for pair in moments.pairs(0, against)]
        scores = {metric: [score for scores, *_ in found for score in scores[metric]] for metric in self._metrics}
        return scores, min(int(rank.min()) for _, rank, _ in found), min(int(rank.min()) for *_, rank in found)


class LayerSample:
    """One layer in one pass over images: its draws, and the moments of the rows that have been seen.

    The rows of A are paired with those of B at the same positions of the same image, and, for the floor, with those of
    B at the same positions of the next image (the last with the first).

    Attributes:
        plan: what is taken.
        draws: of channels.
        varying_a, varying_b: which of all channels vary.
    """

    def __init__(
        self, plan: Plan, repeats: range, *, channels: Channels, seed: int, metrics: Sequence[str] = ("mean_cca",)
    ) -> None:
        self.plan = plan
        c, d = (plan.a.channels, plan.b.channels), (plan.d_a, plan.d_b)
        self.draws = Draws(plan.layer, c, d, repeats, channels=channels, seed=seed, metrics=metrics)
        self._grid = shared_grid(plan.a, plan.b)
        cells, rng = self._grid[0] * self._grid[1], generator(seed, plan.layer, 0, "positions")
        self._positions = np.stack([rng.choice(cells, plan.k, replace=False, shuffle=False) for _ in range(plan.n)])
        self._first_b = self._last_a = torch.zeros(0)
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
        a, b = a[..., self.draws.columns_a], b[..., self.draws.columns_b]
        self.draws.add_paired(a.flatten(0, 1), b[:, :k].flatten(0, 1))
        at_previous = b[:, k:]
        if len(self._last_a):
            self._roll(torch.cat([self._last_a, a[:-1]]), at_previous)
        else:
            self._first_b = at_previous[:1]
            self._roll(a[:-1], at_previous[1:])
        self._last_a = a[-1:]

    def close(self) -> None:
        """Pair the last image of A with the first of B, unless it is the only one."""
        if self.plan.n > 1:
            self._roll(self._last_a, self._first_b)

    def _roll(self, a: Tensor, b: Tensor) -> None:
        self.draws.add_rolled(a.flatten(0, 1), b.flatten(0, 1))


def draw_passes(
    plans: Sequence[Plan],
    pool: Cells,
    *,
    repeats: int,
    channels: Channels,
    rows: Rows,
    seed: int,
    metrics: Sequence[str] = ("mean_cca",),
) -> list[tuple[Cells, list[LayerSample]]]:
    """Draw the passes over the images in `pool`, (n,): for each, the images in order and a sample for each layer.

    With `spatial` rows one pass serves as many repeats as memory allows, on the same rows; with `whole` each has its
    own, and a layer takes the first images.
    """
    if rows == "spatial":
        at_once = repeats_at_once([((x.a.channels, x.b.channels), (x.d_a, x.d_b)) for x in plans], repeats)
        served = [range(start, min(start + at_once, repeats)) for start in range(0, repeats, at_once)]
        orders = [pool] * len(served)
    else:
        most = max(plan.n for plan in plans)
        orders = [pool[generator(seed, "", r, "images").permutation(len(pool))[:most]] for r in range(repeats)]
        served = [range(r, r + 1) for r in range(repeats)]
    return [
        (order, [LayerSample(plan, which, channels=channels, seed=seed, metrics=metrics) for plan in plans])
        for order, which in zip(orders, served, strict=True)
    ]


def generator(seed: int, layer: str, repeat: int, purpose: str) -> np.random.Generator:
    """Return the generator of one draw."""
    return RandomStream(seed, "cca", repeat, layer).generator(0, purpose)
