"""Another number of image channels, another image size: the edits that timm makes to weights as it loads them."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from wsurgery.anatomy import block_map, first_convolution, role_map
from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.dtypes import is_float
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.cast import round_once
from wsurgery.operations.tensor_edit import TensorEdit, copy

Shape = tuple[int, ...]
Sides = tuple[int, int]  # height and width
Change = tuple[str, Shape, Callable[[Array], Array]]  # tensor name, its new shape, how it gets there

_ABSOLUTE = re.compile(r"(.*\.)?(?<!encoder\.)pos_embed")  # ViT and its kind; Qwen3-VL's encoder resamples its own
_OF_THE_GRID = re.compile(r"(.*\.)?(blocks\.\d+\.attn|rel_pos_bias)\.relative_position_bias_table")  # BEiT
_OF_A_WINDOW = re.compile(r"(?:.*\.)?layers\.(\d+)\.blocks\.\d+\.attn\.relative_position_bias_table")  # Swin
_PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")
_ANY_SIZE = "freqs"  # learned frequencies of rotary positions
_MIXES_POSITIONS = re.compile(r".*(?:(?:mlp|linear)_tokens\..*|\.gate\.proj\.)weight")  # Mixer's, ResMLP's, gMLP's
_RESAMPLES_ITSELF = "merger."  # Qwen3-VL's bare vision tower
_RECOMPUTED = ("relative_position_index", "attn_mask")


def adapt_edits(
    checkpoint: Checkpoint,
    *,
    in_chans: int | None,
    img_size: Sides | None,
    architecture: Mapping[str, Any] | None = None,
) -> list[TensorEdit]:
    """Adapt a network to images of another kind; copy what stays as it is.

    Args:
        checkpoint: the network.
        in_chans: channels of the new images; None leaves them.
        img_size: height and width of the new images, in pixels; None leaves them. The side of a patch is read off the patch
            embedding, the grid off the tables of positions.
        architecture: what the metadata says: `in_chans` where more than the tensors are needed to find the first convolution,
            `args["img_size"]` where the old images were not square.

    Raises:
        UsageError: no convolution meets the image, there is no table of positions, or the size does not fit the patches.
        WsurgeryError: a tensor depends on the size of the image in another way, or holds no floating-point numbers.
    """
    changes: dict[str, tuple[Shape, Callable[[Array], Array]]] = {}
    if in_chans is not None:
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        changes |= {
            name: (shape, change) for name, shape, change in _for_channels(shapes, in_chans, architecture or {})
        }
    if img_size is not None:
        before = (architecture or {}).get("args", {}).get("img_size")
        old = (before[0], before[1]) if _is_pair(before) else None
        changes |= {name: (shape, change) for name, shape, change in _for_size(checkpoint, img_size, old)}
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


def parse_sides(text: str) -> Sides:
    """Read the size of an image: `384`, or height and width, `224x320`.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"([1-9]\d{0,5})(?:[x×,]([1-9]\d{0,5}))?", text)
    if not match:
        raise UsageError(f"--img-size {printable(text, 40)}: write it as 384, or height and width as 224x320")
    return int(match[1]), int(match[2] or match[1])


