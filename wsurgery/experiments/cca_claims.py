"""What comparisons of two networks do and do not show of the paper's claims."""

from collections.abc import Mapping, Sequence

from wsurgery.experiments.cca import (
    AT_INIT,
    PRETRAINED_PAIR,
    RANDOM_PAIR,
    TO_INIT,
    Comparison,
    LayerDifference,
    differences,
)
from wsurgery.experiments.claims import Claim
from wsurgery.statistics.permutation import (
    NOT_SHOWN,
    Significance,
    correlation,
    in_all,
    mann_whitney,
    sign_flip,
    verdict,
)

_ONE_PAIR = "suggestive only (1 pair of each kind)"


def comparison_claims(comparisons: Mapping[str, Comparison]) -> list[Claim]:
    """Judge those claims that there are comparisons for. Seeds count as independent of each other.

    Seeds that both comparisons have are paired. Comparisons made once are judged by the standard errors of images and
    draws, and never more than suggestive: another pair of networks might differ.
    """
    found = [_lowest_moves_least(comparisons[name]) for name in (f"transfer{TO_INIT}",) if name in comparisons]
    pretrained, random = comparisons.get(PRETRAINED_PAIR), comparisons.get(RANDOM_PAIR)
    if pretrained and random:
        text = "Two networks trained from the same pretrained weights are more alike than two from random ones."
        found += [_more_alike(text, pretrained, random, differences(pretrained, random))]
        found += [_most_in_the_lowest(pretrained, random)]
    mixed = comparisons.get("transfer-random")
    if mixed and random:
        top = differences(random, mixed)[-2:]
        text = "In the top two layers, a pretrained and a random network are less alike than two random ones."
        found += [_more_alike(text, random, mixed, top)]
    for name in (RANDOM_PAIR, "transfer-random"):
        before, after = comparisons.get(f"{name}{AT_INIT}"), comparisons.get(name)
        found += [_stays_alike(before, after)] if before and after else []
    return [claim for claim in found if claim]


def _stays_alike(before: Comparison, after: Comparison) -> Claim | None:
    """Judge that pairs which are more alike than others when training begins are so when it ends, in the lowest layer."""
    layer = after.layers[0]
    x, y = before.values(layer), after.values(layer)
    both = [seed for seed in x if seed in y]
    if len(both) < 3 or any(len({values[seed] for seed in both}) == 1 for values in (x, y)):
        return None
    rho, test = correlation([x[seed] for seed in both], [y[seed] for seed in both])
    pairs = ", ".join(f"{x[seed]:.3f} → {y[seed]:.3f}" for seed in both)
    evidence = f"{after.name}, {layer}, by seed: {pairs}; Spearman's ρ {rho:+.2f}."
    text = f"Those of {after.name} that are more alike in the lowest layer when training begins are so when it ends."
    return Claim(text, evidence, verdict(test), test.p, 1)


def _lowest_moves_least(comparison: Comparison) -> Claim | None:
    """Compare the lowest layer with the most alike of those above it, in each seed."""
    results = comparison.results
    fields = ("normalised", "value")
    field = next((f for f in fields if all(getattr(x, f) is not None for scores in results for x in scores)), None)
    if field is None or any(len(scores) < 2 for scores in results):
        return None
    lowest = [getattr(scores[0], field) for scores in results]
    above = [max(getattr(x, field) for x in scores[1:]) for scores in results]
    kind = "Similarity between floor and ceiling" if field == "normalised" else "Similarity"
    evidence = (
        f"{kind} of {comparison.name.removesuffix(TO_INIT)}'s {results[0][0].layer} to its own initialisation, by seed: "
        f"{_list(lowest)}; the most alike of the layers above it: {_list(above)}."
    )
    test = sign_flip([x - y for x, y in zip(lowest, above, strict=True)])
    return Claim("The lowest layer moves least from the pretrained weights.", evidence, verdict(test), test.p, 1)


def _more_alike(text: str, a: Comparison, b: Comparison, layers: Sequence[LayerDifference]) -> Claim | None:
    """Judge that `a` exceeds `b` in every one of `layers`."""
    if not layers:
        return None
    listed = ", ".join(f"{x.layer} {x.difference:+.3f}" for x in layers)
    evidence = f"{a.name} less {b.name}, by layer: {listed}."
    if len(a.by_seed) == len(b.by_seed) == 1:
        everywhere = all(x.difference > 2 * (x.se or 0) for x in layers)
        rule = " To count, each must exceed twice its standard error."
        return Claim(text, evidence + rule, _ONE_PAIR if everywhere else NOT_SHOWN)
    tests = [_exceeds(a, b, x.layer) for x in layers]
    values = ", ".join(f"{x.layer} {test.p:.2g}" for x, test in zip(layers, tests, strict=True))
    test = in_all(tests)
    evidence += f" Each must be positive; p: {values}, of which the largest counts."
    return Claim(text, evidence, verdict(test), test.p, len(tests))


def _exceeds(a: Comparison, b: Comparison, layer: str) -> Significance:
    x, y = a.values(layer), b.values(layer)
    both = [seed for seed in x if seed in y]
    if len(both) > 1:
        return sign_flip([x[seed] - y[seed] for seed in both])
    return mann_whitney(list(y.values()), list(x.values()))


def _most_in_the_lowest(a: Comparison, b: Comparison) -> Claim | None:
    """Judge that `a` exceeds `b` by most where the network is lowest."""
    layers = differences(a, b)
    if len(layers) < 2:
        return None
    if len(a.by_seed) == len(b.by_seed) == 1:
        largest = max(layers, key=lambda x: x.difference)
        holds = largest is layers[0] and largest.difference > 2 * (largest.se or 0)
        evidence = f"It is largest in {largest.layer}; the lowest is {layers[0].layer}."
        return Claim("That difference is largest in the lowest layer.", evidence, _ONE_PAIR if holds else NOT_SHOWN)
    (low_a, low_b), (top_a, top_b) = (
        (a.values(layer), b.values(layer)) for layer in (layers[0].layer, layers[-1].layer)
    )
    both = [seed for seed in low_a if seed in low_b]
    if len(both) < 2:
        return None  # without pairs, no seed has a difference of its own
    excess = [low_a[seed] - low_b[seed] - (top_a[seed] - top_b[seed]) for seed in both]
    test = sign_flip(excess)
    evidence = f"{layers[0].layer} less {layers[-1].layer}, by seed: {', '.join(f'{x:+.3f}' for x in excess)}."
    return Claim(
        "That difference is larger in the lowest layer than in the highest.", evidence, verdict(test), test.p, 1
    )


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
