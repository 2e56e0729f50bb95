"""Weights that are stored as 8-bit numbers times a scale: their values, and who may not take the numbers for them."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsurgery.anatomy.architecture import read_config
from wsurgery.anatomy.roles import Described
from wsurgery.anatomy.scales import scales
from wsurgery.checkpoint import Checkpoint
from wsurgery.checkpoint.dtypes import BITS, is_float
from wsurgery.errors import WsurgeryError, printable
from wsurgery.operations.random_streams import CHUNK
from wsurgery.operations.tensor_edit import TensorEdit

if TYPE_CHECKING:
    import numpy as np

    from wsurgery.operations.arrays import Array, Map
    from wsurgery.operations.overflows import Overflows

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Dequantise:
    """The computation that multiplies a weight by its scale, in float64 and rounded once.

    Attributes:
        name: of the weight.
        scale: (blocks along each dimension).
        block: elements of the weight along each dimension that share a scale.
        dtype: of the result.
        overflows: takes note of values that the type does not reach.
    """

    name: str
    scale: "Array"
    block: Shape
    dtype: "np.dtype[Any]"
    overflows: "Overflows"

    def __call__(self, x: "Array", run: "Map") -> "Array":
        """Compute it, rows by rows."""
        import numpy as np

        from wsurgery.operations.cast import overflow_count, round_once

        result = np.empty(x.shape, self.dtype)
        rows = max(1, CHUNK // max(1, math.prod(x.shape[1:])))
        lost = []

        def fill(start: int) -> None:
            part = slice(start, min(start + rows, x.shape[0]))
            factors = self.scale[np.arange(part.start, part.stop) // self.block[0]].astype(np.float64)
            for axis in range(1, x.ndim):
                factors = factors.take(np.arange(x.shape[axis]) // self.block[axis], axis=axis)
            with np.errstate(invalid="ignore"):
                product = x[part].astype(np.float64) * factors
            result[part] = round_once(product, self.dtype)
            lost.append(overflow_count(product, result[part]))

        for _ in run(fill, range(0, x.shape[0], rows)):
            pass
        self.overflows.note(self.name, sum(lost), self.dtype)
        return result


def dequantise(
    checkpoint: Checkpoint, name: str, names: Sequence[str], dtype: "np.dtype[Any]", overflows: "Overflows"
) -> Dequantise:
    """Say how a weight is multiplied by what scales it, which is read.

    Raises:
        WsurgeryError: that is not known.
    """
    config = read_config(checkpoint.path).get("quantization_config")
    sizes = config.get("weight_block_size") if isinstance(config, dict) else None
    weight = checkpoint.tensors[name]
    try:
        block = block_of(weight, names, checkpoint.tensors, sizes)
    except WsurgeryError as error:
        raise WsurgeryError(f"{printable(name)} of {checkpoint.label} {error}") from None
    blocks = [max(1, -(-size // side)) for size, side in zip(weight.shape, block, strict=True)]
    return Dequantise(name, checkpoint.read_array(names[0]).reshape(blocks), block, dtype, overflows)


def block_of(weight: Described, names: Sequence[str], tensors: Mapping[str, Described], sizes: Any = None) -> Shape:
    """Say how many elements of a weight share a scale along each dimension.

    Args:
        weight: 8-bit floating point or signed integers.
        names: of the tensors that scale it.
        tensors: all of the checkpoint.
        sizes: of the last dimensions' blocks, as config.json may have them. Else they are powers of two where these fit, as
            everybody has them.

    Raises:
        WsurgeryError: it is not one scale, of the tensor, of each row or of each block.
    """
    scale, shape = tensors[names[0]], weight.shape
    simple = weight.dtype == "I8" or (is_float(weight.dtype) and BITS[weight.dtype] == 8)
    is_number = scale.dtype == "F8_E8M0" or (is_float(scale.dtype) and BITS[scale.dtype] > 8)
    said = " and ".join(printable(name, 80) for name in names)
    if not simple or not is_number or len(names) > 1 or names[0].endswith(("SCB", "scales", "zero_point")):
        raise WsurgeryError(
            f"is {weight.dtype}, packed or scaled by {said} in a way that wsurgery does not know: let the tool that made it "
            "write it as 16-bit numbers, or leave both out with --except"
        )
    if math.prod(scale.shape) == 1:
        fits, block = bool(shape), [max(size, 1) for size in shape]
    elif len(scale.shape) == 1:
        fits, block = scale.shape == shape[:1], [1, *shape[1:]]
    else:
        fits = len(scale.shape) == len(shape)
        known = list(sizes) if isinstance(sizes, list) and all(type(size) is int and size > 0 for size in sizes) else []
        wanted = [None] * (len(shape) - len(known)) + known[-len(shape) :]
        block = [_side(*each) for each in zip(shape, scale.shape, wanted, strict=True)] if fits else []
        fits = fits and all(block)
    if not fits:
        raise WsurgeryError(
            f"{shape} is scaled by {said} {scale.shape}, which is no scale of it, of its rows or of blocks"
        )
    return tuple(block)


def _side(size: int, blocks: int, wanted: int | None) -> int:
    """How many elements along a dimension share a scale; 0 if none can."""

    def gives(side: int) -> bool:
        return -(-size // side) == blocks

    if blocks <= 1:
        return max(size, 1) if blocks else 0
    least = -(-size // blocks)
    power = 1 << (least - 1).bit_length()
    return next((side for side in (wanted, power, least) if side and gives(side)), 0)


def require_plain(edits: Iterable[TensorEdit]) -> None:
    """Require that nothing is computed with stored numbers, and that a weight and its scale stay together.

    Raises:
        WsurgeryError: it is not so; the message names the tensors.
    """
    edits = list(edits)
    scaled = {key: scales(source.tensors) for key, source in {id(each.source): each.source for each in edits}.items()}
    if not any(scaled.values()):
        return
    weight_of = {
        key: {name: weight for weight, names in found.items() for name in (weight, *names)}
        for key, found in scaled.items()
    }
    present = {(id(each.source), each.origin.name) for each in edits}
    made = {each.tensor.name for each in edits}
    for each in edits:
        key, name = id(each.source), each.origin.name
        if isinstance(each.compute, Dequantise) or name not in weight_of[key]:
            continue
        weight = weight_of[key][name]
        if each.compute is not None:
            raise refusal(each.source, weight)
        lost = [other for other in scaled[key].get(name, ()) if (key, other) not in present]
        if weight in made and (key, weight) not in present:  # it is another checkpoint's
            lost.append(weight)
        if lost:
            raise WsurgeryError(
                f"{printable(name)} of {each.source.label} means nothing without its {printable(lost[0])}: select both "
                "(--only and --except take globs), or neither"
            )


def require_unscaled(checkpoint: Checkpoint, names: Collection[str]) -> None:
    """Require that the numbers of tensors, which are about to be read, are their values.

    Raises:
        WsurgeryError: one is scaled, or scales another.
    """
    for weight, found in scales(checkpoint.tensors).items():
        if any(name in names for name in (weight, *found)):
            raise refusal(checkpoint, weight)


def refusal(source: Checkpoint, weight: str) -> WsurgeryError:
    """Say that a weight cannot be computed with as it is stored."""
    tensor, names = source.tensors[weight], scales(source.tensors)[weight]
    return WsurgeryError(
        f"{printable(weight)} of {source.label} is stored as {tensor.dtype}, scaled by {printable(names[0])}: run wsurgery "
        "cast --to bf16 (or fp32) first, which multiplies them"
    )