def adapt_channels(weight: Array, *, in_chans: int, base_chans: int | None = None) -> Array:
    """Give a convolution another number of input channels, as timm's `adapt_input_conv`.

    Args:
        weight: (out, in, kh, kw), floating point.
        in_chans: new channels. One is the sum of the old ones; several repeat them in turn, times in/in_chans.
        base_chans: channels of the old images, where the convolution reads several pixels at once (space to depth): a
            divisor of `in`, and `in_chans` is 1. Default: `in`.

    Returns:
        (out, in_chans, kh, kw), same dtype; (out, in / base_chans, kh, kw) behind space to depth.
    """
    if base_chans not in (None, weight.shape[1]):
        out, channels, *kernel = weight.shape
        groups = weight.reshape(out * channels // base_chans, base_chans, *kernel)
        return adapt_channels(groups, in_chans=1).reshape(out, channels // base_chans, *kernel)
    wide = round_once(weight, np.dtype("f8" if weight.dtype == np.float64 else "f4"))
    old = weight.shape[1]
    if in_chans == 1:
        total = wide[:, :1]
        for channel in range(1, old):
            total = total + wide[:, [channel]]
        return round_once(total, weight.dtype)
    repeated = wide[:, [channel % old for channel in range(in_chans)]]
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return round_once(repeated * wide.dtype.type(old / in_chans), weight.dtype)


def resample_positions(table: Array, *, prefix: int, side: int | Sides, old: Sides | None = None) -> Array:
    """Resample a table of absolute positions, as timm's `resample_abs_pos_embed`: bicubic, antialiased.

    Args:
        table: (1, prefix + h·w, c), floating point; one row a token, those of the grid last, row by row.
        prefix: rows of class and register tokens, which are kept.
        side: height and width of the new grid, or the side of a square one.
        old: h and w. Default: the grid is square.

    Returns:
        (1, prefix + new h·w, c), same dtype.
    """
    new, c = (side, side) if isinstance(side, int) else side, table.shape[2]
    old = old or (math.isqrt(table.shape[1] - prefix),) * 2
    weights = [bicubic_weights(*pair) for pair in zip(old, new, strict=True)]
    grid = _resize(table[0, prefix:].reshape(*old, c), weights)
    return np.concatenate([table[:, :prefix], grid.reshape(1, math.prod(new), c)], axis=1)


def resample_biases(table: Array, *, extra: int, window: int | Sides, old: Sides | None = None) -> Array:
    """Resample a table of relative position biases, as timm's `resize_rel_pos_bias_table` (from BEiT).

    Args:
        table: ((2h - 1)(2w - 1) + extra, heads), floating point; one row for each offset in a window of h × w tokens.
        extra: last rows, of the class token, which are kept.
        window: height and width of the new window, in tokens, or the side of a square one.
        old: h and w. Default: the window is square.

    Returns:
        ((2h - 1)(2w - 1) + extra, heads) of the new h and w, same dtype.
    """
    end, heads = table.shape[0] - extra, table.shape[1]
    before = _offsets(old) if old else (math.isqrt(end),) * 2
    new = _offsets((window, window) if isinstance(window, int) else window)
    weights = [geometric_weights(*pair) for pair in zip(before, new, strict=True)]
    grid = _resize(table[:end].reshape(*before, heads), weights)
    return np.concatenate([grid.reshape(math.prod(new), heads), table[end:]])


def _offsets(window: Sides) -> Sides:
    return 2 * window[0] - 1, 2 * window[1] - 1


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


def _for_channels(shapes: Mapping[str, Shape], in_chans: int, architecture: Mapping[str, Any]) -> Iterator[Change]:
    """Find the convolutions that meet the image: those of its channels in the block of the first one."""
    blocks, base = block_map(shapes), architecture.get("in_chans")
    first = _meets_the_image(shapes, blocks, architecture)
    channels = shapes[first][1]
    found = [
        name
        for name, shape in shapes.items()
        if name.endswith("weight") and len(shape) == 4 and shape[1] == channels and blocks[name] == blocks[first]
    ]
    if channels == 0:
        raise UsageError(f"{printable(first)} reads no channels: there is nothing to adapt")
    named = _named(architecture)
    if channels == 1 < len(found) and first in named:
        found = [name for name in found if name in named]
    elif channels == 1 < len(found):
        names = " and ".join(map(printable, found[:2]))
        raise UsageError(f"{names} read one channel each: nothing tells which meets the image and which is depthwise")
    if isinstance(base, int) and 0 < base < channels:  # it reads several pixels at once
        if channels % base or in_chans not in (1, base):
            raise UsageError(
                f"{printable(first)} reads {channels} channels of images with {base}, several pixels at once: it can be "
                "adapted to 1 only"
            )
        if in_chans == 1:
            out, _, *kernel = shapes[first]
            yield first, (out, channels // base, *kernel), partial(adapt_channels, in_chans=1, base_chans=base)
        return
    for name in found:
        out, _, *kernel = shapes[name]
        yield name, (out, in_chans, *kernel), partial(adapt_channels, in_chans=in_chans)


def _named(architecture: Mapping[str, Any]) -> list[str]:
    """Name the weights that timm says meet the image: of RepVGG's stem two, of most networks one, or none."""
    said = architecture.get("pretrained_cfg", {}).get("first_conv") or ()
    return [f"{name}.weight" for name in ([said] if isinstance(said, str) else said)]


def _meets_the_image(shapes: Mapping[str, Shape], blocks: Mapping[str, str], architecture: Mapping[str, Any]) -> str:
    """Name the first convolution: what timm calls so, one of 1 to 4 channels, or that whose input no other one makes."""
    for name in _named(architecture):
        if len(shapes.get(name, ())) == 4:
            return name
    try:
        return first_convolution(shapes, blocks)
    except UsageError:
        convolutions = [name for name in blocks if name.endswith("weight") and len(shapes[name]) == 4]
        stem = [name for name in convolutions if blocks[name] == blocks[convolutions[0]]]
        made = {shapes[name][0] for name in stem}
        outer = [name for name in stem if shapes[name][1] not in (1, *made)]
        if len({shapes[name][1] for name in outer}) != 1:
            raise
        return outer[0]


def _for_size(checkpoint: Checkpoint, img_size: Sides, old_size: Sides | None) -> Iterator[Change]:
    """Find the tables of positions."""
    tensors, roles = checkpoint.tensors, role_map(checkpoint.tensors)
    tables = [tensor for name, tensor in tensors.items() if roles[name] == "position" and not name.endswith(_ANY_SIZE)]
    if mixing := next((tensor for name, tensor in tensors.items() if _MIXES_POSITIONS.fullmatch(name)), None):
        raise WsurgeryError(_unknown(mixing, img_size))
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
            sides = _grid(checkpoint, img_size)
            old = old_size and _grid(checkpoint, old_size)
            root = absolute[1] or ""
            prefix = sum(
                math.prod(tensors[root + token].shape[:-1]) for token in _PREFIX_TOKENS if root + token in tensors
            )
            # Some tables have no rows for the prefix tokens.
            prefix = prefix if _fits(table, prefix, old, axis=1) else 0
            if _fits(table, prefix, old, axis=1):
                resample = partial(resample_positions, prefix=prefix, side=sides, old=old)
                yield name, (1, prefix + math.prod(sides), shape[2]), resample
                continue
        elif len(shape) == 2 and (window or _OF_THE_GRID.fullmatch(name)):
            sides = _grid(checkpoint, img_size)
            old = None if window or not old_size else _grid(checkpoint, old_size)
            within = _offsets(old) if old else None
            extra = 0 if _fits(table, 0, within) else 3
            fits = _fits(table, extra, within) and (within is not None or _square(table, extra) % 2 == 1)
            if window:  # a window is no wider than its stage, each of which halves the grid
                widest = max(windows)
                sides = min(sides[0] >> int(window[1]), widest), min(sides[1] >> int(window[1]), widest)
                before = _square(table, 0) // 2 + 1
                fits = fits and (before == widest or (before,) * 2 == sides)  # Swin-S3 gives each stage its own
            if all(sides) and fits:
                biases = partial(resample_biases, extra=extra, window=sides, old=old)
                yield name, (math.prod(_offsets(sides)) + extra, shape[1]), biases
                continue
        raise WsurgeryError(_unknown(table, img_size))


def _unknown(tensor: TensorInfo, img_size: Sides) -> str:
    return (
        f"{printable(tensor.name)} {tensor.shape} depends on the size of the image in a way that adapt does not know: make "
        f"the network with wsurgery init ARCH --arg img_size={_as_argument(img_size)}, and transfuse all but this into it"
    )


def _as_argument(sides: Sides) -> str:
    return str(sides[0]) if sides[0] == sides[1] else f"'[{sides[0]},{sides[1]}]'"


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple)) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)
    )


