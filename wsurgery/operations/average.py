"""Weighted sums of checkpoints: averages (Wortsman et al. 2022, model soups) and linear interpolation."""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import chain
from typing import Any

import numpy as np

from wsurgery.anatomy import Selection
from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.dtypes import is_float, numpy_dtype
from wsurgery.checkpoint.provenance import History
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.cast import cast, overflow_count, round_once
from wsurgery.operations.counterparts import COUNTER, seen_as, under_names_of, untied
from wsurgery.operations.overflows import Overflows
from wsurgery.operations.random_streams import chunk_slice, for_each_chunk
from wsurgery.operations.scaled import require_unscaled
from wsurgery.operations.tensor_edit import Result, Separable, TensorEdit, copy
from wsurgery.operations.tensors import not_negative

_REMEDY = "leave it out with --except if the two are to differ there"
_SUM_TOLERANCE = 1e-6  # weights typed with six digits
_ZERO = -0.0  # which keeps the sign of what is added to it
_BLOCK = 1 << 16  # elements in float64 at a time: what is in work stays in the second-level cache


def parse_weights(text: str | None) -> list[float] | None:
    """Read numbers with commas between them; None where there is no text.

    Raises:
        UsageError: one is no finite number.
    """
    try:
        numbers = None if text is None else [float(word) for word in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if numbers is not None and not all(map(math.isfinite, numbers)):
        raise UsageError(f"--weights {text}: write numbers with commas between them")
    return numbers


def weighted_sum_edits(sources: Sequence[Checkpoint], weights: Sequence[float], *, selection: Selection) -> Result:
    """Sum the selected floating-point tensors of several checkpoints, each times its checkpoint's weight.

    An infinity that all of them have stays. Everything else, integers too, comes from the first. A wrapper's prefix that only
    one side has is looked through, a counter of a batch norm may be missing, and what is tied in the first alone is tied no
    longer. A source of weight 0 is not read, so its NaN does not leak; a single source of weight 1 is copied. Names, dtypes
    and order are the first's.

    Args:
        sources: the first may be a stream, the others must be seekable.
        weights: one a source. They are used as given and sum to 1.
        selection: of the first's tensors.

    Raises:
        UsageError: there are more or fewer weights than sources, or they do not sum to 1.
        WsurgeryError: a selected tensor is not in every source, or not with the same shape. When it is computed: a running
            variance would become negative.
    """
    if len(weights) != len(sources):
        raise UsageError(f"{len(sources)} checkpoints and {len(weights)} weights: give each checkpoint one")
    if not math.isclose(math.fsum(weights), 1, abs_tol=_SUM_TOLERANCE):
        raise UsageError(f"the weights sum to {math.fsum(weights):.9g}: make them sum to 1")
    sources, chosen, history, says = matched(sources, selection)
    first = sources[0]
    (lead, lead_weight), *rest = [pair for pair in zip(sources, weights, strict=True) if pair[1]]
    weights = [lead_weight, *(weight for _, weight in rest)]
    of_both_signs = min(weights) < 0

    def combine(x: Array, run: Map, *, tensor: TensorInfo) -> Array:
        def others() -> Iterator[Array]:
            return (source.read_array(tensor.name) for source, _ in rest)

        result, lost = weighted_sum(chain([x], others()), weights, dtype=numpy_dtype(tensor.dtype), run=run)
        if of_both_signs and np.isinf(x).any():
            alike = reduce(np.logical_and, (x == other for other in others()), np.isinf(x))
            result[alike] = cast(x[alike], dtype=result.dtype)  # 2 ∞ - ∞, as of a mask, is no number
        overflows.note(tensor.name, lost, result.dtype)
        return result

    def several(x: Array, tensors: Sequence[tuple[str, int]], *, dtype: str) -> Array | None:
        others = [_end_to_end(source, [name for name, _ in tensors]) for source, _ in rest]
        alike = [other for other in others if other is not None]
        if len(alike) < len(others):
            return None
        if of_both_signs and np.isinf(x).any():
            return None
        result, lost = weighted_sum([x, *alike], weights, dtype=numpy_dtype(dtype))
        return None if lost else result

    overflows = Overflows()
    of_dtype = {tensor.dtype: partial(several, dtype=tensor.dtype) for tensor in first.tensors.values()}
    edits = []
    for tensor in first.tensors.values():
        if tensor.name not in chosen or not is_float(tensor.dtype):
            edits.append(copy(tensor, first))
            continue
        origin = lead.tensors[tensor.name]
        is_copy = not rest and lead_weight == 1 and origin.dtype == tensor.dtype
        compute = Separable(partial(combine, tensor=tensor), ((of_dtype[tensor.dtype], tensor.name),))
        one = TensorEdit(tensor, lead, origin, None if is_copy else compute)
        edits.append(checked(one) if of_both_signs else one)
    return Result(edits, history, says=says, warns=overflows.warnings)


def checked(edit: TensorEdit) -> TensorEdit:
    """Return the edit of a tensor, refused if that is a running variance and would become negative."""
    if edit.compute is None or not edit.tensor.name.endswith("running_var"):
        return edit
    return replace(edit, compute=not_negative(edit.compute))


def matched(
    sources: Sequence[Checkpoint], selection: Selection
) -> tuple[list[Checkpoint], set[str], History, list[str]]:
    """See checkpoints under the names of the first of them.

    Args:
        sources: the first may be a stream, the others must be seekable.
        selection: of the first's tensors.

    Returns:
        The checkpoints, the names of the selected tensors that are in all of them, the first's history, and what to say of it.

    Raises:
        WsurgeryError: a selected tensor is not in every source, or not with the same shape.
    """
    first, history, says = untied(sources[0], sources[1:])
    elsewhere = {name for other in sources[1:] for name in other.tensors}
    chosen = selection.names(first.tensors, beside=elsewhere)
    seen = [first, *(seen_as(other, under_names_of(first.tensors, chosen, other)) for other in sources[1:])]
    for other in seen[1:]:
        chosen = require_same(first, other, chosen)
        extra = selection.names(other.tensors, beside=first.tensors) - first.tensors.keys()
        for name in sorted(name for name in extra if not name.endswith(COUNTER)):
            raise WsurgeryError(f"{printable(name)} is in {other.label} and not in {first.label}: {_REMEDY}")
    return seen, chosen, history, says


def weighted_sum(
    tensors: Iterable[Array], weights: Sequence[float], *, dtype: "np.dtype[Any]", run: Map = map
) -> tuple[Array, int]:
    """Sum tensors times weights, in float64, and round once.

    Args:
        tensors: at least one, floating point, all of one shape; taken one at a time, but for the last two.
        weights: one a tensor.
        dtype: of the result.
        run: `map` over chunks.

    Returns:
        The sum in their shape, and how many of its elements the dtype has no finite number for.
    """
    left = iter(tensors)
    total: Array | None = None
    for weight, x in zip(weights[:-2], left, strict=False):
        total = np.full(x.size, _ZERO) if total is None else total
        _accumulate(total, x.reshape(-1), weight, run)
    last = list(zip(weights[-2:], left, strict=True))
    shape = last[0][1].shape
    result, lost = np.empty(math.prod(shape), dtype), []

    def finish(chunk: int) -> None:
        part = chunk_slice(chunk)
        for start in range(part.start, min(part.stop, result.size), _BLOCK):
            rounded = result[start : min(start + _BLOCK, part.stop)]
            some = slice(start, start + rounded.size)
            sums = np.full(rounded.size, _ZERO) if total is None else total[some]
            for weight, x in last:
                _add(sums, x.reshape(-1)[some], weight)
            rounded[...] = round_once(sums, result.dtype)
            lost.append(overflow_count(sums, rounded))

    for_each_chunk(run, finish, result.size)
    return result.reshape(shape), sum(lost)


def _accumulate(total: Array, x: Array, weight: float, run: Map) -> None:
    def add(chunk: int) -> None:
        part = chunk_slice(chunk)
        _add(total[part], x[part], weight)

    for_each_chunk(run, add, x.size)


def _add(sums: Array, x: Array, weight: float) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        values = x.astype(np.float64)
        values *= weight
        sums += values


def _end_to_end(source: Checkpoint, names: Sequence[str]) -> Array | None:
    """Read tensors of one dtype, (n,); None if they have several."""
    tensors = [source.tensors[name] for name in names]
    if len({tensor.dtype for tensor in tensors}) > 1:
        return None
    return np.frombuffer(b"".join(source.read(tensor) for tensor in tensors), numpy_dtype(tensors[0].dtype))


def require_same(first: Checkpoint, other: Checkpoint, chosen: Collection[str]) -> set[str]:
    """See that chosen tensors of one checkpoint are in another, with numbers that can be read; a counter may be missing.

    Returns:
        The chosen names that are in both.

    Raises:
        WsurgeryError: one is not there, has another shape, is of integers in one alone, or cannot be read as numbers.
    """
    for source in (first, other):
        require_unscaled(source, chosen)
    for name, tensor in first.tensors.items():
        counterpart = other.tensors.get(name)
        if name not in chosen or (counterpart is None and name.endswith(COUNTER)):
            continue
        if counterpart is None:
            raise WsurgeryError(f"{printable(name)} is in {first.label} and not in {other.label}: {_REMEDY}")
        if counterpart.shape != tensor.shape:
            raise WsurgeryError(
                f"{printable(name)} is {tensor.shape} in {first.label} and {counterpart.shape} in {other.label}: {_REMEDY}"
            )
        if is_float(tensor.dtype) != is_float(counterpart.dtype):
            raise WsurgeryError(
                f"{printable(name)} is {tensor.dtype} in {first.label} and {counterpart.dtype} in {other.label}: {_REMEDY}"
            )
        if is_float(tensor.dtype):
            try:
                numpy_dtype(counterpart.dtype)
            except TypeError as error:  # elements smaller than a byte
                raise WsurgeryError(f"{other.label}: {printable(name)}: {error}: leave it out with --except") from None
    return {name for name in chosen if name in other.tensors}
