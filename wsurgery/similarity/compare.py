"""Comparing two networks layer by layer, by the protocol of the paper, with the floor and the ceiling of that protocol.

Source: Raghu et al., *Transfusion*, 2019, appendix C. Draws of d of c channels make even a network that is compared
with itself score below 1, and finite samples make unrelated data score above 0. So every value comes with what the same
draws give for unrelated images (the floor) and for a network against itself (the ceiling).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from wsurgery.errors import UsageError, printable
from wsurgery.progress import Progress
from wsurgery.similarity.activations import Cells, Layout, layer_modules, probe, sample
from wsurgery.similarity.metrics import check_metrics
from wsurgery.similarity.protocol import Channels, LayerSample, Plan, Rows, draw_passes, generator, plan_layer
from wsurgery.similarity.results import LayerSimilarity, summarise

_BATCH_PIXELS = 32 * 224 * 224
_WIDEST_BATCH = 64  # images


def compare(
    model_a: nn.Module,
    model_b: nn.Module,
    images: NDArray[np.uint8],
    *,
    layers: Sequence[str] | None = None,
    p: int = 10_000,
    d: int = 64,
    repeats: int = 10,
    channels: Channels = "independent",
    rows: Rows = "spatial",
    n_images: int = 512,
    metrics: Sequence[str] = ("mean_cca",),
    seed: int = 0,
    device: torch.device | str = "cpu",
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
        layers: block names or module paths in both networks; None for all blocks that both have, but `neck` and `head`.
        p: rows wanted.
        d: channels to draw, at most the smaller side's number.
        repeats: number of draws. One is made where all draws would be equal.
        channels: `independent` draws on each side (the paper), the `same` channels on both, or `all` of them.
        rows: `spatial` or `whole`.
        n_images: images to draw from `images`; all, if there are fewer.
        metrics: names in `wsurgery.similarity.metrics.METRICS`; all are computed from the same rows and draws.
        seed: of all draws.
        device: where the networks run. Moments and correlations are float64 on the CPU.

    Returns:
        One entry a layer and metric, in the order of `layers` and, within a layer, of `metrics`.

    Raises:
        UsageError: an argument that cannot mean anything, no such layer, or too few rows for the number of channels.
        WsurgeryError: a layer that is no grid of patches.
    """
    for name, word, known in (("channels", channels, get_args(Channels)), ("rows", rows, get_args(Rows))):
        if word not in known:
            raise UsageError(f"{name} are {', '.join(known)}, not {printable(word)}")
    check_metrics(metrics)
    networks = _Network.of(model_a, layers, device), _Network.of(model_b, layers, device)
    if layers is None:
        layers = [layer for layer in networks[0].modules if layer in networks[1].modules]
        if not layers:
            raise UsageError("the networks have no block in common: name modules that both have with --layers")
    if min(p, d, repeats, n_images, len(images)) < 1:
        raise UsageError("p, d, repeats and the number of images must be at least 1")
    pool = np.sort(generator(seed, "", 0, "pool").permutation(len(images))[:n_images])
    with _exact_inference():
        a, b = (network.probe(images[pool[:1]], layers) for network in networks)
        plans = [
            plan_layer(layer, a[layer], b[layer], p=p, d=d, pool=len(pool), channels=channels, rows=rows)
            for layer in layers
        ]
        passes = draw_passes(plans, pool, repeats=repeats, channels=channels, rows=rows, seed=seed, metrics=metrics)
        with Progress(sum(len(order) for order, _ in passes), "images") as progress:
            for order, samples in passes:
                _run(*networks, images, order, samples, progress)
        return [
            result for i, plan in enumerate(plans) for result in _summarise(plan, [samples[i] for _, samples in passes])
        ]


@dataclass(frozen=True)
class _Network:
    model: nn.Module
    modules: Mapping[str, str]
    device: torch.device

    @classmethod
    def of(cls, model: nn.Module, layers: Sequence[str] | None, device: torch.device | str) -> "_Network":
        return cls(model.to(device).eval(), layer_modules(model, layers), torch.device(device))

    def normalise(self, images: NDArray[np.uint8]) -> Tensor:
        config = getattr(self.model, "pretrained_cfg", None) or {}
        mean = torch.tensor(config.get("mean", IMAGENET_DEFAULT_MEAN), device=self.device)[:, None, None]
        std = torch.tensor(config.get("std", IMAGENET_DEFAULT_STD), device=self.device)[:, None, None]
        x = torch.from_numpy(np.ascontiguousarray(images)).to(self.device).permute(0, 3, 1, 2)
        return (x / 255 - mean) / std

    def probe(self, image: NDArray[np.uint8], layers: Sequence[str]) -> dict[str, Layout]:
        return probe(self.model, self.normalise(image), {layer: self.modules[layer] for layer in layers})

    def sample(
        self, images: NDArray[np.uint8], layouts: Mapping[str, Layout], cells: Mapping[str, Cells]
    ) -> dict[str, Tensor]:
        return sample(self.model, self.normalise(images), self.modules, layouts, cells)


def _run(
    a: _Network,
    b: _Network,
    images: NDArray[np.uint8],
    order: Cells,
    samples: Sequence[LayerSample],
    progress: Progress,
) -> None:
    """Run both networks over `images[order]`, each layer over as many of them as it wants."""
    batch = min(max(_BATCH_PIXELS // images.shape[1] ** 2, 1), _WIDEST_BATCH)
    for start in range(0, len(order), batch):
        chosen = images[order[start : start + batch]]
        active = {layer.plan.layer: layer for layer in samples if start < layer.plan.n}
        cells = {name: layer.cells(start, start + len(chosen)) for name, layer in active.items()}
        layouts = {name: (layer.plan.a, layer.plan.b) for name, layer in active.items()}
        rows_a, rows_b = (
            network.sample(chosen, {n: x[side] for n, x in layouts.items()}, {n: x[side] for n, x in cells.items()})
            for side, network in enumerate((a, b))
        )
        for name, layer in active.items():
            layer.update(rows_a[name], rows_b[name])
        progress.advance(len(chosen))
    for layer in samples:
        layer.close()


def _summarise(plan: Plan, samples: Sequence[LayerSample]) -> list[LayerSimilarity]:
    return summarise(
        plan.layer,
        [layer.draws for layer in samples],
        [(layer.varying_a, layer.varying_b) for layer in samples],
        d=min(plan.d_a, plan.d_b),
        p=plan.n * plan.k,
        images=plan.n,
        notes=plan.notes,
    )


@contextmanager
def _exact_inference() -> Iterator[None]:
    """Inference in true float32: TF32 keeps ten bits, which is noise to a correlation near 1."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