def _grid(checkpoint: Checkpoint, img_size: Sides) -> Sides:
    """Return how many patches an image has in its height and its width."""
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    first = _meets_the_image(shapes, block_map(shapes), {})
    patch = shapes[first][2]
    # An odd kernel overlaps with its neighbours (Hiera): its stride is not in the file.
    if not first.endswith("patch_embed.proj.weight") or patch != shapes[first][3] or patch % 2:
        raise UsageError(
            f"{printable(first)} {shapes[first]} meets the image in {checkpoint.label}, and is no embedding of square "
            "patches: how many positions an image of another size has is not known"
        )
    if min(img_size) < patch:
        raise UsageError(f"--img-size {min(img_size)} is smaller than a patch of {patch} pixels")
    return img_size[0] // patch, img_size[1] // patch


def _fits(table: TensorInfo, extra: int, grid: Sides | None, axis: int = 0) -> bool:
    """Whether a table has the rows of a grid, or of a square one, and `extra` ones."""
    return table.shape[axis] - extra == math.prod(grid) if grid else _square(table, extra, axis) > 0


def _square(table: TensorInfo, extra: int, axis: int = 0) -> int:
    """Return the side of the square that a table's rows fill, but for `extra` ones; 0 if they fill none."""
    rows = table.shape[axis] - extra
    side = math.isqrt(max(rows, 0))
    return side if side * side == rows else 0


def _resize(grid: Array, weights: Sequence[Array]) -> Array:
    """(h, w, c) → (new h, new w, c), same dtype: of `weights`, (new, old), one along each side."""
    wide = round_once(grid, np.dtype("f8"))
    for along in weights:
        wide = _weighted(along, wide).swapaxes(0, 1)
    return round_once(wide, grid.dtype)


def _weighted(weights: Array, x: Array) -> Array:
    """(new, old) times (old, …), summed in the order of the columns: a library's product depends on the machine."""
    result: Array = np.stack([sum(row[j] * x[j] for j in np.flatnonzero(row)) for row in weights])
    return result


def _cubic(x: Array) -> Array:
    """Keys's cubic kernel with a = -0.5."""
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
