"""The validation AUCs that steps are counted to: numbers, or shares of what runs come to that no claim is about."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

from wsurgery.errors import UsageError, printable
from wsurgery.experiments.runs import Run
from wsurgery.training.run_log import in_a_row

_CHANCE = 0.5  # the AUC of no network at all, from which shares are counted
_LEAST = 0.55  # where the baseline is taken to end at least: shares of nothing would be passed by noise


@dataclass(frozen=True)
class Thresholds:
    """Validation macro AUCs, 0 to 1, that steps are counted to.

    Attributes:
        aucs: one, or an odd number of them in ascending order, of which claims are tested at the middle one.
        origin: in words, where they are from; empty for numbers that somebody gave.
    """

    aucs: Sequence[float]
    origin: str = ""

    @property
    def tested(self) -> float:
        """The one that claims are tested at."""
        return self.aucs[len(self.aucs) // 2]

    @property
    def others(self) -> list[float]:
        """Those beside it, which show whether it matters."""
        return [auc for auc in self.aucs if auc != self.tested]


def read_thresholds(text: str) -> list[tuple[float, bool]]:
    """Read `0.9`, `0.8,0.85,0.9`, or `80%,90%,95%`: numbers, and whether they are shares.

    Raises:
        UsageError: they are no AUCs and no shares, or not an odd number of them in ascending order.
    """
    found = []
    for word in text.split(","):
        number, share = word.strip().removesuffix("%"), word.strip().endswith("%")
        try:
            value = float(number) / (100 if share else 1)
        except ValueError:
            value = 0.0
        if not 0 < value <= 1:
            raise UsageError(
                f"--threshold {printable(word, 40)} is no AUC: give a number from 0 to 1, such as 0.9, or 90%"
            )
        found.append((value, share))
    if len(found) % 2 == 0 or len({share for _, share in found}) > 1 or found != sorted(set(found)):
        raise UsageError(
            f"--threshold {printable(text, 80)}: give one, or three of one kind from the lowest up, such as 80%,90%,95%"
        )
    return found


def resolve(asked: Sequence[tuple[float, bool]], plateau: Sequence[Run]) -> Thresholds:
    """Return the AUCs that were asked for; a share is one of the way from chance to where the runs of `plateau` end.

    Raises:
        UsageError: shares were asked for, of nothing.
    """
    if not asked[0][1]:
        return Thresholds([auc for auc, _ in asked])
    if not plateau:
        raise UsageError(
            f"--threshold {asked[0][0]:.0%}: of what? Name with --plateau an arm that is not on the page, the baseline with "
            "other seeds: a threshold that is taken from the runs that it is to judge is no fair one"
        )
    end = fmean(fmean(islice(reversed(run.auc.values()), in_a_row(len(run.auc)))) for run in plateau)
    way = max(end, _LEAST)
    aucs = [round(_CHANCE + share * (way - _CHANCE), 3) for share, _ in asked]
    shares = ", ".join(f"{share:.0%}" for share, _ in asked)
    runs = f"{len(plateau)} run{'s' if len(plateau) > 1 else ''} of {plateau[0].arm}, which no claim is about,"
    to = f"{end:.3f}, where {runs} end" if end >= _LEAST else f"{way:g}, for {runs} end at {end:.3f}, hardly above it"
    return Thresholds(aucs, f"{shares} of the way from chance to {to}")
