"""What a comparison draws of channels, and what it gathers of them.

Source: Raghu et al., *Transfusion*, 2019, appendix C; the floor and the ceiling are ours. Every draw comes from a hash
of (seed, layer, repeat, purpose), on the CPU, so it depends on nothing else.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal

import numpy as np

from wsurgery.operations.arrays import Array
from wsurgery.operations.random_streams import RandomStream
from wsurgery.processes import Processes
from wsurgery.similarity.canonical import smallest_eigenvalue
from wsurgery.similarity.metrics import Scores, quick_similarities, similarities
from wsurgery.similarity.moments import AnyRows, Moments, matrix_elements

Channels = Literal["independent", "same", "all"]

Sizes = Sequence[tuple[tuple[int, int], tuple[int, int]]]

GROUPS = 16  # of images, for the jackknife
_MOST_BYTES = 2 << 30  # of moments in one pass
_MOST_LEAVING_OUT = 1 << 30  # groups × draws × channels³: a second or less, where it is more than the fewest draws
_FEWEST_LEAVING_OUT = 2  # draws: the error that they have in common is in the covariance of two
_ENOUGH_ROWS = 10  # times the number of channels
_MANY_CHANNELS = 512  # from which BLAS's threads have more to do than to wait for each other


def enough_threads(drawn: int) -> AbstractContextManager[object]:
    """Let numpy's BLAS work in one thread while this is open, if no more than a few channels are drawn."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(None if drawn >= _MANY_CHANNELS else 1, "blas")
    return limits


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

        def draw(purpose: str, c: int, d: int) -> Array:
            return np.stack([np.sort(generator(seed, layer, r, purpose).permutation(c)[:d]) for r in repeats])

        purpose_b = "channels of A" if channels == "same" else "channels of B"
        draws_a, draws_b = draw("channels of A", c_a, d_a), draw(purpose_b, c_b, d_b)
        draws_self = draw(purpose_b, c_a, d_a)  # A in B's place, drawn as B is: A against A is the ceiling
        self._repeats = len(draws_a)
        self._jackknifed = max(0, min(draws_to_jackknife(groups, max(d)), repeats.stop) - repeats.start)
        self._metrics = metrics
        self.columns_a, self.columns_b = np.unique([draws_a, draws_self]), np.unique(draws_b)
        in_a, in_self = (np.searchsorted(self.columns_a, draws) for draws in (draws_a, draws_self))
        in_b = np.searchsorted(self.columns_b, draws_b) + len(self.columns_a)
        c_drawn, norms = len(self.columns_a) + len(self.columns_b), "unbiased_cka" in metrics
        self._groups = [Moments(in_a, in_b, in_self, channels=c_drawn, norms=norms, fast=fast) for _ in range(groups)]
        self._rolled = Moments(in_a, in_b, channels=c_drawn, norms=norms, fast=fast)

    def add_paired(self, rows: AnyRows, group: int = 0) -> None:
        """Add rows of A beside those of B that belong to them, (n, columns_a + columns_b), to a group."""
        self._groups[group].update(rows)

    def add_rolled(self, rows: AnyRows) -> None:
        """Add rows of A beside rows of B that do not belong to them."""
        self._rolled.update(rows)

    def gather(self, processes: Processes) -> None:
        """Bring what all processes have added to the first of them, and from the device where that was."""

        def together(own: Moments) -> Moments:
            own = own.gathered()
            parts = processes.to_first(own)
            return Moments.together(parts) if parts else own

        self._groups, self._rolled = [together(group) for group in self._groups], together(self._rolled)

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
        paired = Moments.together(self._groups)
        pairs = list(paired.pairs(0, 1)) + list(paired.pairs(2, 1))
        return min(float(smallest_eigenvalue(matrix).min()) for pair in pairs for matrix in (pair.xx, pair.yy))

    def scores(self) -> tuple[dict[str, dict[str, Scores]], int, int]:
        """Return, by metric, `value`, `floor` and `ceiling` of each draw, and the smallest ranks of A's and B's draws.

        A score is None where nothing varies or something is not finite; the floor also where nothing was rolled.
        """
        nothing: Scores = [None] * self._repeats
        if not self.finite:
            return {metric: dict.fromkeys(("value", "floor", "ceiling"), nothing) for metric in self._metrics}, 0, 0
        paired = Moments.together(self._groups)
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
        remaining = Moments.without_each(self._groups, draws=self._jackknifed)
        found = [self._scores(rest, 1) for rest in remaining]
        return {metric: [scores[metric] for scores in found] for metric in self._metrics}

    def _scores(self, moments: Moments, against: int) -> dict[str, Scores]:
        quick = [quick_similarities(pair, self._metrics) for pair in moments.pairs(0, against)]
        known = [scores for scores in quick if scores is not None]
        if not known:
            return self._similarities(moments, against)[0]
        return {metric: [score for scores in known for score in scores[metric]] for metric in self._metrics}

    def _similarities(self, moments: Moments, against: int) -> tuple[dict[str, Scores], int, int]:
        found = [similarities(pair, self._metrics) for pair in moments.pairs(0, against)]
        scores = {metric: [score for scores, *_ in found for score in scores[metric]] for metric in self._metrics}
        return scores, min(int(rank.min()) for _, rank, _ in found), min(int(rank.min()) for *_, rank in found)


def generator(seed: int, layer: str, repeat: int, purpose: str) -> np.random.Generator:
    """Return the generator of one draw."""
    return RandomStream(seed, "cca", repeat, layer).generator(0, purpose)
