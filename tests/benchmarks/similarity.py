"""What canonical correlations cost, beside google/svcca's algorithm in numpy, and beside one symmetric product.

Every figure is a median of `--repeats` runs in this process, the sides of a ratio taking turns on the same float32 rows,
on one thread. Times are seconds of CPU, so that other processes disturb them little. The other side is written from the
description of its algorithm: covariance, pseudo-inverses, their square roots, singular values.

Where it would take many minutes, it runs a few of the draws, and its time is scaled up; the table says so.

What the command takes in all is that of a process of its own: seconds of CPU, and peak memory.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from turns import in_turns, medians, on_cuda

from wsurgery.devices import arithmetic, memory_format
from wsurgery.similarity.compare import compare
from wsurgery.similarity.files import LAYER, compare_files
from wsurgery.similarity.metrics import METRICS, similarities
from wsurgery.similarity.moments import Moments
from wsurgery.similarity.protocol import generator

CPU = torch.device("cpu")
SHARED = Path("/dev/shm")  # files in memory
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
    rows = np.hstack([x, y])
    wide = rows.astype(np.float64)
    sides = np.split(np.arange(2 * d)[None], 2, axis=1)

    def ours(metrics: tuple[str, ...] = ("mean_cca",), *, fast: bool = False) -> float | None:
        moments = Moments(*sides, channels=2 * d, norms="unbiased_cka" in metrics, fast=fast)
        moments.update(rows)
        (pair,) = moments.pairs(0, 1)
        return similarities(pair, metrics)[0]["mean_cca"][0]

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
    """Draws of d of c channels on each side, with their floors and ceilings; the other side runs `theirs` of them."""
    x, y = make(p, c)
    rolled = np.roll(y, -(p // 2), axis=0)
    purposes = ("channels of A", x), ("channels of B", y), ("channels of B", rolled), ("channels of B", x)

    def google() -> list[tuple[float, ...]]:
        found = []
        for r in range(theirs):
            u, *others = (
                rows[:, np.sort(generator(0, LAYER, r, purpose).permutation(c)[:d])] for purpose, rows in purposes
            )
            found.append(tuple(google_svcca(u, v) for v in others))
        return found

    with TemporaryDirectory(dir=SHARED if SHARED.is_dir() else None) as folder:
        files = Path(folder) / "x.npy", Path(folder) / "y.npy"
        for file, rows in zip(files, (x, y), strict=True):
            np.save(file, rows)

        def ours() -> tuple[float | None, ...]:
            (found,) = compare_files(*files, d=d, repeats=draws, groups=1)
            return found.value, found.floor, found.ceiling

        if theirs == draws:
            assert np.allclose(np.mean(google(), axis=0), ours(), atol=1e-4), "they do not compute the same"
        costs = medians(repeats, ours=ours, google=google)
    scaled = "" if theirs == draws else f" ({theirs} draws, scaled)"
    row(
        f"p = {p}, c = {c}, d = {d}: {draws} draws with floor and ceiling", costs["ours"],
        costs["google"] * draws / theirs, f"svcca{scaled}", "10 times faster", most=0.1,
    )  # fmt: skip


# In a process between, for a child has the peak of what it was forked from.
MEASURE = """import resource, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / (1 << 10 if sys.platform == "linux" else 1 << 20))
"""


def process(*words: str | Path) -> list[float]:
    """Run Python in a process of its own; return its seconds of CPU, and its peak memory in MiB."""
    measured = [sys.executable, "-c", MEASURE, *map(str, words)]
    return [float(word) for word in subprocess.run(measured, capture_output=True, check=True).stdout.split()]


def activations(repeats: int) -> None:
    """`cca --activations` as it is typed, beside the import of numpy."""
    with TemporaryDirectory(dir=SHARED if SHARED.is_dir() else None) as folder:
        for p, c, most in ((500, 8, float("inf")), (100_000, 512, 150)):
            files = Path(folder) / "x.npy", Path(folder) / "y.npy"
            for file, rows in zip(files, make(p, c), strict=True):
                np.save(file, rows)
            given = "-m", "wsurgery", "cca", "--activations", *files, "--json"
            found = in_turns(
                repeats, ours=lambda given=given: process(*given), numpy=lambda: process("-c", "import numpy")
            )
            (ours, peak), (numpy, least) = (np.median(found[side], axis=0) for side in ("ours", "numpy"))
            missed = "" if peak <= most else " (missed)"
            wanted = "–" if most == float("inf") else f"at most {most} MiB"
            print(
                f"| cca --activations, {p:,} × {c} | {ours:.3g} s, {peak:.0f} MiB{missed} | import numpy {numpy:.3g} s, "
                f"{least:.0f} MiB | {ours / numpy:.3g} | {wanted} |",
                flush=True,
            )


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
    activations(options.repeats)
    if options.images:
        networks(min(options.repeats, 1), options.images)
    if options.big:
        drawn(0, 50_000, 2048, 1024, options.draws, min(options.theirs, options.draws))


if __name__ == "__main__":
    main()
