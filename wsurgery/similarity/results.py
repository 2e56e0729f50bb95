"""What a comparison found, brought together over its repeats."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import hypot
from statistics import fmean, stdev

import numpy as np

from wsurgery.errors import table_cell
from wsurgery.similarity.metrics import Scores
from wsurgery.similarity.moments import Varying
from wsurgery.similarity.protocol import Draws


@dataclass(frozen=True)
class LayerSimilarity:
    """The similarity of one layer by one metric, averaged over the repeats.

    Attributes:
        layer: its name; for a layer of A against another one of B, `layer_a × layer_b`.
        layer_a, layer_b: its name in A and in B.
        metric: its name in `wsurgery.similarity.metrics`.
        value: A against B; None where it is not defined (`notes` says why).
        se: standard error of `value`: the root of the sum of the squares of the next two, of those that are known.
        se_images: its part from the images (rows of a file): a jackknife over `groups`, of the first repeats only where
            many channels are drawn; None for one group.
        se_channels: its part from the draws of channels: the spread of `repeats` over the root of their number, less
            the images' part where every repeat has images of its own; None for a single repeat.
        bias_corrected: `value` less its bias from the finite number of images, as the jackknife estimates it; it can
            leave the range of `value`. The floor and the ceiling are not corrected.
        floor: A against B on other images at the same positions, under the same draws; None where there is one image.
        ceiling: A against A, under the same draws.
        normalised: (value − floor) / (ceiling − floor); None where that is not defined.
        c_a, c_b: channels of the layer in A and in B.
        d: channels drawn on each side (the smaller side's number, where all are taken).
        p: rows (image patches) really used in a repeat.
        images: images that they come from; None where activations were given.
        groups: consecutive images, or rows of a file, are left out together in so many groups; 1 is no jackknife.
        rank_a, rank_b: the smallest rank of the drawn channels over the repeats.
        dead_a, dead_b: channels of the layer that are constant over the rows.
        repeats: the value of each repeat; None where only dead channels were drawn.
        notes: what a reader of the numbers should know, in words.
    """

    layer: str
    layer_a: str
    layer_b: str
    metric: str
    value: float | None
    se: float | None
    se_images: float | None
    se_channels: float | None
    bias_corrected: float | None
    floor: float | None
    ceiling: float | None
    normalised: float | None
    c_a: int
    c_b: int
    d: int
    p: int
    images: int | None
    groups: int
    rank_a: int
    rank_b: int
    dead_a: int
    dead_b: int
    repeats: list[float | None]
    notes: list[str]


def summarise(
    layer_a: str,
    layer_b: str,
    passes: Sequence[Draws],
    varying: Sequence[tuple[Varying, Varying]],
    *,
    d: int,
    p: int,
    images: int | None,
    same_rows: bool,
    notes: Sequence[str],
) -> list[LayerSimilarity]:
    """Bring the passes over one layer together, and what varied of A and of B in each: one entry a metric.

    Args:
        layer_a, layer_b: its name in A and in B.
        passes: what each gathered.
        varying: for each, what varied of A and of B.
        d, p, images, notes: as in the result.
        same_rows: whether all passes saw the same rows, in the same groups.
    """
    masks = [[side.mask for side in sides] for sides in zip(*varying, strict=True)]
    (c_a, c_b) = (len(side[0]) for side in masks)
    dead_a, dead_b = (max(int((~mask).sum()) for mask in side) for side in masks)
    found = [draws.scores() for draws in passes]
    left_out = [draws.left_out() for draws in passes]
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
        spread = stdev(known) / len(known) ** 0.5 if len(known) > 1 else None
        se_images, bias = _jackknife(
            [scores[metric]["value"] for scores, *_ in found], [x[metric] for x in left_out], same_rows
        )
        se_channels = spread
        if spread is not None and se_images is not None and not same_rows:
            se_channels = max(spread**2 - se_images**2, 0.0) ** 0.5
        parts = _known([se_images, se_channels])
        more = []
        if dead_a == c_a or dead_b == c_b:
            more.append(f"undefined: no channel of {'A' if dead_a == c_a else 'B'} varies")
        elif not finite:
            more.append("undefined: activations are not finite")
        elif len(known) < len(repeats):
            why = "drew nothing but constant channels"
            if metric == "unbiased_cka":
                why += ", or too few rows for an unbiased estimate of a norm that is positive"
            more.append(f"{len(repeats) - len(known)} of {len(repeats)} repeats {why}")
        results.append(
            LayerSimilarity(
                layer=layer_a if layer_a == layer_b else f"{layer_a} × {layer_b}",
                layer_a=layer_a,
                layer_b=layer_b,
                metric=metric,
                value=value,
                se=hypot(*parts) if parts else None,
                se_images=se_images,
                se_channels=se_channels,
                bias_corrected=None if value is None or bias is None else value - bias,
                floor=floor,
                ceiling=ceiling,
                normalised=normalised,
                c_a=c_a,
                c_b=c_b,
                d=d,
                p=p,
                images=images,
                groups=passes[0].groups,
                rank_a=min(rank for _, rank, _ in found),
                rank_b=min(rank for *_, rank in found),
                dead_a=dead_a,
                dead_b=dead_b,
                repeats=repeats,
                notes=[*notes, *more],
            )
        )
    return results


def as_csv(results: Sequence[LayerSimilarity]) -> str:
    """Write one line a result, with a header; without the values of each repeat and the notes."""
    columns = [field.name for field in fields(LayerSimilarity) if field.name not in ("repeats", "notes")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for result in results:
        cells = (getattr(result, column) for column in columns)
        writer.writerow([table_cell(cell) if isinstance(cell, str) else cell for cell in cells])
    return text.getvalue()


def _jackknife(
    values: Sequence[Scores], left_out: Sequence[Sequence[Scores]], same_rows: bool
) -> tuple[float | None, float | None]:
    """Return the standard error and the bias of the mean of all values, by the jackknife over groups.

    Groups may be left out of the first draws only. The error of a mean of R draws is v / R + (1 − 1 / R) c, where v is
    that of one draw and c the covariance of the errors of two: both are as good, if noisier, from a few draws.

    Source: Quenouille, *Notes on bias in estimation*, 1956; Tukey, *Bias and confidence in not-quite large samples*, 1958.

    Args:
        values: the values of each pass.
        left_out: for each pass and group, the values of its first draws without that group; or nothing for a pass.
        same_rows: whether all passes saw the same rows; if not, their errors are independent.
    """
    first = [len(groups[0]) if groups else 0 for groups in left_out]
    whole = [list(scores[:draws]) for scores, draws in zip(values, first, strict=True)]
    if same_rows:
        whole = [[score for scores in whole for score in scores]]
        together = zip(*(groups for groups in left_out if groups), strict=True)
        left_out = [[[score for scores in group for score in scores] for group in together]]
        values = [[score for scores in values for score in scores]]
    variances, biases = [], []
    for scores, of_draws, groups in zip(values, whole, left_out, strict=True):
        known = [i for i, score in enumerate(of_draws) if score is not None]
        without = np.array([[group[i] for i in known] for group in groups], float)  # None becomes NaN
        if not without.size or np.isnan(without).any():
            continue
        g, r = without.shape
        errors = (g - 1) * np.atleast_2d(np.cov(without.T, bias=True))
        each = errors.trace() / r
        common = (errors.sum() - errors.trace()) / (r * (r - 1)) if r > 1 else each
        total = len(_known(scores))
        variances.append(max(each / total + (1 - 1 / total) * common, 0.0))
        biases.append((g - 1) * (float(without.mean()) - fmean(_known(of_draws))))
    if not variances:
        return None, None
    passes = sum(bool(_known(scores)) for scores in values)
    return (fmean(variances) / passes) ** 0.5, fmean(biases)


def _mean(scores: Scores) -> float | None:
    return fmean(_known(scores)) if _known(scores) else None


def _known(scores: Scores) -> list[float]:
    return [score for score in scores if score is not None]
