"""Image patches from inside a network: which module is a layer, and rows from its output, sampled as they pass by."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsurgery.anatomy import role_map
from wsurgery.anatomy.blocks import HEAD, NECK, UNPLACED, find_block, place
from wsurgery.checkpoint import TensorInfo
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.models.inputs import run

Cells = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """How a layer's output holds a grid of image patches.

    Attributes:
        order: `nchw` (b, c, h, w); `nhwc` (b, h, w, c); `tokens` (b, prefix + h·w, c); `vector` (b, c), a grid of one.
        height, width: of the grid.
        channels: c.
        prefix: tokens before the first patch (class token, registers); they are no patches and are not sampled.
    """

    order: Literal["nchw", "nhwc", "tokens", "vector"]
    height: int
    width: int
    channels: int
    prefix: int = 0

    def take(self, output: Tensor, cells: Tensor) -> Tensor:
        """Copy cells out of an output.

        Args:
            output: the layer's output for b images or more.
            cells: (b, k), int64, positions in the flattened grid, for each of the first b images.

        Returns:
            (b, k, c), in the output's dtype and on its device.
        """
        image = torch.arange(len(cells), device=cells.device)[:, None].expand_as(cells)
        if self.order == "vector":
            return output[image]
        if self.order == "tokens":
            return output[image, self.prefix + cells]
        y, x = cells // self.width, cells % self.width
        return output[image, :, y, x] if self.order == "nchw" else output[image, y, x]


def layer_modules(model: nn.Module, layers: Sequence[str] | Literal["all"] | None) -> dict[str, str]:
    """Find the module whose output is a layer.

    The output of a block is that of its last module: of a list (features of several depths) the last, of a tuple the first;
    of a lone convolution with batch norm, after the activation that follows and before a pool (a ResNet's `conv1`). A block
    that is a module of its own includes its pool.

    Args:
        model: a network whose blocks `wsurgery.anatomy.block_map` knows, or its attribute `block_globs` says: block name →
            globs of tensor names, as `wsurgery.models.load` finds them in a checkpoint.
        layers: block names, or else module paths; `all` for every block; None for all but `neck` and `head`.

    Returns:
        Layer, as it was given → module path. In the order given, or in which data meets the blocks.

    Raises:
        UsageError: no such layer; the message lists what there is.
    """
    shapes, own = (
        {name: tuple(value.shape) for name, value in model.state_dict().items()},
        getattr(model, "block_globs", None),
    )
    blocks = place(shapes, own or None)
    last = {
        block: path
        for block in dict.fromkeys(blocks.values())
        if (path := _last_module(model, block, blocks)) is not None
    }
    if layers is None or layers == "all":
        without = (UNPLACED,) if layers else (NECK, HEAD, UNPLACED)
        found = {block: path for block, path in last.items() if block not in without}
        if not found:
            raise UsageError(f"no blocks are known in this {type(model).__name__}: name its modules with --layers")
        return found
    paths = {name for name, _ in model.named_modules() if name}
    return {layer: _resolve(layer, last, blocks, paths) for layer in layers}


def probe(model: nn.Module, image: Tensor, modules: Mapping[str, str]) -> dict[str, Layout]:
    """Run one image, (1, 3, size, size), through the network to learn the layout of each layer.

    Raises:
        WsurgeryError: a layer is not run, or its output is no grid of patches.
    """
    layouts: dict[str, Layout] = {}

    def look(layer: str, output: Tensor) -> None:
        layouts[layer] = _layout(layer, output, model)

    with _hooks(model, modules, look):
        run(model, image)
    for layer in modules:
        if layer not in layouts:
            path = modules[layer]
            it = printable(layer) if path == layer else f"{printable(path)}, the last of {printable(layer)},"
            raise WsurgeryError(f"{it} is not run by the network: name another layer with --layers")
    return layouts


def sample(
    model: nn.Module,
    images: Tensor,
    modules: Mapping[str, str],
    layouts: Mapping[str, Layout],
    cells: Mapping[str, Cells],
) -> dict[str, Tensor]:
    """Run images through the network and keep some patches of each layer.

    Patches are copied as each layer's output appears: full activations are not kept, and an operation in place that
    follows does not reach them.

    Args:
        model: the network.
        images: float32 (b, 3, size, size), on the network's device.
        modules: layer → module path.
        layouts: layer → its layout.
        cells: layer → int64 (n, k), positions in the layer's flattened grid for the first n ≤ b images; a layer that is
            missing is not sampled.

    Returns:
        Layer → (n, k, c), on the network's device where that computes in float64, else on the CPU.
    """
    rows: dict[str, Tensor] = {}

    def keep(layer: str, output: Tensor) -> None:
        wanted = torch.from_numpy(cells[layer]).to(output.device)
        taken = layouts[layer].take(output, wanted)
        rows[layer] = taken.cpu() if output.device.type == "mps" else taken

    with _hooks(model, {layer: modules[layer] for layer in cells}, keep):
        run(model, images)
    return rows


def shared_grid(a: Layout, b: Layout) -> tuple[int, int]:
    """Return the coarser grid (height, width) of two layers: positions drawn on it are distinct in both."""
    return min(a.height, b.height), min(a.width, b.width)


def cells_at(positions: Cells, grid: tuple[int, int], layout: Layout) -> Cells:
    """Return the cells of a layout that hold the centres of a grid's cells.

    Args:
        positions: int64, any shape, positions in the flattened `grid`.
        grid: (height, width).
        layout: the layer's layout.
    """
    height, width = grid
    y, x = positions // width, positions % width
    row = (2 * y + 1) * layout.height // (2 * height)
    column = (2 * x + 1) * layout.width // (2 * width)
    return row * layout.width + column


def _resolve(layer: str, last: Mapping[str, str], blocks: Mapping[str, str], paths: set[str]) -> str:
    with suppress(UsageError):
        block = find_block(layer, blocks)
        if block in last:
            return last[block]
    if layer in paths:
        return layer
    example = max(last.values(), key=len, default="layer1.0.conv1")
    raise UsageError(
        f"no layer {printable(layer)!r}: this network has {', '.join(last)}, and modules such as {example}"
    )


def _last_module(model: nn.Module, block: str, blocks: Mapping[str, str]) -> str | None:
    """Return the outermost module that holds the block's last tensor and nothing of another block.

    Tables of positions and tokens count only where there is nothing else: a module of them may not run (rotary embeddings).
    """
    own = {name: tuple(x.shape) for name, x in model.state_dict().items() if blocks[name] == block}
    roles = role_map({name: TensorInfo(name, "F32", shape, 0, 0) for name, shape in own.items()})
    layers = [name for name in own if roles[name] not in ("position", "token")]
    parts = (layers or list(own))[-1].split(".")[:-1]
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        inside = {owner for name, owner in blocks.items() if name.startswith(f"{path}.")}
        runs = type(model.get_submodule(path)).forward is not nn.Module.forward  # a list of modules has none of its own
        if inside == {block} and runs:
            return _through_activation(model, path)
    return None


def _through_activation(model: nn.Module, path: str) -> str:
    """Return the path of the activation that directly follows a module, or the module's own."""
    parent, _, name = path.rpartition(".")
    siblings = list(model.get_submodule(parent).named_children())
    place = [sibling for sibling, _ in siblings].index(name)
    for follower, module in siblings[place + 1 : place + 2]:
        if "activation" in type(module).__module__ and not module.state_dict():
            return f"{parent}.{follower}".lstrip(".")
    return path


def _layout(layer: str, output: Tensor, model: nn.Module) -> Layout:
    shape = tuple(output.shape)
    if len(shape) == 2:
        return Layout("vector", 1, 1, shape[1])
    if len(shape) == 3:
        # The class token joins after the patch embedding, and not every network declares it.
        for prefix in (getattr(model, "num_prefix_tokens", 0), 0, 1):
            side = isqrt(max(shape[1] - prefix, 0))
            if side and side * side == shape[1] - prefix:
                return Layout("tokens", side, side, shape[2], prefix)
    if len(shape) == 4:
        # Images are square, so their grids are: only where both readings are square does the network have to say.
        square_last, square_first = shape[2] == shape[3], shape[1] == shape[2]
        channels_last = square_first and (not square_last or getattr(model, "output_fmt", "NCHW") == "NHWC")
        if channels_last:
            return Layout("nhwc", shape[1], shape[2], shape[3])
        if square_last:
            return Layout("nchw", shape[2], shape[3], shape[1])
    raise WsurgeryError(
        f"{printable(layer)} puts out {shape}, which is no square grid of patches: name another layer with --layers"
    )


@contextmanager
def _hooks(model: nn.Module, modules: Mapping[str, str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `see(layer, output)` whenever a layer has run."""

    def hook_for(layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, (tuple, list)) and output:
                output = output[-1 if isinstance(output, list) else 0]
            if not isinstance(output, Tensor):
                raise WsurgeryError(f"{printable(layer)} puts out no tensor: name another layer with --layers")
            see(layer, output)

        return hook

    handles = [model.get_submodule(path).register_forward_hook(hook_for(layer)) for layer, path in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
