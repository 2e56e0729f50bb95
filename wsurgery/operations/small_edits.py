"""Which edit each tensor gets, for the edits that every toolkit has: cast, scale, add-noise, average and lerp."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from threading import Lock

from wsurgery.anatomy import Selection, role_map
from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.dtypes import is_float, numpy_dtype
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.operations.average import weighted_sum
from wsurgery.operations.cast import cast, overflow_count
from wsurgery.operations.edits import copy
from wsurgery.operations.noise import add_noise
from wsurgery.operations.random_streams import RandomStream
from wsurgery.operations.rewrite import Array, Compute, Edit, Map
from wsurgery.operations.scale import scale

_SUM_TOLERANCE = 1e-6  # weights typed with six digits


def cast_edits(checkpoint: Checkpoint, dtype: str, *, selection: Selection) -> tuple[list[Edit], dict[str, int]]:
    """Convert the selected floating-point tensors to `dtype`, its safetensors name; copy those that have it already.

    Returns:
        The edits; and a dict that they fill in as they are computed: tensor name → how many finite values became
        infinite or NaN, for the tensors with any.
    """
    overflows: dict[str, int] = {}
    target = numpy_dtype(dtype)

    def convert(x: Array, run: Map, *, name: str) -> Array:
        result = cast(x, dtype=target, run=run)
        if count := overflow_count(x, result, run=run):
            overflows[name] = count
        return result

    chosen = selection.names(checkpoint.tensors)
    edits = []
    for tensor in checkpoint.tensors.values():
        if tensor.name in chosen and is_float(tensor.dtype) and tensor.dtype != dtype:
            converted = TensorInfo(tensor.name, dtype, tensor.shape, 0, 0).placed(0)
            edits.append(Edit(converted, checkpoint, tensor, partial(convert, name=tensor.name)))
        else:
            edits.append(copy(tensor, checkpoint))
    return edits, overflows


def scale_edits(checkpoint: Checkpoint, *, by: float, selection: Selection) -> list[Edit]:
    """Multiply the selected floating-point tensors by a number; see `_edit_weights`."""
    return _edit_weights(checkpoint, selection, lambda tensor: lambda x, run: scale(x, by=by, run=run))


def noise_edits(
    checkpoint: Checkpoint, *, std: float, relative: bool, selection: Selection, seed: int, occurrence: int
) -> list[Edit]:
    """Add Gaussian noise to the selected floating-point tensors; see `_edit_weights` and `add_noise`."""

    def noise(tensor: TensorInfo) -> Compute:
        random = RandomStream(seed, "add-noise", occurrence, tensor.name)
        return lambda x, run: add_noise(x, std=std, relative=relative, random=random, run=run)

    return _edit_weights(checkpoint, selection, noise)


def weighted_sum_edits(sources: Sequence[Checkpoint], weights: Sequence[float], *, selection: Selection) -> list[Edit]:
    """Sum the selected floating-point tensors of several checkpoints, each times its checkpoint's weight.

    Everything else, integers too, comes from the first. A source of weight 0 is not read, so its NaN does not leak; a
    single source of weight 1 is copied. Names, dtypes and order are the first's.

    Args:
        sources: the first may be a stream, the others must be seekable.
        weights: one a source. They are used as given and sum to 1.
        selection: of the first's tensors.

    Raises:
        UsageError: there are more or fewer weights than sources, or they do not sum to 1.
        WsurgeryError: a selected tensor is not in every source, or not with the same shape.
    """
    if len(weights) != len(sources):
        raise UsageError(f"{len(sources)} checkpoints and {len(weights)} weights: give each checkpoint one")
    if not math.isclose(math.fsum(weights), 1, abs_tol=_SUM_TOLERANCE):
        raise UsageError(f"the weights sum to {math.fsum(weights):.9g}: make them sum to 1")
    first, *others = sources
    chosen = selection.names(first.tensors)
    for other in others:
        _require_same(first, other, chosen, selection)
    (lead, lead_weight), *rest = [pair for pair in zip(sources, weights, strict=True) if pair[1]]
    reading = Lock()  # tensors are computed in several threads, and a file has one position

    def read(name: str) -> Iterator[tuple[Array, float]]:
        for source, weight in rest:
            with reading:
                x = source.read_array(name)
            yield x, weight

    def combine(x: Array, run: Map, *, tensor: TensorInfo) -> Array:
        def parts() -> Iterator[tuple[Array, float]]:
            yield x, lead_weight
            yield from read(tensor.name)

        return weighted_sum(parts(), shape=x.shape, dtype=numpy_dtype(tensor.dtype), run=run)

    edits = []
    for tensor in first.tensors.values():
        if tensor.name not in chosen or not is_float(tensor.dtype):
            edits.append(copy(tensor, first))
            continue
        origin = lead.tensors[tensor.name]
        is_copy = not rest and lead_weight == 1 and origin.dtype == tensor.dtype
        edits.append(Edit(tensor, lead, origin, None if is_copy else partial(combine, tensor=tensor)))
    return edits


def _edit_weights(checkpoint: Checkpoint, selection: Selection, compute: Callable[[TensorInfo], Compute]) -> list[Edit]:
    """Edit the selected floating-point tensors.

    Batch norm's running statistics are left alone unless `only` or `role` chose them; a running variance that would
    become negative is an error.
    """
    chosen, roles = selection.names(checkpoint.tensors), role_map(checkpoint.tensors)
    explicit = bool(selection.only or selection.role)
    edits = []
    for tensor in checkpoint.tensors.values():
        part = tensor.name.rpartition(".")[2] if roles[tensor.name] == "batch_norm" else ""
        if (
            tensor.name not in chosen
            or not is_float(tensor.dtype)
            or (part in ("running_mean", "running_var") and not explicit)
        ):
            edits.append(copy(tensor, checkpoint))
            continue
        edit = compute(tensor)
        edits.append(Edit(tensor, checkpoint, tensor, _not_negative(edit) if part == "running_var" else edit))
    return edits


def _not_negative(compute: Compute) -> Compute:
    def checked(x: Array, run: Map) -> Array:
        result = compute(x, run)
        if (result < 0).any():
            raise WsurgeryError("is a running variance and would become negative: leave it out with --except")
        return result

    return checked


def _require_same(first: Checkpoint, other: Checkpoint, chosen: set[str], selection: Selection) -> None:
    remedy = "leave it out with --except if the two are to differ there"
    for name, tensor in first.tensors.items():
        if name not in chosen:
            continue
        counterpart = other.tensors.get(name)
        if counterpart is None:
            raise WsurgeryError(f"{printable(name)} is in {first.label} and not in {other.label}: {remedy}")
        if counterpart.shape != tensor.shape:
            raise WsurgeryError(
                f"{printable(name)} is {tensor.shape} in {first.label} and {counterpart.shape} in {other.label}: {remedy}"
            )
        if is_float(tensor.dtype) != is_float(counterpart.dtype):
            raise WsurgeryError(
                f"{printable(name)} is {tensor.dtype} in {first.label} and {counterpart.dtype} in {other.label}: {remedy}"
            )
        if is_float(tensor.dtype):
            try:
                numpy_dtype(counterpart.dtype)
            except TypeError as error:  # elements smaller than a byte
                raise WsurgeryError(f"{other.label}: {printable(name)}: {error}: leave it out with --except") from None
    for name in sorted(selection.names(other.tensors) - set(first.tensors)):
        raise WsurgeryError(f"{printable(name)} is in {other.label} and not in {first.label}: {remedy}")
