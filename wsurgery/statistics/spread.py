"""A mean over seeds and how far they spread."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

SD_FROM = 4  # seeds; a standard deviation of fewer says little


class Spread(NamedTuple):
    """A mean over seeds and how far they spread: `kind` is "range", "sd", or "" for one value."""

    mean: float
    low: float
    high: float
    kind: str


def spread(values: Sequence[float]) -> Spread:
    """Summarise seeds: mean with their range for fewer than 4, else with ± 1 sample standard deviation."""
    mean = fmean(values)
    if len(values) >= SD_FROM:
        return Spread(mean, mean - stdev(values), mean + stdev(values), "sd")
    return Spread(mean, min(values), max(values), "range" if len(values) > 1 else "")
