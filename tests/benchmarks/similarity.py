"""What canonical correlations cost, beside google/svcca's algorithm in numpy, and beside one symmetric product.

Every figure is a median of `--repeats` runs in this process, the sides of a ratio taking turns on the same float32 rows,
on one thread. Times are seconds of CPU, so that other processes disturb them little. The other side is written from the
description of its algorithm: covariance, pseudo-inverses, their square roots, singular values.

Where it would take many minutes, it runs a few of the draws, and its time is scaled up; the table says so.
"""

import argparse
import time

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from turns import medians, on_cuda

from wsurgery.devices import arithmetic, memory_format
from wsurgery.similarity.compare import compare
from wsurgery.similarity.metrics import METRICS, similarities
from wsurgery.similarity.moments import DrawnMoments, Moments

CPU = torch.device("cpu")
Rows = NDArray[np.float32]


def google_svcca(x: Rows, y: Rows, epsilon: float = 1e-10) -> float:
    """The mean of cca_coef1; x, y: rows × channels."""
    covariance, c = np.cov(x.T, y.T), x.shape[1]
    xx, xy, yy = covariance[:c, :c], covariance[:c, c:], covariance[c:, c:]
    most_x, most_y = abs(xx).max(), abs(yy).max()
    xx, yy, xy = xx / most_x, yy / most_y, xy / np.sqrt(most_x * most_y)

    def inverse_root(m: NDArray[np.float64]) -> NDArray[np.float64]:
        values, vectors = np.linalg.eigh(np.linalg.pinv(m + epsilon * np.eye(len(m))))
        return vectors @ np.diag(np.sqrt(values)) @ vectors.T

    return float(np.linalg.svd(inverse_root(xx) @ xy @ inverse_root(yy))[1].mean())


