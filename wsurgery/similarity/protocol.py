"""What a comparison draws, and what it gathers of one layer.

Source: Raghu et al., *Transfusion*, 2019, appendix C; the floor and the ceiling are ours. Every draw comes from a hash
of (seed, layer, repeat, purpose), on the CPU, so it depends on nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from wsurgery.errors import UsageError, printable
from wsurgery.operations.random_streams import RandomStream
from wsurgery.processes import Processes
from wsurgery.similarity.activations import Cells, Layout, cells_at, shared_grid
from wsurgery.similarity.canonical import smallest_eigenvalue
from wsurgery.similarity.metrics import Scores, quick_similarities, require_rows, similarities
from wsurgery.similarity.moments import DrawnMoments, Varying, matrix_elements

Channels = Literal["independent", "same", "all"]
Rows = Literal["spatial", "whole"]

Sizes = Sequence[tuple[tuple[int, int], tuple[int, int]]]

GROUPS = 16  # of images, for the jackknife
_FEW_IMAGES = 8
_MOST_BYTES = 2 << 30  # of moments in one pass
_MOST_LEAVING_OUT = 1 << 30  # groups × draws × channels³: a second or less, where it is more than the fewest draws
_FEWEST_LEAVING_OUT = 2  # draws: the error that they have in common is in the covariance of two
_ENOUGH_ROWS = 10  # times the number of channels


@dataclass(frozen=True)
class Plan:
    """What a repeat takes from one layer: `k` positions in each of `n` images, `d_a` channels of A and `d_b` of B.

    Attributes:
        layer: its name, of which every draw depends.
        layer_a, layer_b: its name in A and in B.
        a, b: its layout in A and in B.
        fewest: rows that there have to be more of.
        notes: what a reader of the result should know, in words.
    """

    layer: str
    layer_a: str
    layer_b: str
    a: Layout
    b: Layout
    n: int
    k: int
    d_a: int
    d_b: int
    fewest: int
    notes: list[str]


def plan_layer(
    layer_a: str,
    layer_b: str,
    a: Layout,
    b: Layout,
    *,
    p: int,
    d: int,
    pool: int,
    channels: Channels,
    rows: Rows,
    metrics: Sequence[str],
) -> Plan:
    """Decide what is taken of a layer of A and one of B, for `p` rows and `d` channels wanted, of `pool` images.

    Raises:
        UsageError: there would be too few rows for the number of channels, or the same channels are wanted of sides
            that do not have as many.
    """
    layer = layer_a if layer_a == layer_b else f"{layer_a} × {layer_b}"
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
    need = require_rows(
        f"{where} gives {n * k} rows ({n} images × {k})",
        n * k,
        (d_a, d_b),
        metrics,
        "use more images (--images, -p), fewer channels (-d), or leave the layer out (--layers)",
    )
    notes = few_rows(n * k, max(d_a, d_b), "more images (--images, -p)")
    if n < _FEW_IMAGES:
        notes.append(
            f"only {n} images, so the spread is large: use more images (--images), a larger -p, or --rows spatial"
        )
    return Plan(layer, layer_a, layer_b, a, b, n, k, d_a, d_b, need, notes)


def few_rows(rows: int, channels: int, more: str) -> list[str]:
    """Return a note if there are few rows for a number of channels; `more` is how to get more rows, in words."""
    if rows >= _ENOUGH_ROWS * channels:
        return []
    return [f"only {rows} rows for {channels} channels, so the floor is high: use {more} or a smaller -d"]


def repeats_at_once(layers: Sizes, repeats: int) -> int:
    """Return how many repeats one pass can serve within the memory limit; at least one.

    Args:
        layers: for each, the channels that A and B have, and those that are drawn.
        repeats: number of repeats wanted.
    """
    return max((r for r in range(1, repeats + 1) if _moments_bytes(layers, r, 1) <= _MOST_BYTES), default=1)


def groups_at_once(layers: Sizes, repeats: int, groups: int) -> int:
    """Return how many of the wanted groups can be kept apart within the memory limit; at least one."""
    return max((g for g in range(1, groups + 1) if _moments_bytes(layers, repeats, g) <= _MOST_BYTES), default=1)


def usable_groups(groups: int, *, units: int, rows: int, channels: int) -> int:
    """Return into how many groups to divide the units (images) for a jackknife; 1 where none can be left out.

    Args:
        groups: number wanted.
        units: number of units.
        rows: of each unit.
        channels: drawn on both sides together, or what `require_rows` said; what is left needs more rows.
    """
    groups = max(1, min(groups, units))
    return groups if (units - -(-units // groups)) * rows > channels else 1


def draws_to_jackknife(groups: int, channels: int) -> int:
    """Return of how many draws at most groups are left out in turn, so that this does not take most of the time.

    Args:
        groups: number of groups.
        channels: drawn on the larger side.
    """
    return max(_FEWEST_LEAVING_OUT, _MOST_LEAVING_OUT // (groups * channels**3))


def _moments_bytes(layers: Sizes, repeats: int, groups: int) -> int:
    # Those of unrelated rows, and those of each group; A is drawn twice, the second time in B's place.
    return sum(8 * (groups + 1) * matrix_elements(sum(c), repeats, 2 * d[0] + d[1]) for c, d in layers)


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
        groups: int = 1,
        fast: bool = False,
    ) -> None:
        """Draw `d` of `c` channels of A and of B; keep the moments of `groups` groups of rows apart."""
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
        self._jackknifed = max(0, min(draws_to_jackknife(groups, max(d)), repeats.stop) - repeats.start)
        self._metrics = metrics
        self.columns_a = torch.unique(torch.cat([draws_a, draws_self]))
        self.columns_b = torch.unique(draws_b)
        self._a, self._self = (torch.searchsorted(self.columns_a, draws) for draws in (draws_a, draws_self))
        self._b = torch.searchsorted(self.columns_b, draws_b) + len(self.columns_a)
        channels_drawn, norms = len(self.columns_a) + len(self.columns_b), "unbiased_cka" in metrics
        self._groups = [
            DrawnMoments(self._a, self._b, self._self, channels=channels_drawn, norms=norms, fast=fast)
            for _ in range(groups)
        ]
        self._rolled = DrawnMoments(self._a, self._b, channels=channels_drawn, norms=norms, fast=fast)

    def add_paired(self, a: Tensor, b: Tensor, group: int = 0) -> None:
        """Add rows of A, (n, columns_a), and the rows of B, (n, columns_b), that belong to them, to a group."""
        self._groups[group].update(torch.cat([a, b], dim=1))

    def add_rolled(self, a: Tensor, b: Tensor) -> None:
        """Add rows of A with rows of B that do not belong to them."""
        self._rolled.update(torch.cat([a, b], dim=1))

    def gather(self, processes: Processes) -> None:
        """Bring what all processes have added to the first of them, and from the device where that was."""
        for i, group in enumerate(self._groups):
            self._groups[i] = group.cpu()
            if parts := processes.to_first(self._groups[i]):
                self._groups[i] = DrawnMoments.together(parts)
        self._rolled = self._rolled.cpu()
        if parts := processes.to_first(self._rolled):
            self._rolled = DrawnMoments.together(parts)

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self._groups)

    @property
    def finite(self) -> bool:
        """Whether the moments are finite: a network that diverged has no similarity."""
        return all(group.finite for group in self._groups) and self._rolled.finite

    @property
    def smallest_eigenvalue(self) -> float:
        """The smallest eigenvalue of the correlation matrices of the draws."""
        paired = DrawnMoments.together(self._groups)
        pairs = list(paired.pairs(0, 1)) + list(paired.pairs(2, 1))
        return min(float(smallest_eigenvalue(matrix).min()) for pair in pairs for matrix in (pair.xx, pair.yy))

    def scores(self) -> tuple[dict[str, dict[str, Scores]], int, int]:
        """Return, by metric, `value`, `floor` and `ceiling` of each draw, and the smallest ranks of A's and B's draws.

        A score is None where nothing varies or something is not finite; the floor also where nothing was rolled.
        """
        nothing: Scores = [None] * self._repeats
        if not self.finite:
            return {metric: dict.fromkeys(("value", "floor", "ceiling"), nothing) for metric in self._metrics}, 0, 0
        paired = DrawnMoments.together(self._groups)
        value, rank_a, rank_b = self._similarities(paired, 1)
        ceiling = self._scores(paired, 2)
        floor = self._scores(self._rolled, 1) if self._rolled.rows else dict.fromkeys(self._metrics, nothing)
        return {m: {"value": value[m], "floor": floor[m], "ceiling": ceiling[m]} for m in self._metrics}, rank_a, rank_b

    def left_out(self) -> dict[str, list[Scores]]:
        """Return, by metric, the values of the draws without each group; nothing where there is one group.

        They are of the first draws only, where there are many channels (`draws_to_jackknife`).
        """
        if self.groups == 1 or not self._jackknifed or not self.finite:
            return {metric: [] for metric in self._metrics}
        remaining = DrawnMoments.without_each(self._groups, draws=self._jackknifed)
        found = [self._scores(rest, 1) for rest in remaining]
        return {metric: [scores[metric] for scores in found] for metric in self._metrics}

    def _scores(self, moments: DrawnMoments, against: int) -> dict[str, Scores]:
        quick = [quick_similarities(pair, self._metrics) for pair in moments.pairs(0, against)]
        known = [scores for scores in quick if scores is not None]
        if not known:
            return self._similarities(moments, against)[0]
        return {metric: [score for scores in known for score in scores[metric]] for metric in self._metrics}

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
        self, plan: Plan, repeats: range, *, channels: Channels, seed: int, metrics: Sequence[str], groups: int
    ) -> None:
        self.plan = plan
        c, d = (plan.a.channels, plan.b.channels), (plan.d_a, plan.d_b)
        groups = usable_groups(groups, units=plan.n, rows=plan.k, channels=plan.fewest)
        self.draws = Draws(plan.layer, c, d, repeats, channels=channels, seed=seed, metrics=metrics, groups=groups)
        self._grid = shared_grid(plan.a, plan.b)
        cells, rng = self._grid[0] * self._grid[1], generator(seed, plan.layer, 0, "positions")
        self._positions = np.stack([rng.choice(cells, plan.k, replace=False, shuffle=False) for _ in range(plan.n)])
        self._columns = self.draws.columns_a, self.draws.columns_b
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

    def update(self, start: int, a: Tensor, b: Tensor) -> None:
        """Add what was found at `cells`, (n, k, c_a) and (n, 2k, c_b), from image `start` on.

        Batches come in the order of the images and without a gap, from any image on.
        """
        k = self.plan.k
        self.varying_a.update(a.flatten(0, 1))
        self.varying_b.update(b[:, :k].flatten(0, 1))
        self._columns = self._columns[0].to(a.device), self._columns[1].to(b.device)
        a, b = a[..., self._columns[0]], b[..., self._columns[1]]
        group = np.arange(start, start + len(a)) * self.draws.groups // self.plan.n
        for i in np.unique(group).tolist():
            own = slice(*np.searchsorted(group, [i, i + 1]))
            self.draws.add_paired(a[own].flatten(0, 1), b[own, :k].flatten(0, 1), i)
        at_previous = b[:, k:]
        if len(self._last_a):
            self._roll(torch.cat([self._last_a, a[:-1]]), at_previous)
        else:
            self._first_b = at_previous[:1]
            self._roll(a[:-1], at_previous[1:])
        self._last_a = a[-1:]

    def close(self, processes: Processes) -> None:
        """Pair the last image of A with the first of B, unless it is the only one; bring all to the first process.

        With several processes, the image that follows the last one of a process is the first one of the next.
        """
        firsts = [first for first in processes.from_next(self._first_b.cpu()) if len(first)]
        if self.plan.n > 1 and len(self._last_a):
            self._roll(self._last_a, firsts[0].to(self._last_a.device))
        self.draws.gather(processes)
        for name in ("varying_a", "varying_b"):
            setattr(self, name, getattr(self, name).cpu())
            if parts := [part for part in processes.to_first(getattr(self, name)) if len(part.mask)]:
                setattr(self, name, reduce(add, parts))

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
    metrics: Sequence[str],
    groups: int,
) -> list[tuple[Cells, list[LayerSample]]]:
    """Draw the passes over the images in `pool`, (n,): for each, the images in order and a sample for each layer.

    With `spatial` rows one pass serves as many repeats as memory allows, on the same rows; with `whole` each has its
    own, and a layer takes the first images. There are fewer groups rather than more passes.
    """
    sizes = [((x.a.channels, x.b.channels), (x.d_a, x.d_b)) for x in plans]
    at_once = repeats_at_once(sizes, repeats) if rows == "spatial" else 1
    groups = groups_at_once(sizes, at_once, groups)
    if rows == "spatial":
        served = [range(start, min(start + at_once, repeats)) for start in range(0, repeats, at_once)]
        orders = [pool] * len(served)
    else:
        most = max(plan.n for plan in plans)
        orders = [pool[generator(seed, "", r, "images").permutation(len(pool))[:most]] for r in range(repeats)]
        served = [range(r, r + 1) for r in range(repeats)]
    return [
        (
            order,
            [LayerSample(x, which, channels=channels, seed=seed, metrics=metrics, groups=groups) for x in plans],
        )
        for order, which in zip(orders, served, strict=True)
    ]


def generator(seed: int, layer: str, repeat: int, purpose: str) -> np.random.Generator:
    """Return the generator of one draw."""
    return RandomStream(seed, "cca", repeat, layer).generator(0, purpose)
