"""What a comparison found, brought together over its repeats."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from wsurgery.similarity.metrics import Scores
from wsurgery.similarity.moments import Varying
from wsurgery.similarity.protocol import Draws


@dataclass(frozen=True)
class LayerSimilarity:
    """The similarity of one layer by one metric, averaged over the repeats.

    Attributes:
        layer: its name.
        metric: its name in `wsurgery.similarity.metrics`.
        value: A against B; None where it is not defined (`notes` says why).
        se: standard error of `value` over the repeats; None for a single repeat.
        floor: A against B on other images at the same positions, under the same draws; None where there is one image.
        ceiling: A against A, under the same draws.
        normalised: (value − floor) / (ceiling − floor); None where that is not defined.
        c_a, c_b: channels of the layer in A and in B.
        d: channels drawn on each side (the smaller side's number, where all are taken).
        p: rows (image patches) really used in a repeat.
        images: images that they come from; None where activations were given.
        rank_a, rank_b: the smallest rank of the drawn channels over the repeats.
        dead_a, dead_b: channels of the layer that are constant over the rows.
        repeats: the value of each repeat; None where only dead channels were drawn.
        notes: what a reader of the numbers should know, in words.
    """

    layer: str
    metric: str
    value: float | None
    se: float | None
    floor: float | None
    ceiling: float | None
    normalised: float | None
    c_a: int
    c_b: int
    d: int
    p: int
    images: int | None
    rank_a: int
    rank_b: int
    dead_a: int
    dead_b: int
    repeats: list[float | None]
    notes: list[str]


def summarise(
    layer: str,
    passes: Sequence[Draws],
    varying: Sequence[tuple[Varying, Varying]],
    *,
    d: int,
    p: int,
    images: int | None,
    notes: Sequence[str],
) -> list[LayerSimilarity]:
    """Bring the passes over one layer together, and what varied of A and of B in each: one entry a metric."""
    masks = [[side.mask for side in sides] for sides in zip(*varying, strict=True)]
    (c_a, c_b) = (len(side[0]) for side in masks)
    dead_a, dead_b = (max(int((~mask).sum()) for mask in side) for side in masks)
    found = [draws.scores() for draws in passes]
    finite = all(draws.finite for draws in passes)
    results = []
    for metric in found[0][0]:
        repeats, floors, ceilings = (
            [score for scores, *_ in found for score in scores[metric][name]] for name in ("value", "floor", "ceiling")
        )
        value, floor, ceiling = _mean(repeats), _mean(floors), _mean(ceilings)
        normalised = None
        if value is not None and floor is not None and ceiling is not None and ceiling > floor:
            normalised = (value - floor) / (ceiling - floor)
        known = _known(repeats)
        more = []
        if dead_a == c_a or dead_b == c_b:
            more.append(f"undefined: no channel of {'A' if dead_a == c_a else 'B'} varies")
        elif not finite:
            more.append("undefined: activations are not finite")
        elif len(known) < len(repeats):
            more.append(f"{len(repeats) - len(known)} of {len(repeats)} repeats drew nothing but constant channels")
        results.append(
            LayerSimilarity(
                layer=layer,
                metric=metric,
                value=value,
                se=stdev(known) / len(known) ** 0.5 if len(known) > 1 else None,
                floor=floor,
                ceiling=ceiling,
                normalised=normalised,
                c_a=c_a,
                c_b=c_b,
                d=d,
                p=p,
                images=images,
                rank_a=min(rank for _, rank, _ in found),
                rank_b=min(rank for *_, rank in found),
                dead_a=dead_a,
                dead_b=dead_b,
                repeats=repeats,
                notes=[*notes, *more],
            )
        )
    return results


def _mean(scores: Scores) -> float | None:
    return fmean(_known(scores)) if _known(scores) else None


def _known(scores: Scores) -> list[float]:
    return [score for score in scores if score is not None]
