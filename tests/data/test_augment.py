import colorsys
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from wsurgery.data.augment import LUMA, Augmentation, augment, draw, normalise, to_float, uniforms

NOTHING = Augmentation(crop=0, flip_horizontal=False, flip_vertical=False, hue=0, contrast=0)
EVERYTHING = Augmentation(crop=0.2, flip_horizontal=True, flip_vertical=True, hue=0.05, contrast=0.3)


def batch(b=16, h=12, w=20, low=0, high=256):
    return torch.from_numpy(np.random.default_rng(0).integers(low, high, (b, h, w, 3), dtype=np.uint8))


def run(images, seed=0, epoch=0, indices=None, **changes):
    indices = np.arange(len(images)) if indices is None else indices
    return augmented(images, replace(NOTHING, **changes), seed=seed, epoch=epoch, indices=indices)


def augmented(images, augmentation, **drawn_by):
    return augment(images, torch.from_numpy(draw(augmentation, **drawn_by)), augmentation)


def test_nothing_is_the_identity():
    images = batch()
    expected = images.permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(run(images), expected, rtol=0, atol=1e-7)
    # Amounts too small to matter go through all of the arithmetic.
    torch.testing.assert_close(run(images, hue=1e-9, contrast=1e-9), expected, rtol=0, atol=1e-6)


def test_what_comes_out():
    out = augmented(batch(), EVERYTHING, seed=0, epoch=0, indices=np.arange(16))
    assert out.shape == (16, 3, 12, 20)
    assert out.dtype == torch.float32
    assert 0 <= out.min() < out.max() <= 1


def test_an_image_is_augmented_alike_in_any_batch():
    images = batch()
    whole = augmented(images, EVERYTHING, seed=1, epoch=2, indices=np.arange(16))
    rows = np.array([11, 3, 7])
    part = augmented(images[rows], EVERYTHING, seed=1, epoch=2, indices=rows)
    torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-6)


ELSEWHERE = """
import sys
import numpy as np, torch
from wsurgery.data.augment import Augmentation, augment, draw
torch.set_num_threads(1)
images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 12, 20, 3), dtype=np.uint8))
augmentation = Augmentation(crop=0.2, flip_horizontal=True, flip_vertical=True, hue=0.05, contrast=0.3)
rows = np.array([9, 4, 12])
drawn = torch.from_numpy(draw(augmentation, seed=1, epoch=2, indices=rows))
sys.stdout.buffer.write(augment(images[rows], drawn, augmentation).numpy().tobytes())
"""


def test_an_image_is_augmented_alike_in_any_process():
    whole = augmented(batch(), EVERYTHING, seed=1, epoch=2, indices=np.arange(16))[[9, 4, 12]]
    there = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, check=True).stdout
    np.testing.assert_allclose(np.frombuffer(there, np.float32).reshape(whole.shape), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"indices": np.arange(16) + 100}])
def test_seed_epoch_and_index_all_matter(change):
    images = batch()
    arguments = {"seed": 0, "epoch": 0, "indices": np.arange(16)}
    plain, other = (augmented(images, EVERYTHING, **a) for a in (arguments, arguments | change))
    assert (plain != other).flatten(1).any(dim=1).sum() >= 15


@pytest.mark.parametrize(("flip", "axis"), [("flip_horizontal", 3), ("flip_vertical", 2)])
def test_flips_are_flips_of_about_half(flip, axis):
    images = batch(400, 4, 6)
    x = to_float(images)
    out = run(images, **{flip: True})
    flipped = (out == x.flip(axis)).flatten(1).all(dim=1)
    same = (out == x).flatten(1).all(dim=1)
    assert (flipped ^ same).all()
    assert abs(flipped.float().mean() - 0.5) < 4 * 0.5 / np.sqrt(400)


def test_the_two_flips_are_independent():
    images = batch(400, 4, 6)
    x = to_float(images)
    across = (run(images, flip_horizontal=True) == x.flip(3)).flatten(1).all(dim=1)
    down = (run(images, flip_vertical=True) == x.flip(2)).flatten(1).all(dim=1)
    assert abs((across == down).float().mean() - 0.5) < 4 * 0.5 / np.sqrt(400)


