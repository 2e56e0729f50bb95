import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.figures.filter_grid import filter_grid, png, read_first_filters


@pytest.mark.parametrize("n", [1, 3, 8, 32, 37, 64])
def test_every_pixel_is_its_weight_and_every_gap_is_clear(n: int) -> None:
    weight = np.random.default_rng(n).standard_normal((n, 3, 5, 4))
    pixels, scale = filter_grid(weight)
    assert scale == np.abs(weight).max()
    rows, columns = (pixels.shape[0] + 1) // 6, (pixels.shape[1] + 1) // 5
    assert rows * columns >= n > (rows - 1) * columns
    opaque = 0
    for i in range(n):
        top, left = i // columns * 6, i % columns * 5
        tile = pixels[top : top + 5, left : left + 4]
        np.testing.assert_allclose((tile[..., :3] - 0.5) * 2 * scale, weight[i].transpose(1, 2, 0), atol=1e-12)
        opaque += (tile[..., 3] == 1).sum()
    assert (pixels[..., 3] > 0).sum() == opaque == n * 20


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_numbers_of_channels_are_shown_as_their_mean(channels: int) -> None:
    weight = np.random.default_rng(0).standard_normal((1, channels, 3, 3))
    pixels, scale = filter_grid(weight)
    for colour in range(3):
        np.testing.assert_allclose((pixels[..., colour] - 0.5) * 2 * scale, weight[0].mean(axis=0), atol=1e-12)


def test_filters_of_zeros_are_grey() -> None:
    pixels, scale = filter_grid(np.zeros((4, 3, 3, 3)))
    assert scale == 0
    assert set(pixels[pixels[..., 3] == 1][:, :3].ravel()) == {0.5}


def test_the_convolution_that_meets_the_image_is_read(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 7, 7)).astype(np.float16)
    other = np.zeros((4, 4, 3, 3), np.float32)
    save_file({"layer1.0.conv1.weight": other, "conv1.weight": weight, "bn1.weight": other[:, 0, 0, 0]}, tmp_path / "a")
    np.testing.assert_array_equal(read_first_filters(tmp_path / "a"), weight)


def test_errors_name_the_file(tmp_path: Path) -> None:
    save_file({"fc.weight": np.zeros((4, 4), np.float32)}, tmp_path / "mlp")
    with pytest.raises(UsageError, match="mlp: no convolution"):
        read_first_filters(tmp_path / "mlp")
    save_file({"conv1.weight": np.full((4, 3, 3, 3), np.nan, np.float32)}, tmp_path / "broken")
    with pytest.raises(WsurgeryError, match=r"broken: conv1\.weight has NaN"):
        read_first_filters(tmp_path / "broken")


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (40, 25)])
def test_a_png_file_holds_the_pixels(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).random((*shape, 4))
    read = np.asarray(Image.open(io.BytesIO(png(pixels))))
    np.testing.assert_array_equal(read, (pixels * 255).round())
