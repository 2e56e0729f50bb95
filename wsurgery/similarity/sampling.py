"""What a comparison of networks takes of a layer, and the rows of it that it has seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from wsurgery.errors import UsageError, printable
from wsurgery.processes import Processes
from wsurgery.similarity.activations import Cells, Layout, cells_at, shared_grid
from wsurgery.similarity.metrics import require_rows
from wsurgery.similarity.moments import AnyRows, Varying
from wsurgery.similarity.protocol import (
    Channels,
    Draws,
    few_rows,
    generator,
    groups_at_once,
    repeats_at_once,
    usable_groups,
)

Rows = Literal["spatial", "whole"]

_FEW_IMAGES = 8
_NEARLY_ALL, _HARDLY_ANY = 0.95, 0.05  # of the pairs of images for the floor, are of one patient


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
        more = "a larger -p, or --rows spatial" if n < pool else "more images (--images, where the data have more)"
        notes.append(f"only {n} images, so the spread is large: use {more}")
    return Plan(layer, layer_a, layer_b, a, b, n, k, d_a, d_b, need, notes)


class LayerSample:
    """One layer in one pass over images: its draws, and the moments of the rows that have been seen.

    The rows of A are paired with those of B at the same positions of the same image, and, for the floor, with those of
    B at the same positions of the image that comes `shift` later (the last ones with the first).

    Attributes:
        plan: what is taken.
        shift: below the number of images, where there is more than one.
        draws: of channels.
        varying_a, varying_b: which of all channels vary.
    """

    def __init__(
        self,
        plan: Plan,
        repeats: range,
        *,
        channels: Channels,
        seed: int,
        metrics: Sequence[str],
        groups: int,
        shift: int,
    ) -> None:
        self.plan, self.shift = plan, shift
        c, d = (plan.a.channels, plan.b.channels), (plan.d_a, plan.d_b)
        groups = usable_groups(groups, units=plan.n, rows=plan.k, channels=plan.fewest)
        self.draws = Draws(plan.layer, c, d, repeats, channels=channels, seed=seed, metrics=metrics, groups=groups)
        self._grid = shared_grid(plan.a, plan.b)
        cells, rng = self._grid[0] * self._grid[1], generator(seed, plan.layer, 0, "positions")
        self._positions = np.stack([rng.choice(cells, plan.k, replace=False, shuffle=False) for _ in range(plan.n)])
        self._columns = torch.from_numpy(self.draws.columns_a), torch.from_numpy(self.draws.columns_b)
        self._firsts_b: list[Tensor] = []
        self._last_a = torch.zeros(0)
        self.varying_a, self.varying_b = Varying(), Varying()

    def cells(self, start: int, stop: int) -> tuple[Cells, Cells]:
        """Return where to look in images `start` to `stop` (or the plan's last), as cells of A and of B.

        In A at each image's positions, (n, k); in B also at those of the image `shift` before it, (n, 2k).
        """
        here = np.arange(start, min(stop, self.plan.n))
        own, before = self._positions[here], self._positions[here - self.shift]
        both = np.concatenate([own, before], axis=1)
        return cells_at(own, self._grid, self.plan.a), cells_at(both, self._grid, self.plan.b)

    def update(self, start: int, a: Tensor, b: Tensor) -> None:
        """Add what was found at `cells`, (n, k, c_a) and (n, 2k, c_b), from image `start` on.

        Batches come in the order of the images and without a gap, from any image on.
        """
        k = self.plan.k
        self.varying_a.update(_rows(a))
        self.varying_b.update(_rows(b[:, :k]))
        self._columns = self._columns[0].to(a.device), self._columns[1].to(b.device)
        a, b = a[..., self._columns[0]], b[..., self._columns[1]]
        group = np.arange(start, start + len(a)) * self.draws.groups // self.plan.n
        for i in np.unique(group).tolist():
            own = slice(*np.searchsorted(group, [i, i + 1]))
            self.draws.add_paired(_rows(a[own], b[own, :k]), i)
        waiting = torch.cat([self._last_a, a]) if len(self._last_a) else a
        # Those of B whose partner is at the end, or in another process.
        alone = min(self.shift - len(self._last_a), len(b))
        if alone:
            self._firsts_b.append(b[:alone, k:])
        if alone < len(b):
            self._roll(waiting[: len(b) - alone], b[alone:, k:])
        self._last_a = waiting[-self.shift :]

    def close(self, processes: Processes) -> None:
        """Pair the last images of A with the first of B, unless there is but one; bring all to the first process.

        With several processes, the images that follow the last ones of a process are the first ones of the next.
        """
        firsts = [first for some in processes.from_next([first.cpu() for first in self._firsts_b]) for first in some]
        if self.plan.n > 1 and len(self._last_a):
            partners = torch.cat(firsts)[self.shift - len(self._last_a) : self.shift]
            self._roll(self._last_a, partners.to(self._last_a.device))
        self.draws.gather(processes)
        for name in ("varying_a", "varying_b"):
            setattr(self, name, getattr(self, name).gathered())
            if parts := [part for part in processes.to_first(getattr(self, name)) if len(part.mask)]:
                setattr(self, name, reduce(add, parts))

    def _roll(self, a: Tensor, b: Tensor) -> None:
        self.draws.add_rolled(_rows(a, b))


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
    shift: int,
) -> list[tuple[Cells, list[LayerSample]]]:
    """Draw the passes over the images in `pool`, (n,): for each, the images in order and a sample for each layer.

    With `spatial` rows one pass serves as many repeats as memory allows, on the same rows; with `whole` each has its
    own, and a layer takes the first images. There are fewer groups rather than more passes. `shift` is that of the floor.
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
    sample = partial(LayerSample, channels=channels, seed=seed, metrics=metrics, groups=groups, shift=shift)
    return [(order, [sample(x, which) for x in plans]) for order, which in zip(orders, served, strict=True)]


def shift_for_floor(patients: Sequence[str]) -> int:
    """Return by how many of the images, whose patients these are, B is rolled for the floor.

    It is 1, unless nearly all images would then meet one of the same patient: so floors stay as they were published. Else it
    is the smallest, up to 512, at which hardly any do, or, where there is none, that at which the fewest do.
    """
    people = np.unique(np.asarray(patients), return_inverse=True)[1]
    shares = [float(np.mean(people == np.roll(people, -shift))) for shift in range(1, min(len(people), 513))]
    if not shares or shares[0] <= _NEARLY_ALL:
        return 1
    return 1 + next((i for i, share in enumerate(shares) if share <= _HARDLY_ANY), int(np.argmin(shares)))


def _rows(*sides: Tensor) -> AnyRows:
    """Return patches, (n, k, c) of each side, as rows beside each other, (n·k, all c): numpy's if they are on the CPU."""
    rows = torch.cat([side.flatten(0, 1) for side in sides], dim=1)
    if rows.device.type != "cpu":
        return rows
    return (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()