def test_a_crop_is_grid_sample_s():
    """PyTorch's own bilinear sampling, at the positions that images of coordinates show."""
    b, h, w = 16, 12, 20
    images = batch(b, h, w)
    out = run(images, crop=0.3, flip_horizontal=True, flip_vertical=True)
    ramps = torch.zeros(b, h, w, 3, dtype=torch.uint8)
    ramps[..., 0], ramps[..., 1] = 10 * torch.arange(w)[None, None, :], 10 * torch.arange(h)[None, :, None]
    seen = run(ramps, crop=0.3, flip_horizontal=True, flip_vertical=True)[:, :2] * 255 / 10  # the positions, in pixels
    grid = (2 * seen.permute(0, 2, 3, 1) + 1) / torch.tensor([w, h]) - 1
    expected = torch.nn.functional.grid_sample(to_float(images), grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_blocks_do_not_show(monkeypatch):
    whole = augmented(batch(), EVERYTHING, seed=0, epoch=0, indices=np.arange(16))
    monkeypatch.setattr("wsurgery.data.augment.BLOCK_PIXELS", 3 * 12 * 20)
    in_blocks = augmented(batch(), EVERYTHING, seed=0, epoch=0, indices=np.arange(16))
    torch.testing.assert_close(in_blocks, whole, rtol=0, atol=1e-6)


def test_a_crop_of_a_ramp_is_a_shorter_ramp_from_inside():
    """On an image whose value is its x (or y) coordinate, the result shows the coordinates that were sampled."""
    size, crop, b = 50, 0.3, 300
    ramp = torch.arange(size, dtype=torch.uint8)
    images = torch.zeros(b, size, size, 3, dtype=torch.uint8)
    images[..., 0], images[..., 1] = ramp[None, None, :], ramp[None, :, None]
    out = run(images, crop=crop) * 255
    x, y = out[:, 0], out[:, 1]
    torch.testing.assert_close(x, x[:, :1].expand_as(x), rtol=0, atol=1e-3)  # columns are straight
    torch.testing.assert_close(y, y[:, :, :1].expand_as(y), rtol=0, atol=1e-3)
    first, last = x[:, 0, 10], x[:, 0, 39]
    scale_x, scale_y = (last - first) / 29, (y[:, 39, 0] - y[:, 10, 0]) / 29
    torch.testing.assert_close(scale_x, scale_y, rtol=1e-3, atol=1e-3)  # no distortion
    assert 1 - crop - 1e-3 < scale_x.min() < 1 - 0.9 * crop
    assert 1 - 0.1 * crop < scale_x.max() < 1 + 1e-3
    centre = (first + last) / 2 - 24.5
    assert (abs(centre) <= size * (1 - scale_x) / 2 + 0.02).all()  # inside the image
    assert centre.min() < -3
    assert centre.max() > 3
    assert abs(np.corrcoef(centre, (y[:, 10, 0] + y[:, 39, 0]) / 2 - 24.5)[0, 1]) < 4 / np.sqrt(b)


def test_turning_hue_keeps_luma():
    images = batch(low=100, high=156)  # far from the ends, so that nothing is clipped
    x, out = to_float(images), run(images, hue=0.1)
    luma = torch.tensor(LUMA)[:, None, None]
    torch.testing.assert_close((out * luma).sum(1), (x * luma).sum(1), rtol=0, atol=1e-6)
    assert (out - x).abs().max() > 0.02


def test_turning_hue_keeps_grey():
    grey = batch()[..., :1].expand(-1, -1, -1, 3)
    torch.testing.assert_close(run(grey, hue=0.5), to_float(grey), rtol=0, atol=1e-6)


def test_turning_hue_turns_the_colour_by_the_angle():
    """The chroma, as the standard library's YIQ has it, keeps its length and turns by one angle an image."""
    images = batch(8, 3, 3, low=100, high=156)
    x, out = (y.permute(0, 2, 3, 1).reshape(8, 9, 3).double().numpy() for y in (to_float(images), run(images, hue=0.1)))
    chroma = np.vectorize(lambda r, g, b: complex(*colorsys.rgb_to_yiq(r, g, b)[1:]))
    ratio = chroma(*np.moveaxis(out, 2, 0)) / chroma(*np.moveaxis(x, 2, 0))
    assert abs(abs(ratio) - 1).max() < 0.02  # the library rounds its coefficients to two digits
    turns = np.angle(ratio) / (2 * np.pi)
    assert np.ptp(turns, axis=1).max() < 0.01
    assert abs(turns).max() < 0.1 + 0.01
    assert np.ptp(turns.mean(axis=1)) > 0.05


def test_contrast_scales_about_the_mean_luma():
    images = batch(200, low=100, high=156)
    x, out = to_float(images).double(), run(images, contrast=0.3).double()
    mean = (x.mean((2, 3)) @ torch.tensor(LUMA, dtype=torch.double))[:, None, None, None]
    factor = ((out - mean) / (x - mean)).flatten(1).nanmedian(dim=1).values
    torch.testing.assert_close(out, mean + factor[:, None, None, None] * (x - mean), rtol=0, atol=1e-5)
    assert 0.7 - 1e-3 < factor.min() < 0.75
    assert 1.25 < factor.max() < 1.3 + 1e-3


def test_normalise():
    x = torch.rand(2, 3, 4, 5)
    out = normalise(x.clone(), (0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
    for channel, (mean, std) in enumerate(((0.1, 1.0), (0.2, 2.0), (0.3, 4.0))):
        torch.testing.assert_close(out[:, channel], (x[:, channel] - mean) / std)


def test_the_hash_is_splitmix64():
    """The published sequence of seed 0 (Vigna's splitmix64.c): its first output is the mix of state 0."""
    state, mask = 0, 2**64 - 1

    def mix(z):
        z = (z + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    assert mix(0) == 0xE220A8397B1DCDAF
    for word in (5, 6, 7, 8):
        state = mix(state ^ word)
    assert uniforms(5, 6, 7, np.array([8]))[0] == (state >> 11) / 2**53


def test_the_hash_is_uniform_and_uncorrelated():
    n = 20_000
    columns = [
        uniforms(seed, epoch, purpose, np.arange(n))
        for seed, epoch, purpose in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
    ]
    for column in columns:
        assert ((column >= 0) & (column < 1)).all()
        counts = np.histogram(column, 20, (0, 1))[0]
        assert ((counts - n / 20) ** 2 / (n / 20)).sum() < 50  # chi-squared, 19 degrees of freedom: p = 1e-4
        assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(columns) - np.eye(4)).max() < 4.5 / np.sqrt(n)


def test_no_global_generator_is_drawn_from():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    augmented(batch(), EVERYTHING, seed=0, epoch=0, indices=np.arange(16))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