def make(p: int, c: int) -> tuple[Rows, Rows]:
    """Rows of two sides that share half their variance."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((p, c), dtype=np.float32)
    return shared + rng.standard_normal((p, c), dtype=np.float32), shared + rng.standard_normal(
        (p, c), dtype=np.float32
    )


def row(what: str, ours: float, theirs: float, label: str, wanted: str, *, most: float) -> None:
    """Print one comparison; a ratio that misses what is wanted is marked."""
    ratio = ours / theirs
    times = "" if ratio >= 1 else f" ({1 / ratio:.3g} times faster)"
    missed = "" if ratio <= most else " (missed)"
    print(f"| {what} | {ours:.3g} s | {label} {theirs:.3g} s | {ratio:.3g}{times}{missed} | {wanted} |", flush=True)


def single(repeats: int, p: int, d: int) -> None:
    """One comparison of d channels with d."""
    x, y = make(p, d)
    rows = torch.from_numpy(np.hstack([x, y]))
    wide = rows.double().numpy()
    sets = torch.zeros(2, 2 * d)
    sets[0, :d], sets[1, d:] = 1, 1

    def ours(metrics: tuple[str, ...] = ("mean_cca",), *, fast: bool = False) -> float | None:
        moments = Moments(sets=sets if "unbiased_cka" in metrics else None, fast=fast)
        moments.update(rows)
        return similarities(moments.pair(d), metrics)[0]["mean_cca"][0]

    costs = medians(
        repeats,
        product=lambda: wide.T @ wide,
        ours=ours,
        fast=lambda: ours(fast=True),
        all=lambda: ours(METRICS),
        google=lambda: google_svcca(x, y),
    )
    what = f"p = {p}, d = {d}"
    row(f"{what}: one call", costs["ours"], costs["google"], "svcca", "at most 1", most=1)
    wanted = 1.5 if d >= 256 else float("inf")
    label = "at most 1.5" if d >= 256 else "–"
    row(f"{what}: one call", costs["ours"], costs["product"], "[X\\|Y]ᵀ[X\\|Y]", label, most=wanted)
    row(f"{what}: float32", costs["fast"], costs["ours"], "float64", "–", most=float("inf"))
    row(f"{what}: {len(METRICS)} metrics", costs["all"], costs["ours"], "mean CCA", "–", most=float("inf"))


def drawn(repeats: int, p: int, c: int, d: int, draws: int, theirs: int) -> None:
    """Draws of d of c channels on each side, `theirs` of which the other side runs."""
    x, y = make(p, c)
    rng = np.random.default_rng(1)
    in_x, in_y = (np.stack([np.sort(rng.permutation(c)[:d]) for _ in range(draws)]) for _ in range(2))
    rows = torch.from_numpy(np.hstack([x, y]))

    def ours() -> list[float | None]:
        moments = DrawnMoments(torch.from_numpy(in_x), torch.from_numpy(in_y) + c, channels=2 * c)
        moments.update(rows)
        return [v for pair in moments.pairs(0, 1) for v in similarities(pair, ["mean_cca"])[0]["mean_cca"]]

    def google() -> list[float]:
        return [google_svcca(x[:, i], y[:, j]) for i, j in zip(in_x[:theirs], in_y[:theirs], strict=True)]

    costs = medians(repeats, ours=ours, google=google)
    scaled = "" if theirs == draws else f" ({theirs} draws, scaled)"
    row(
        f"p = {p}, c = {c}, d = {d}: {draws} draws", costs["ours"], costs["google"] * draws / theirs, f"svcca{scaled}",
        "10 times faster", most=0.1,
    )  # fmt: skip


def networks(repeats: int, images: int, device: torch.device = CPU) -> None:
    """`cca` of two ResNet-50s over five layers, beside their forward passes over the same batches.

    On a CPU the layout is PyTorch's default on both sides, and times are of the processor; elsewhere both have the channels
    last, and times are of the wall.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (images, 224, 224, 3), dtype=np.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        a, b = (timm.create_model("resnet50").eval().to(device, memory_format=memory_format(device)) for _ in range(2))

    def forward() -> None:
        with torch.inference_mode(), arithmetic():
            for batch in np.split(pixels, range(32, images, 32)):
                for network in (a, b):
                    network(torch.from_numpy(batch).to(device).permute(0, 3, 1, 2) / 255)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    most, clock = (1.5, time.perf_counter) if device.type == "cuda" else (1.25, time.process_time)
    costs = medians(repeats, clock, ours=lambda: compare(a, b, pixels, n_images=images, device=device), forward=forward)
    row(
        f"two ResNet-50s, {images} images, on {device}", costs["ours"], costs["forward"], "forward passes",
        f"at most {most}", most=most,
    )  # fmt: skip


def main() -> None:
    """Run every comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--big", action="store_true", help="also p = 50,000, c = 2048, d = 1024: 3 minutes, 3 GB")
    parser.add_argument("--theirs", type=int, default=3, help="draws that the other side runs with --big")
    parser.add_argument("--images", type=int, default=0, help="also two ResNet-50s on so many images; cca's are 512")
    parser.add_argument("--cuda", action="store_true", help="only two ResNet-50s, on a CUDA device")
    options = parser.parse_args()
    if options.cuda:
        print(f"{on_cuda()}; medians of {options.repeats}\n")
        print("| what | wsurgery | compared to | ratio | wanted |\n|---|---|---|---|---|")
        networks(options.repeats, options.images or 512, torch.device("cuda"))
        return
    torch.set_num_threads(1)
    threadpool_limits(1)
    print(f"one thread; medians of {options.repeats}\n")
    print("| what | wsurgery | compared to | ratio | wanted |\n|---|---|---|---|---|")
    for d in (64, 256, 512):
        single(options.repeats, 10_000, d)
    drawn(options.repeats, 10_000, 256, 64, options.draws, options.draws)
    if options.images:
        networks(min(options.repeats, 1), options.images)
    if options.big:
        drawn(0, 50_000, 2048, 1024, options.draws, min(options.theirs, options.draws))


if __name__ == "__main__":
    main()
