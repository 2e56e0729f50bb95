"""What a step of training costs beside a bare PyTorch loop, an epoch beside timm's loader, and an image beside PIL.

All ratios are of one run: the same network, optimiser, batch and threads, the two sides taking turns, medians of
`--repeats`. Times of a step and of an image are CPU seconds of this process, so that other processes disturb them little;
those of an epoch, which timm shares among worker processes, are wall seconds.

The bare loop has its images in memory, normalised, and does not augment them, once in PyTorch's own layout and once
channels last. Ours takes uint8 images from an array; it is measured without augmentation, which is the comparison, and
with it, which is its price.

On a CUDA device, `--cuda`: images a second with augmentation, from an array that is mapped from a file, beside the same
network on one batch that lies on the device, both in bfloat16.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import create_loader
from timm.data.dataset import ImageDataset
from torch import nn
from torchvision import transforms
from turns import medians, on_cuda

from wsurgery.cores import cores
from wsurgery.data.augment import Augmentation, augment, draw, normalise, to_float
from wsurgery.data.cache import cache_folder
from wsurgery.data.dataset import Dataset, load_dataset
from wsurgery.data.manifest import Manifest, write_manifest
from wsurgery.devices import supports_bf16
from wsurgery.models import create
from wsurgery.models.inputs import image_statistics
from wsurgery.training.optimisation import make_optimizer
from wsurgery.training.settings import MILD, Settings
from wsurgery.training.trainer import Trainer

CPU = torch.device("cpu")
NOTHING = Augmentation(crop=0, flip_horizontal=False, flip_vertical=False, hue=0, contrast=0)
FULL = Augmentation(crop=0.1, flip_horizontal=True, flip_vertical=True, hue=0.02, contrast=0.2)
LABELS = ("a", "b", "c", "d", "e")
# Networks, pixels and batches, and how many times as fast as the bare loop they are wanted on an H100.
ON_CUDA = (
    ("resnet50", 224, 256, 0.97),
    ("resnet50", 224, 32, 1.2),
    ("cbr_tiny", 64, 32, 2.0),
    ("tf_efficientnet_lite0", 96, 64, 2.0),
)
# Width and height: no larger than needed, CheXpert-small's, Messidor's.
PHOTOGRAPHS = ((128, 128), (390, 320), (2304, 1536))


def row(what: str, ours: float, theirs: float, label: str, wanted: float | None) -> None:
    """Print how many times theirs our speed is, for times of the same work."""
    missed = " (missed)" if wanted is not None and theirs / ours < wanted else ""
    least = "–" if wanted is None else f"at least {wanted}"
    print(f"| {what} | {ours:.3g} s | {label} {theirs:.3g} s | {theirs / ours:.3g}{missed} | {least} |", flush=True)


def random_images(n: int, size: int) -> Dataset:
    """A data set in memory."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    labels = (rng.random((n, len(LABELS))) < 0.5).astype(np.float32)
    names = tuple(map(str, range(n)))
    return Dataset(images, labels, LABELS, names, names, "")


