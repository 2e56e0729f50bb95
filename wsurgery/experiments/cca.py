"""Comparisons of two networks by layer, made once or for several seeds: which there are, and what they come to."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from wsurgery.errors import UsageError, printable
from wsurgery.experiments.runs import LayerScore, natural, read_similarities
from wsurgery.similarity.metric_names import METRICS
from wsurgery.statistics.spread import Spread, spread

PRETRAINED_PAIR, RANDOM_PAIR = "pretrained-pair", "random-pair"
TO_INIT = "-to-init"
AT_INIT = "-at-init"  # of a comparison of two networks as training began
_Paths = dict[str, dict[str, Path]]  # name → seed → file
Series = Mapping[str, Sequence[Sequence[LayerScore]]]  # name → one result for each seed


def layer_names(series: Series) -> list[str]:
    """Name the layers of all results, from the lowest up."""
    return list(dict.fromkeys(layer.layer for results in series.values() for result in results for layer in result))


def layer_means(results: Sequence[Sequence[LayerScore]], field: str) -> dict[str, float]:
    """Average `field` over the seeds, for each layer where every seed has it."""
    found: dict[str, list[float | None]] = {}
    for result in results:
        for layer in result:
            found.setdefault(layer.layer, []).append(getattr(layer, field))
    means = {}
    for layer_name, values in found.items():
        numbers = [value for value in values if value is not None]
        if len(numbers) == len(results):
            means[layer_name] = fmean(numbers)
    return means


@dataclass(frozen=True)
class Comparison:
    """Similarities of two networks by layer.

    Attributes:
        name: what was compared; `ARM-to-init` is a network after training against itself before it.
        by_seed: the layers from the lowest up, for each seed; the seed of a comparison made once is "".
    """

    name: str
    by_seed: Mapping[str, Sequence[LayerScore]]

    @property
    def results(self) -> list[Sequence[LayerScore]]:
        """The layers, one list a seed."""
        return list(self.by_seed.values())

    @property
    def layers(self) -> list[str]:
        """All layers, from the lowest up."""
        return layer_names({self.name: self.results})

    def means(self, field: str = "value") -> dict[str, float]:
        """Return the mean over the seeds for each layer where every seed has it, from the lowest up."""
        return layer_means(self.results, field)

    def values(self, layer: str) -> dict[str, float]:
        """Return the similarity of a layer for each seed that has one."""
        found = {seed: x.value for seed, scores in self.by_seed.items() for x in scores if x.layer == layer}
        return {seed: value for seed, value in found.items() if value is not None}

    def spread(self, layer: str) -> Spread | None:
        """Return mean and spread over the seeds; None where a seed has no value."""
        values = self.values(layer)
        return spread(list(values.values())) if len(values) == len(self.by_seed) else None


class LayerDifference(NamedTuple):
    """Similarity of one comparison less that of another at one layer, and its standard error if known.

    Of two comparisons made once the error is that of images and draws, else it is that of the mean of the seeds.
    """

    layer: str
    difference: float
    se: float | None


def differences(a: Comparison, b: Comparison) -> list[LayerDifference]:
    """Subtract `b` from `a` at each layer that all of both have: by seed where seeds match, else their means."""
    found = []
    of_b = b.means()
    for layer, mean in a.means().items():
        if layer not in of_b:
            continue
        x, y = a.values(layer), b.values(layer)
        both = [seed for seed in x if seed in y]
        if len(both) > 1:
            paired = [x[seed] - y[seed] for seed in both]
            found.append(LayerDifference(layer, fmean(paired), stdev(paired) / sqrt(len(paired))))
        else:
            errors = [standard_error(comparison, layer) for comparison in (a, b)]
            known = [se for se in errors if se is not None]
            se = hypot(*known) if len(known) == 2 else None
            found.append(LayerDifference(layer, mean - of_b[layer], se))
    return found


def standard_error(comparison: Comparison, layer: str) -> float | None:
    """Return that of the mean of the seeds at a layer; of a comparison made once that of images and draws, if known."""
    values = list(comparison.values(layer).values())
    if len(values) > 1:
        return stdev(values) / sqrt(len(values))
    (error,) = (x.se for x in comparison.results[0] if x.layer == layer)
    return error


def find_comparisons(
    folder: Path, arms: Sequence[str], chosen: Sequence[str] | None, seeds: Collection[str] | None = None
) -> dict[str, Comparison]:
    """Read `folder`/cca/NAME.json, `folder`/cca/NAME/SEED.json and, as ARM-to-init, `folder`/runs/ARM/SEED/cca-init.json.

    Args:
        folder: an experiment.
        arms: without `chosen`, whose cca-init.json are read; empty for all.
        chosen: names, in the order of the page; None for all.
        seeds: which, of those that have several; None for all.

    Raises:
        UsageError: a chosen name is not there, or two places have it.
        WsurgeryError: a file is broken.
    """
    to_init, once, seeded = _places(folder, seeds)
    pairs = once | seeded
    paths = to_init | pairs
    if chosen is None:
        first = [PRETRAINED_PAIR, RANDOM_PAIR]
        of_arms = [f"{arm}{TO_INIT}" for arm in arms] or sorted(to_init, key=natural)
        chosen = [name for name in of_arms if name in to_init and name not in pairs]
        chosen += sorted(pairs, key=lambda name: (name not in first, natural(name)))
    for name in chosen:
        if name not in paths:
            there = ", ".join(printable(name) for name in sorted(paths, key=natural)) or "none"
            raise UsageError(
                f"{printable(str(folder))} has no comparison {printable(name)}; there are: {there}. Make it with "
                f"`wsurgery cca A B --data SPEC --json -o cca/NAME/SEED.json`"
            )
        places = [next(iter(place[name].values())) for place in (to_init, once, seeded) if name in place]
        if len(places) > 1:
            raise UsageError(
                f"{printable(name)} is in {' and in '.join(printable(str(x)) for x in places)}: remove one"
            )
    found = {
        name: Comparison(name, {seed: read_similarities(path) for seed, path in paths[name].items()}) for name in chosen
    }
    metrics = {layer.metric: name for name, each in found.items() for layers in each.results for layer in layers}
    if len(metrics) > 1:
        mixed = " and ".join(f"{printable(name)} of {printable(metric)}" for metric, name in metrics.items())
        raise UsageError(
            f"{printable(str(folder))} has comparisons of several metrics, {mixed}: a page has one; name its comparisons "
            "with --cca"
        )
    return found


def metric_of(comparisons: Iterable[Comparison]) -> str:
    """Return which similarity comparisons of one page are of, in words."""
    metric = next(layer.metric for each in comparisons for layers in each.results for layer in layers)
    return METRICS.get(metric, metric)


def comparisons_in(folder: Path) -> list[str]:
    """Name the comparisons of an experiment."""
    return sorted({name for place in _places(folder) for name in place}, key=natural)


def seeds_of_comparisons(folder: Path) -> set[str]:
    """Return the seeds that comparisons of an experiment have."""
    return {seed for place in _places(folder) for paths in place.values() for seed in paths if seed}


def _places(folder: Path, seeds: Collection[str] | None = None) -> tuple[_Paths, _Paths, _Paths]:
    """Look where comparisons may be: beside runs, cca/NAME.json, and cca/NAME/SEED.json."""
    to_init = _gather(
        (f"{x.parents[1].name}{TO_INIT}", x.parent.name, x)
        for x in folder.glob("runs/*/*/cca-init.json")
        if seeds is None or x.parent.name in seeds
    )
    once = _gather((x.stem, "", x) for x in folder.glob("cca/*.json"))
    seeded = _gather(
        (x.parent.name, x.stem, x) for x in folder.glob("cca/*/*.json") if seeds is None or x.stem in seeds
    )
    return to_init, once, seeded


def _gather(found: Iterable[tuple[str, str, Path]]) -> _Paths:
    """Group (name, seed, path) by name, with the seeds in numeric order."""
    paths: _Paths = {}
    for name, seed, path in sorted(found, key=lambda x: natural(x[1])):
        paths.setdefault(name, {})[seed] = path
    return paths
