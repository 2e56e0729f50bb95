"""Comparing two networks layer by layer, by the protocol of the paper, with the floor and the ceiling of that protocol.

Source: Raghu et al., *Transfusion*, 2019, appendix C. Draws of d of c channels make even a network that is compared
with itself score below 1, and finite samples make unrelated data score above 0. So every value comes with what the same
draws give for unrelated images (the floor) and for a network against itself (the ceiling).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsurgery.data.augment import normalise, to_float
from wsurgery.devices import arithmetic, memory_format
from wsurgery.errors import UsageError, printable
from wsurgery.models.inputs import fit_channels, image_statistics
from wsurgery.processes import ALONE, Processes
from wsurgery.progress import Progress
from wsurgery.similarity.activations import Cells, Layout, layer_modules, probe, sample
from wsurgery.similarity.metrics import check_metrics
from wsurgery.similarity.protocol import GROUPS, Channels, enough_threads, generator
from wsurgery.similarity.results import LayerSimilarity, summarise
from wsurgery.similarity.sampling import LayerSample, Plan, Rows, draw_passes, plan_layer, shift_for_floor

_BATCH_PIXELS = 32 * 224 * 224
_WIDEST_BATCH = 64  # images


def compare(
    model_a: nn.Module,
    model_b: nn.Module,
    images: NDArray[np.uint8],
    *,
    layers: Sequence[str] | Literal["all"] | None = None,
    p: int = 10_000,
    d: int = 64,
    repeats: int = 10,
    channels: Channels = "independent",
    rows: Rows = "spatial",
    n_images: int = 512,
    metrics: Sequence[str] = ("mean_cca",),
    groups: int = GROUPS,
    matrix: bool = False,
    seed: int = 0,
    patients: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    processes: Processes = ALONE,
) -> list[LayerSimilarity]:
    """Compare two networks, of the same architecture or not, by canonical correlations and their relatives.

    Both see the same images, each normalised as the network's `pretrained_cfg` says (as ImageNet without one), and the
    same normalised positions in them are taken as rows. The networks are left on `device` in eval mode.

    With `spatial` rows, the same number of positions is drawn in every image, others in each image and layer. All
    repeats share these rows and redraw the channels. `whole` is the paper: every repeat draws channels and n images
    anew, so that n·h·w = p, and takes all positions; but at least two images, for there is no floor with one, and at
    most those that there are, in which case nothing but the channels is new.

    Args:
        model_a, model_b: the networks.
        images: uint8 (n, size, size, 3).
        layers: block names or module paths in both networks; `all` of the blocks that both have; None for these but
            `neck` and `head`.
        p: rows wanted.
        d: channels to draw, at most the smaller side's number.
        repeats: number of draws. One is made where all draws would be equal.
        channels: `independent` draws on each side (the paper), the `same` channels on both, or `all` of them.
        rows: `spatial` or `whole`.
        n_images: images to draw from `images`; all, if there are fewer.
        metrics: names in `wsurgery.similarity.metric_names.METRICS`; all are computed from the same rows and draws.
        groups: of images to leave out in turn, for the jackknife; fewer, where there are fewer images or where the
            moments of all groups would take too much memory. From about 160 channels on they are left out of the first
            repeats only, at least two, so that error bars take about as long as all else.
        matrix: compare every layer of A with every layer of B, from the same pass over the images. The ceiling of a pair
            is A's layer against itself.
        seed: of all draws.
        patients: (n,), of each image, where they are known. For the floor each image of A meets in B the next one; or, with
            `spatial` rows and where nearly all of these are of one patient, one so far from it that hardly any are.
        device: where the networks run, and the moments are gathered in float64, unless it has none (mps). Correlations are
            computed on the CPU.
        processes: those that share the images, batch by batch.

    Returns:
        One entry a layer (or pair of layers) and metric, in the order of `layers` and, within a layer, of `metrics`. In
        any but the first process, nothing.

    Raises:
        UsageError: an argument that cannot mean anything, no such layer, or too few rows for the number of channels.
        WsurgeryError: a layer that is no grid of patches.
    """
    for name, word, known in (("channels", channels, get_args(Channels)), ("rows", rows, get_args(Rows))):
        if word not in known:
            raise UsageError(f"{name} are {', '.join(known)}, not {printable(word)}")
    check_metrics(metrics)
    networks = _Network.of(model_a, layers, device), _Network.of(model_b, layers, device)
    pairs = _pairs(networks[0].modules, networks[1].modules, matrix=matrix)
    if min(p, d, repeats, groups, n_images, len(images)) < 1:
        raise UsageError("p, d, repeats, groups and the number of images must be at least 1")
    pool = np.sort(generator(seed, "", 0, "pool").permutation(len(images))[:n_images])
    with torch.inference_mode(), arithmetic():  # TF32 keeps ten bits, which is noise to a correlation near 1
        a, b = (
            network.probe(images[pool[:1]], layers)
            for network, layers in zip(networks, map(dict.fromkeys, zip(*pairs, strict=True)), strict=True)
        )
        plans = [
            plan_layer(
                in_a, in_b, a[in_a], b[in_b], p=p, d=d, pool=len(pool), channels=channels, rows=rows, metrics=metrics
            )
            for in_a, in_b in pairs
        ]
        passes = draw_passes(
            plans, pool, repeats=repeats, channels=channels, rows=rows, seed=seed, metrics=metrics, groups=groups,
            shift=shift_for_floor([patients[i] for i in pool]) if patients and rows == "spatial" else 1,
        )  # fmt: skip
        with Progress(sum(len(order) for order, _ in passes) // processes.count, "images") as progress:
            progress.wanted &= processes.rank == 0
            for order, samples in passes:
                _run(*networks, images, order, samples, progress, processes)
        if processes.rank:
            return []
        with enough_threads(max(max(plan.d_a, plan.d_b) for plan in plans)):
            return [
                result
                for i, plan in enumerate(plans)
                for result in _summarise(plan, [samples[i] for _, samples in passes], same_rows=rows == "spatial")
            ]


def _pairs(a: Mapping[str, str], b: Mapping[str, str], *, matrix: bool) -> list[tuple[str, str]]:
    """Return the layers of A and of B to compare, of those that each has."""
    pairs = [(in_a, in_b) for in_a in a for in_b in b] if matrix else [(layer, layer) for layer in a if layer in b]
    if not pairs:
        raise UsageError("the networks have no block in common: name modules that both have with --layers")
    return pairs


@dataclass(frozen=True)
class _Network:
    model: nn.Module
    modules: Mapping[str, str]
    device: torch.device

    @classmethod
    def of(
        cls, model: nn.Module, layers: Sequence[str] | Literal["all"] | None, device: torch.device | str
    ) -> "_Network":
        return cls(
            model.to(device).to(memory_format=memory_format(torch.device(device))).eval(),
            layer_modules(model, layers),
            torch.device(device),
        )

    def normalise(self, images: NDArray[np.uint8]) -> Tensor:
        on_device = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        return fit_channels(normalise(to_float(on_device), *image_statistics(self.model)), self.model)

    def probe(self, image: NDArray[np.uint8], layers: Iterable[str]) -> dict[str, Layout]:
        return probe(self.model, self.normalise(image), {layer: self.modules[layer] for layer in layers})

    def sample(
        self,
        images: NDArray[np.uint8],
        layers: Mapping[str, str],
        layouts: Mapping[str, Layout],
        cells: Mapping[str, Cells],
    ) -> dict[str, Tensor]:
        modules = {name: self.modules[layer] for name, layer in layers.items()}
        return sample(self.model, self.normalise(images), modules, layouts, cells)


def _run(
    a: _Network,
    b: _Network,
    images: NDArray[np.uint8],
    order: Cells,
    samples: Sequence[LayerSample],
    progress: Progress,
    processes: Processes,
) -> None:
    """Run both networks over this process's part of `images[order]`, each layer over as many of them as it wants."""
    batch = min(max(_BATCH_PIXELS // images.shape[1] ** 2, 1), _WIDEST_BATCH)
    # Whole batches: a network's output for an image depends, in its last bits, on the batch.
    starts = np.array_split(np.arange(0, len(order), batch), processes.count)[processes.rank]
    for start in starts.tolist():
        chosen = images[order[start : start + batch]]
        active = {layer.plan.layer: layer for layer in samples if start < layer.plan.n}
        cells = {name: layer.cells(start, start + len(chosen)) for name, layer in active.items()}
        plans = {name: layer.plan for name, layer in active.items()}
        rows_a = a.sample(
            chosen,
            {name: plan.layer_a for name, plan in plans.items()},
            {name: plan.a for name, plan in plans.items()},
            {name: in_a for name, (in_a, _) in cells.items()},
        )
        rows_b = b.sample(
            chosen,
            {name: plan.layer_b for name, plan in plans.items()},
            {name: plan.b for name, plan in plans.items()},
            {name: in_b for name, (_, in_b) in cells.items()},
        )
        for name, layer in active.items():
            layer.update(start, rows_a[name], rows_b[name])
        progress.advance(len(chosen))
    for layer in samples:
        layer.close(processes)


def _summarise(plan: Plan, samples: Sequence[LayerSample], *, same_rows: bool) -> list[LayerSimilarity]:
    return summarise(
        plan.layer_a,
        plan.layer_b,
        [layer.draws for layer in samples],
        [(layer.varying_a, layer.varying_b) for layer in samples],
        d=min(plan.d_a, plan.d_b),
        p=plan.n * plan.k,
        images=plan.n,
        same_rows=same_rows,
        notes=plan.notes,
    )
