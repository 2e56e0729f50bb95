"""Against timm: the functions with which it adapts weights, and PyTorch's own interpolation."""

import numpy as np
import pytest
import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from timm.models import adapt_input_conv
from torch.nn import functional as F

from wsurgery.operations.adapt import adapt_channels, bicubic_weights, resample_biases, resample_positions


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("in_chans", [1, 2, 4, 5, 12])
def test_the_first_convolution_is_timms_bit_for_bit(in_chans, dtype):
    weight = normal(16, 3, 7, 7, dtype=dtype)
    expected = adapt_input_conv(in_chans, weight.clone()).numpy()
    assert adapt_channels(weight.numpy(), in_chans=in_chans).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("old", "new"), [(1, 3), (1, 12), (2, 1), (4, 3), (5, 3), (12, 1), (12, 3), (12, 13), (13, 12)]
)
def test_any_number_of_channels_is_timms(old, new, dtype):
    weight = normal(16, old, 7, 7, dtype=dtype)
    expected = adapt_input_conv(new, weight.clone(), base_chans=old).numpy()
    found = adapt_channels(weight.numpy(), in_chans=new)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=2e-3 if dtype == torch.float16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize(("channels", "base"), [(48, 3), (12, 3), (8, 2)])
def test_behind_space_to_depth_it_is_timms(channels, base):
    weight = normal(16, channels, 3, 3)
    expected = adapt_input_conv(1, weight.clone(), base_chans=base).numpy()
    np.testing.assert_allclose(adapt_channels(weight.numpy(), in_chans=1, base_chans=base), expected, atol=1e-6)


@pytest.mark.parametrize("old", [1, 2, 3, 4])
def test_a_grey_image_means_the_same_in_every_number_of_channels(old):
    weight = normal(8, old, 3, 3, dtype=torch.float64)
    grey = normal(2, 1, 9, 9, dtype=torch.float64)
    expected = F.conv2d(grey.expand(-1, old, -1, -1), weight)
    for new in (1, old, 3 * old):
        adapted = torch.from_numpy(adapt_channels(weight.numpy(), in_chans=new))
        torch.testing.assert_close(F.conv2d(grey.expand(-1, new, -1, -1), adapted), expected)


@pytest.mark.parametrize(("old", "new"), [(14, 24), (24, 14), (14, 3), (3, 14), (16, 17), (1, 2), (5, 1)])
def test_bicubic_weights_are_pytorchs(old, new):
    x = torch.eye(old, dtype=torch.float64)[None, None]
    expected = F.interpolate(x, size=(old, new), mode="bicubic", antialias=True)[0, 0].T
    np.testing.assert_allclose(bicubic_weights(old, new), expected, atol=1e-12)


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(("old", "new"), [(14, 24), (14, 7), (6, 11), (2, 3)])
def test_positions_are_timms(old, new, prefix):
    table = normal(1, prefix + old * old, 12)
    expected = resample_abs_pos_embed(table, [new, new], num_prefix_tokens=prefix)
    found = resample_positions(table.numpy(), prefix=prefix, side=new)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[:, :prefix].tobytes() == table[:, :prefix].numpy().tobytes()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of timm, about how it calls PyTorch
@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize(("old", "new"), [(14, 24), (24, 14), (7, 6), (7, 12), (2, 3)])
def test_biases_are_timms(old, new, extra):
    table = normal((2 * old - 1) ** 2 + extra, 4)
    shape = ((2 * new - 1) ** 2 + extra, 4)
    expected = resize_rel_pos_bias_table(table, (new, new), shape)
    np.testing.assert_allclose(resample_biases(table.numpy(), extra=extra, window=new), expected, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [((14, 14), (7, 20)), ((6, 11), (14, 14)), ((3, 5), (6, 4))])
def test_positions_of_grids_that_are_not_square_are_timms(old, new):
    table = normal(1, 1 + old[0] * old[1], 12)
    expected = resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens=1)
    found = resample_positions(table.numpy(), prefix=1, side=new, old=old)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of timm, about how it calls PyTorch
@pytest.mark.parametrize(("old", "new"), [((14, 14), (7, 20)), ((6, 11), (14, 14)), ((3, 5), (6, 4))])
def test_biases_of_windows_that_are_not_square_are_timms(old, new):
    rows, wanted = ((2 * h - 1) * (2 * w - 1) + 3 for h, w in (old, new))
    table = normal(rows, 4)
    expected = resize_rel_pos_bias_table(table, new, (wanted, 4), old)
    found = resample_biases(table.numpy(), extra=3, window=new, old=old)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_half_precision_is_rounded_once():
    table = normal(1, 1 + 14 * 14, 12)
    half = table.half().numpy()
    found = resample_positions(half, prefix=1, side=20)
    wide = resample_positions(half.astype(np.float64), prefix=1, side=20)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, wide.astype(np.float16))
