"""Another number of image channels, another image size: the edits that timm makes to weights as it loads them."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from wsurgery.anatomy import block_map, first_convolution, role_map
from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.dtypes import is_float
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.cast import round_once
from wsurgery.operations.tensor_edit import TensorEdit, copy

Shape = tuple[int, ...]
Change = tuple[str, Shape, Callable[[Array], Array]]  # tensor name, its new shape, how it gets there

_ABSOLUTE = re.compile(r"(.*\.)?(?<!encoder\.)pos_embed")  # ViT and its kind; Qwen3-VL's encoder resamples its own
_OF_THE_GRID = re.compile(r"(.*\.)?(blocks\.\d+\.attn|rel_pos_bias)\.relative_position_bias_table")  # BEiT
_OF_A_WINDOW = re.compile(r"(?:.*\.)?layers\.(\d+)\.blocks\.\d+\.attn\.relative_position_bias_table")  # Swin
_PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")
_ANY_SIZE = "freqs"  # learned frequencies of rotary positions
_RESAMPLES_ITSELF = "merger."  # Qwen3-VL's bare vision tower
_RECOMPUTED = ("relative_position_index", "attn_mask")


def adapt_edits(checkpoint: Checkpoint, *, in_chans: int | None, img_size: int | None) -> list[TensorEdit]:
    """Adapt a network to images of another kind; copy what stays as it is.

    Args:
        checkpoint: the network.
        in_chans: channels of the new images; None leaves them.
        img_size: side of the new images, in pixels; None leaves it. The side of a patch is read off the patch embedding,
            the grid off the tables of positions.

    Raises:
        UsageError: no convolution meets the image, there is no table of positions, or the size does not fit the patches.
        WsurgeryError: a tensor depends on the size of the image in another way, or holds no floating-point numbers.
    """
    changes: dict[str, tuple[Shape, Callable[[Array], Array]]] = {}
    if in_chans is not None:
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        changes |= {name: (shape, change) for name, shape, change in _for_channels(shapes, in_chans)}
    if img_size is not None:
        changes |= {name: (shape, change) for name, shape, change in _for_size(checkpoint, img_size)}
    edits = []
    for tensor in checkpoint.tensors.values():
        shape, change = changes.get(tensor.name, (tensor.shape, None))
        if change is None or shape == tensor.shape:
            edits.append(copy(tensor, checkpoint))
            continue
        if not is_float(tensor.dtype):
            raise WsurgeryError(f"{printable(tensor.name)} is {tensor.dtype}: adapt needs floating-point weights")
        fresh = replace(tensor, shape=shape).placed(tensor.start)
        edits.append(TensorEdit(fresh, checkpoint, tensor, partial(_compute, change=change)))
    return edits


def adapt_channels(weight: Array, *, in_chans: int) -> Array:
    """Give a convolution another number of input channels, as timm's `adapt_input_conv`.

    Args:
        weight: (out, in, kh, kw), floating point.
        in_chans: new channels. One is the sum of the old ones; several repeat them in turn, times in/in_chans.

    Returns:
        (out, in_chans, kh, kw), same dtype.
    """
    wide = round_once(weight, np.dtype("f8" if weight.dtype == np.float64 else "f4"))
    old = weight.shape[1]
    if in_chans == 1:
        total = wide[:, :1]
        for channel in range(1, old):
            total = total + wide[:, [channel]]
        return round_once(total, weight.dtype)
    repeated = wide[:, [channel % old for channel in range(in_chans)]]
    return round_once(repeated * wide.dtype.type(old / in_chans), weight.dtype)


def resample_positions(table: Array, *, prefix: int, side: int) -> Array:
    """Resample a table of absolute positions, as timm's `resample_abs_pos_embed`: bicubic, antialiased.

    Args:
        table: (1, prefix + old², c), floating point; one row a token, those of the square grid last, row by row.
        prefix: rows of class and register tokens, which are kept.
        side: of the new grid.

    Returns:
        (1, prefix + side², c), same dtype.
    """
    old = math.isqrt(table.shape[1] - prefix)
    grid = _resize(table[0, prefix:].reshape(old, old, table.shape[2]), bicubic_weights(old, side))
    return np.concatenate([table[:, :prefix], grid.reshape(1, side * side, table.shape[2])], axis=1)


def resample_biases(table: Array, *, extra: int, window: int) -> Array:
    """Resample a table of relative position biases, as timm's `resize_rel_pos_bias_table` (from BEiT).

    Args:
        table: ((2·old - 1)² + extra, heads), floating point; one row for each offset in a square window of `old` tokens.
        extra: last rows, of the class token, which are kept.
        window: side of the new window, in tokens.

    Returns:
        ((2·window - 1)² + extra, heads), same dtype.
    """
    end = table.shape[0] - extra
    old, new = math.isqrt(end), 2 * window - 1
    grid = _resize(table[:end].reshape(old, old, table.shape[1]), geometric_weights(old, new))
    return np.concatenate([grid.reshape(new * new, table.shape[1]), table[end:]])


def bicubic_weights(old: int, new: int) -> Array:
    """Return the matrix (new, old), float64, that resamples a row of pixels as PyTorch's antialiased bicubic does."""
    stretch = max(old / new, 1)
    weights = np.zeros((new, old))
    for i in range(new):
        center = old / new * (i + 0.5)
        low, high = max(int(center - 2 * stretch + 0.5), 0), min(int(center + 2 * stretch + 0.5), old)
        weights[i, low:high] = _cubic((np.arange(low, high) + 0.5 - center) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def geometric_weights(old: int, new: int) -> Array:
    """Return the matrix (new, old), float64, that takes a row of relative positions to another window.

    The old offsets are spread from the middle in a geometric progression over the range of the new ones, and read between
    by linear interpolation; both lengths are odd.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (old // 2)) / (1 - ratio) > new // 2:
            high = ratio
        else:
            low = ratio
    right = np.cumsum([ratio**i for i in range(old // 2)])
    places, wanted = np.concatenate([-right[::-1], [0.0], right]), np.arange(new) - new // 2
    weights: Array = np.stack([np.interp(wanted, places, column) for column in np.eye(old)], axis=1)
    return weights


def _compute(x: Array, run: Map, *, change: Callable[[Array], Array]) -> Array:
    return change(x)


def _for_channels(shapes: Mapping[str, Shape], in_chans: int) -> Iterator[Change]:
    """Find the convolutions that meet the image: those of its channels in the block of the first one."""
    first = first_convolution(shapes)
    blocks, channels = block_map(shapes), shapes[first][1]
    found = [
        name
        for name, shape in shapes.items()
        if name.endswith("weight") and len(shape) == 4 and shape[1] == channels and blocks[name] == blocks[first]
    ]
    if channels == 0:
        raise UsageError(f"{printable(first)} reads no channels: there is nothing to adapt")
    if channels == 1 < len(found):
        names = " and ".join(map(printable, found[:2]))
        raise UsageError(f"{names} read one channel each: nothing tells which meets the image and which is depthwise")
    for name in found:
        out, _, *kernel = shapes[name]
        yield name, (out, in_chans, *kernel), partial(adapt_channels, in_chans=in_chans)


def _for_size(checkpoint: Checkpoint, img_size: int) -> Iterator[Change]:
    """Find the tables of positions."""
    tensors, roles = checkpoint.tensors, role_map(checkpoint.tensors)
    tables = [tensor for name, tensor in tensors.items() if roles[name] == "position" and not name.endswith(_ANY_SIZE)]
    if not tables or any(_RESAMPLES_ITSELF in name for name in tensors):
        raise UsageError(
            f"{checkpoint.label} has no table of positions for images of one size: there is nothing to adapt"
        )
    for name in tensors:
        if name.endswith(_RECOMPUTED):
            raise WsurgeryError(
                f"{printable(name)} is for images of one size, and timm computes its own: run wsurgery drop "
                f"--only '*{name.rpartition('.')[2]}' first"
            )
    windows = [_square(tensor, 0) // 2 + 1 for tensor in tables if tensor.shape and _OF_A_WINDOW.fullmatch(tensor.name)]
    for table in tables:
        name, shape = table.name, table.shape
        absolute, window = _ABSOLUTE.fullmatch(name), _OF_A_WINDOW.fullmatch(name)
        if absolute and len(shape) == 3 and shape[0] == 1:
            side = _grid(checkpoint, img_size)
            root = absolute[1] or ""
            prefix = sum(
                math.prod(tensors[root + token].shape[:-1]) for token in _PREFIX_TOKENS if root + token in tensors
            )
            # Some tables have no rows for the prefix tokens.
            prefix = prefix if _square(table, prefix, axis=1) else 0
            if _square(table, prefix, axis=1):
                resample = partial(resample_positions, prefix=prefix, side=side)
                yield name, (1, prefix + side * side, shape[2]), resample
                continue
        elif len(shape) == 2 and (window or _OF_THE_GRID.fullmatch(name)):
            side = _grid(checkpoint, img_size)
            extra = 0 if _square(table, 0) % 2 else 3
            fits = _square(table, extra) % 2 == 1
            if window:  # a window is no wider than its stage, each of which halves the grid
                side = min(side >> int(window[1]), max(windows))
                old = _square(table, 0) // 2 + 1
                fits = fits and old in (side, max(windows))  # Swin-S3 gives each stage its own
            if side and fits:
                biases = partial(resample_biases, extra=extra, window=side)
                yield name, ((2 * side - 1) ** 2 + extra, shape[1]), biases
                continue
        raise WsurgeryError(
            f"{printable(name)} {shape} depends on the size of the image in a way that adapt does not know: make the "
            f"network with wsurgery init ARCH --arg img_size={img_size}, and transfuse all but this into it"
        )


def _grid(checkpoint: Checkpoint, img_size: int) -> int:
    """Return the patches on a side of the image."""
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    first = first_convolution(shapes)
    patch = shapes[first][2]
    # An odd kernel overlaps with its neighbours (Hiera): its stride is not in the file.
    if not first.endswith("patch_embed.proj.weight") or patch != shapes[first][3] or patch % 2:
        raise UsageError(
            f"{printable(first)} {shapes[first]} meets the image in {checkpoint.label}, and is no embedding of square "
            "patches: how many positions an image of another size has is not known"
        )
    if img_size < patch:
        raise UsageError(f"--img-size {img_size} is smaller than a patch of {patch} pixels")
    return img_size // patch


def _square(table: TensorInfo, extra: int, axis: int = 0) -> int:
    """Return the side of the square that a table's rows fill, but for `extra` ones; 0 if they fill none."""
    rows = table.shape[axis] - extra
    side = math.isqrt(max(rows, 0))
    return side if side * side == rows else 0


def _resize(grid: Array, weights: Array) -> Array:
    """(old, old, c) → (new, new, c), same dtype: `weights`, (new, old), along both sides."""
    wide = round_once(grid, np.dtype("f8"))
    for _ in range(2):
        wide = _weighted(weights, wide).swapaxes(0, 1)
    return round_once(wide, grid.dtype)


def _weighted(weights: Array, x: Array) -> Array:
    """(new, old) times (old, …), summed in the order of the columns: a library's product depends on the machine."""
    result: Array = np.stack([sum(row[j] * x[j] for j in np.flatnonzero(row)) for row in weights])
    return result


def _cubic(x: Array) -> Array:
    """Keys's cubic kernel with a = -0.5."""
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