def step(repeats: int, steps: int, name: str, size: int, batch: int, **args: float) -> None:
    """Some steps of our loop, and of a bare one."""
    data = random_images(4 * batch, size)
    loops = {}
    for key, kind in (("ours", NOTHING), ("augmented", MILD)):
        model = create({"name": name, "num_classes": len(LABELS), "args": args})
        settings = Settings(steps=10**6, epochs=None, batch_size=batch, augmentation=kind)
        loops[key] = Trainer(model, data, data, settings, CPU, ())

    def bare(layout: torch.memory_format) -> Callable[[], None]:
        model = create({"name": name, "num_classes": len(LABELS), "args": args}).train().to(memory_format=layout)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        images = normalise(to_float(torch.from_numpy(data.images)), *image_statistics(model))
        images = images.contiguous(memory_format=layout)
        batches = list(zip(images.split(batch), torch.from_numpy(data.labels).split(batch), strict=True))

        def some() -> None:
            for i in range(steps):
                x, y = batches[i % len(batches)]
                loss = nn.functional.binary_cross_entropy_with_logits(model(x), y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

        return some

    def ours(key: str) -> Callable[[], object]:
        return lambda: [loops[key]._step(i) for i in range(steps)]

    layouts = {"bare": torch.contiguous_format, "last": torch.channels_last}
    sides: dict[str, Callable[[], object]] = {key: bare(layout) for key, layout in layouts.items()}
    costs = medians(repeats, **sides, **{key: ours(key) for key in loops})
    what = f"{name}{''.join(f' {key}={value}' for key, value in args.items())}, {size} px, batch {batch}, {steps} steps"
    row(what, costs["ours"], costs["bare"], "bare", 0.97)
    row(what, costs["ours"], costs["last"], "bare, channels last", 0.97)
    row(f"{what}, augmented", costs["augmented"], costs["last"], "bare, channels last, not augmented", None)


def device_step(
    repeats: int, steps: int, name: str, size: int, batch: int, device: torch.device, wanted: float | None = None
) -> None:
    """Some steps of our loop with augmentation on a device, and of a bare one on a single batch that lies there."""
    mixed = "bf16" if device.type == "cuda" else "fp32"
    settings = Settings(steps=10**6, epochs=None, batch_size=batch, augmentation=FULL, precision=mixed)
    with tempfile.TemporaryFile() as file:
        in_memory = random_images(4 * batch, size)
        in_memory.images.tofile(file)
        data = replace(in_memory, images=np.memmap(file, np.uint8, mode="c", shape=in_memory.images.shape))
        loop = Trainer(create({"name": name, "num_classes": len(LABELS)}), data, data, settings, device, ())
        for i in range(10):  # the step is recorded meanwhile
            loop._step(i)
        model = create({"name": name, "num_classes": len(LABELS)}).train().to(device)
        model.to(memory_format=torch.channels_last)
        optimizer = make_optimizer(list(model.parameters()), settings)
        x = to_float(torch.from_numpy(data.images[:batch])).to(device, memory_format=torch.channels_last)
        y = torch.from_numpy(data.labels[:batch]).to(device)

        def finish() -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        def bare() -> None:
            for _ in range(steps):
                with torch.autocast(device.type, torch.bfloat16, enabled=mixed == "bf16"):
                    logits = model(x)
                loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            finish()

        def ours() -> None:
            for i in range(steps):
                loop._step(i)
            finish()

        costs = medians(repeats, time.perf_counter, bare=bare, ours=ours)
    rate = f"{steps * batch / costs['ours']:.0f} images/s"
    what = f"{name}, {size} px, batch {batch}, {mixed}, augmented, on {device}: {rate}"
    row(what, costs["ours"], costs["bare"], "bare, on one batch", wanted)


def epoch(
    repeats: int, n: int, photograph: tuple[int, int], size: int, batch: int, workers: int, precision: str
) -> None:
    """A pass over a folder of JPEGs with CBR-Tiny: timm's loader, ours with decoding, and ours from the cache."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["WSURGERY_CACHE"] = str(root / "cache")
        data = random_images(n, 16)
        for label in (0, 1):
            (root / str(label)).mkdir()
        paths = [f"{int(row[0])}/{i}.jpg" for i, row in enumerate(data.labels)]
        for path, image in zip(paths, data.images, strict=True):  # smooth, as photographs are
            Image.fromarray(image).resize(photograph, Image.Resampling.BICUBIC).save(root / path, quality=90)
        manifest = Manifest(root, tuple(paths), tuple(paths), ("train",) * n, data.labels[:, :1], LABELS[:1])
        write_manifest(manifest, root / "manifest.csv")

        def network() -> nn.Module:
            return create({"name": "cbr_tiny", "num_classes": 1})

        theirs, mean_std = network().train(), image_statistics(network())
        optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-3)
        loader = create_loader(
            ImageDataset(str(root), reader="folder"), (3, size, size), batch, is_training=True, use_prefetcher=False,
            scale=(0.81, 1.0), ratio=(1.0, 1.0), hflip=0.5, vflip=0.5, color_jitter=(0.0, 0.2, 0.0, 0.02),
            interpolation="bilinear", mean=mean_std[0], std=mean_std[1], num_workers=workers, persistent_workers=True,
            device=CPU,
        )  # fmt: skip

        def timm_epoch() -> None:
            for x, y in loader:
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    logits = theirs(x)[:, 0]
                loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), y.float())
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

        settings = Settings(steps=10**6, epochs=None, batch_size=batch, augmentation=FULL, precision=precision)
        model = network()

        def our_epoch() -> None:
            images = load_dataset(str(root / "manifest.csv"), split="train", image_size=size, threads=workers)
            loop = Trainer(model, images, images, settings, CPU, ())
            for i in range(loop.epoch_steps):
                loop._step(i)

        def uncached() -> None:
            for file in (cache_folder() / "images").glob("*"):
                file.unlink()
            our_epoch()

        costs = medians(repeats, time.perf_counter, timm=timm_epoch, uncached=uncached, cached=our_epoch)
    image = " x ".join(map(str, photograph))
    what = f"an epoch of {n} JPEGs of {image} with cbr_tiny, {size} px, batch {batch}, {precision}"
    row(f"{what}, decoded", costs["uncached"], costs["timm"], f"timm, {workers} workers", 1.0)
    row(f"{what}, from the cache", costs["cached"], costs["timm"], f"timm, {workers} workers", 1.5)


def pipeline(repeats: int, n: int, size: int) -> None:
    """Augmenting images that are decoded already, on one thread."""
    data = random_images(n, size)
    jitter = transforms.Compose([
        transforms.RandomResizedCrop(size, scale=(0.81, 1.0), ratio=(1.0, 1.0)),
        transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip(),
        transforms.ColorJitter(contrast=0.2, hue=0.02), transforms.ToTensor(),
        transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ])  # fmt: skip
    indices, half = np.arange(n), (0.5, 0.5, 0.5)

    def ours() -> None:
        for some in np.split(indices, range(32, n, 32)):
            batch = torch.from_numpy(data.images[some])
            drawn = torch.from_numpy(draw(FULL, seed=0, epoch=0, indices=some))
            augment(batch, drawn, FULL, mean=half, std=half)

    costs = medians(
        repeats, ours=ours, pil=lambda: torch.stack([jitter(Image.fromarray(image)) for image in data.images])
    )
    row(f"{n} images of {size} px, augmented, one thread", costs["ours"], costs["pil"], "PIL and ColorJitter", 5.0)


def main() -> None:
    """Run every comparison and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--images", type=int, default=1024, help="of an epoch")
    parser.add_argument("--cuda", action="store_true", help="only steps on a CUDA device")
    parser.add_argument("--threads", type=int, default=cores())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{on_cuda() if options.cuda else f'{options.threads} threads'}; medians of {options.repeats}\n")
    print("| what | wsurgery | compared to | times as fast | wanted |\n|---|---|---|---|---|")
    if options.cuda:
        for name, size, batch, wanted in ON_CUDA:
            device_step(options.repeats, options.steps, name, size, batch, torch.device("cuda"), wanted)
        return
    step(options.repeats, options.steps, "cbr_small", 224, 8)
    step(options.repeats, max(1, options.steps // 5), "resnet50", 224, 8)
    step(options.repeats, 10 * options.steps, "cbr_tiny", 64, 32, width=0.125)
    for precision in ("fp32", "bf16") if supports_bf16(CPU) else ("fp32",):
        for photograph in PHOTOGRAPHS:
            epoch(options.repeats, options.images, photograph, 64, 32, 2, precision)
    torch.set_num_threads(1)
    pipeline(options.repeats, 256, 224)


if __name__ == "__main__":
    main()
