"""The kernels for a GPU against the operations that they stand for; Triton's interpreter runs them on a CPU."""

import subprocess
import sys

import pytest

PROGRAM = """
import os
from dataclasses import asdict, replace
os.environ["TRITON_INTERPRET"] = "1"
import numpy as np, torch
from wsurgery.data.augment import Augmentation, augment, draw
from wsurgery.data.augment_fused import augment as fused

rng = np.random.default_rng(0)
everything = Augmentation(0.3, True, True, 0.1, 0.4)
each = [replace(Augmentation(0, False, False, 0, 0), **{name: value}) for name, value in asdict(everything).items()]
sizes = (12, 20), (40, 33), (1, 1)  # less than a program's pixels, more, and one
for (h, w), augmentation in [*((size, everything) for size in sizes), *((sizes[0], one) for one in each)]:
    images = torch.from_numpy(rng.integers(0, 256, (3, h, w, 3), dtype=np.uint8))
    drawn = torch.from_numpy(draw(augmentation, seed=1, epoch=2, indices=np.arange(3)))
    given = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    ours, wanted = (f(images, drawn, augmentation, **given) for f in (fused, augment))
    assert ours.shape == wanted.shape and ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=2e-5)
print("alike")
"""


def test_the_kernels_do_what_the_operations_do():
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout == "alike\n", done.stderr
