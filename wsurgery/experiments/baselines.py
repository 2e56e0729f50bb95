"""How the networks of an experiment stand against classifiers without a network on the same images, in words."""

from collections.abc import Iterable
from statistics import fmean

from wsurgery.errors import printable
from wsurgery.experiments.runs import Baseline
from wsurgery.experiments.summary import Arm
from wsurgery.statistics.permutation import ALPHA
from wsurgery.training.baseline_names import NAMES, WORDS, Name


def baseline_notes(arms: Iterable[Arm]) -> list[str]:
    """Say of each baseline how high it is, how many networks are above it, and which arms are not; of none, nothing."""
    found = {arm.name: [x for x in arm.baselines if x is not None] for arm in arms}
    by_name = {name: {arm: [x for x in some if x.name == name] for arm, some in found.items()} for name in NAMES}
    return [
        _note(name, {arm: some for arm, some in each.items() if some})
        for name, each in by_name.items()
        if any(each.values())
    ]


def _note(name: Name, arms: dict[str, list[Baseline]]) -> str:
    every = [baseline for some in arms.values() for baseline in some]
    aucs = [baseline.macro_auc for baseline in every]
    low, high = (f"{bound:.3f}" for bound in (min(aucs), max(aucs)))
    spread = f" ({low} to {high})" if low != high else ""
    above = sum(x.difference > 0 and x.p is not None and x.p < ALPHA for x in every)
    said = (
        f"Without a network: logistic regression on {WORDS[name]} of the same training images has a test AUC of {fmean(aucs):.3f}"
        f"{spread}; {above} of {len(every)} networks {'is' if above == 1 else 'are'} above it (DeLong's paired test, "
        f"p < {ALPHA:g}, not corrected)."
    )
    beaten = [printable(arm, 40) for arm, some in arms.items() if fmean(x.difference for x in some) <= 0]
    if beaten:
        said += (
            f" In the mean {_listed(beaten)} {'does' if len(beaten) == 1 else 'do'} not beat it: on these images no claim "
            f"about {'it' if len(beaten) == 1 else 'them'} is worth much."
        )
    return said


def _listed(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
