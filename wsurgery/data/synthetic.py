"""The embedded data, `synthetic:fundus` and `synthetic:textures`: drawn, so that experiments need no download."""

import multiprocessing
import signal
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsurgery.cores import workers
from wsurgery.data.grades import GRADES
from wsurgery.data.manifest import Manifest
from wsurgery.data.splits import split_patients
from wsurgery.errors import UsageError
from wsurgery.progress import Progress

# The modules that draw are imported where they are used: they need scipy, and data that is drawn already does not.

FRACTIONS = {"train": 0.50, "valid": 0.15, "test": 0.35}
CHUNK = 64  # images that a process draws at a time
REVISION = 1  # to be raised when the same settings come out as other pixels


@dataclass(frozen=True)
class Textures:
    """16 classes of textured shapes; each image is its own patient."""

    n: int = 2000
    size: int = 64
    seed: int = 0

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes, in the order of the label's index."""
        from wsurgery.data.textures import CLASSES

        return CLASSES

    def patient(self, index: int) -> str:
        """The patient of image `index`."""
        return image_path(index)

    def draw(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Image `index`, uint8 (size, size, 3), and its class."""
        from wsurgery.data.textures import draw_texture

        return draw_texture(index, size=self.size, seed=self.seed)


@dataclass(frozen=True)
class Fundus:
    """Five grades of fundus images, two eyes a patient. The lesions' `contrast` decides how hard they are to tell."""

    n: int = 2000
    size: int = 64
    seed: int = 0
    contrast: float = 0.42

    @property
    def label_names(self) -> tuple[str, ...]:
        """The grades, in the order of the label's index."""
        return GRADES

    def patient(self, index: int) -> str:
        """The patient of image `index`."""
        from wsurgery.data.fundus import EYES

        return f"p{index // EYES:05d}"

    def draw(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Image `index`, uint8 (size, size, 3), and its grade."""
        from wsurgery.data.fundus import draw_fundus

        return draw_fundus(index, size=self.size, seed=self.seed, contrast=self.contrast)


SETS: dict[str, type[Textures] | type[Fundus]] = {"fundus": Fundus, "textures": Textures}
LOWEST = {"n": 1, "size": 16, "seed": 0, "contrast": 0}


@dataclass(frozen=True)
class Synthetic:
    """The source behind `synthetic:NAME?key=value`."""

    name: str
    drawing: Textures | Fundus

    @classmethod
    def parse(cls, name: str, options: Mapping[str, str]) -> "Synthetic":
        """Read a specification's argument and options.

        Raises:
            UsageError: an unknown name or key, or a value that is no number or too low.
        """
        if name not in SETS:
            raise UsageError(f"there is no synthetic:{name}: there are {', '.join(f'synthetic:{x}' for x in SETS)}")
        known = asdict(SETS[name]())
        values = {}
        for key, text in options.items():
            if key not in known:
                raise UsageError(f"synthetic:{name} has no key {key!r}: there are {', '.join(known)}")
            number = type(known[key])
            try:
                values[key] = number(text)
            except ValueError:
                values[key] = -1
            if not LOWEST[key] <= values[key] < float("inf"):
                kind = "whole number" if number is int else "number"
                raise UsageError(f"synthetic:{name}: {key}={text} is not a {kind} of at least {LOWEST[key]}")
        return cls(name, SETS[name](**values))

    @property
    def settings(self) -> dict[str, str | int | float]:
        """All that decides what is drawn."""
        return {"name": self.name, **asdict(self.drawing), "revision": REVISION}

    def make(self, folder: Path, *, threads: int | None = None) -> Manifest:
        """Draw the images into `folder`/images, in `threads` processes (default: one a core), and list them."""
        n = self.drawing.n
        (folder / "images").mkdir()
        processes = workers(threads)
        if sys.platform == "win32":
            processes = min(processes, 61)  # it cannot wait for more
        starts = range(0, n, CHUNK)
        chunks = {start: range(start, min(start + CHUNK, n)) for start in starts}
        classes: dict[int, list[int]] = {}
        with Progress(n, f"drawing {self.name}") as progress:
            if processes == 1 or len(chunks) == 1:
                for start, chunk in chunks.items():
                    classes[start] = draw_images(self.drawing, chunk, folder)
                    progress.advance(len(chunk))
            else:
                # Spawned, for forking is unsafe once torch has threads; Ctrl-C is for the parent to handle.
                context = multiprocessing.get_context("spawn")
                ignore = (signal.SIGINT, signal.SIG_IGN)
                pool = ProcessPoolExecutor(processes, context, initializer=signal.signal, initargs=ignore)
                try:
                    with _without_main():
                        jobs = {
                            pool.submit(draw_images, self.drawing, chunk, folder): start
                            for start, chunk in chunks.items()
                        }
                    for job in as_completed(jobs):
                        classes[jobs[job]] = job.result()
                        progress.advance(len(chunks[jobs[job]]))
                finally:
                    pool.shutdown(cancel_futures=True)
        names = self.drawing.label_names
        labels = np.eye(len(names), dtype=np.float32)[[label for start in starts for label in classes[start]]]
        patients = [self.drawing.patient(index) for index in range(n)]
        splits = split_patients(patients, FRACTIONS, self.drawing.seed)
        paths = tuple(image_path(index) for index in range(n))
        return Manifest(folder, paths, tuple(patients), tuple(splits), labels, names)


@contextmanager
def _without_main() -> Iterator[None]:
    """Let processes that begin meanwhile not import the script that called: it would run again, up to this point."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def image_path(index: int) -> str:
    """Where image `index` goes, relative to the folder of its set."""
    return f"images/{index:06d}.png"


def draw_images(drawing: Textures | Fundus, indices: range, folder: Path) -> list[int]:
    """Draw some images into `folder` and return their classes."""
    classes = []
    for index in indices:
        image, label = drawing.draw(index)
        Image.fromarray(image).save(folder / image_path(index), compress_level=3)
        classes.append(label)
    return classes
