"""Edits that change one tensor after another: to which tensors of a checkpoint they come, and in what arithmetic."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from wsurgery.anatomy import Selection, role_map
from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.dtypes import dtype_name, is_float
from wsurgery.errors import WsurgeryError
from wsurgery.operations.declaration import Edit, Map
from wsurgery.operations.overflows import Overflows
from wsurgery.operations.random_streams import CHUNK, RandomStream, chunk_slice, for_each_chunk, standard_normals
from wsurgery.operations.tensor import Tensor
from wsurgery.operations.tensor_edit import Separable, TensorEdit

if TYPE_CHECKING:
    import numpy as np

    from wsurgery.operations.arrays import Array, Compute


def tensor_edits(
    edit: Edit,
    checkpoint: Checkpoint,
    selection: Selection,
    options: Mapping[str, Any],
    random: RandomStream,
    overflows: Overflows,
) -> list[TensorEdit]:
    """Apply an edit to the selected floating-point tensors, and copy the others.

    Buffers and batch norm's running statistics are left alone unless `only` or `role` chose them; a running variance that
    would become negative is an error. An edit that resamples follows `bn`, one of its options.
    """
    from wsurgery.operations.resampling import resampling

    chosen, roles = selection.names(checkpoint.tensors), role_map(checkpoint.tensors)
    explicit = bool(selection.only or selection.role)
    own = {name: value for name, value in options.items() if not (edit.resamples and name == "bn")}
    several = partial(_several, edit=edit, random=random, options=own)
    result = []
    for tensor in checkpoint.tensors.values():
        name, role = tensor.name, roles[tensor.name]
        part = name.rpartition(".")[2] if role == "batch_norm" else ""
        compute: Compute | None = None
        if name in chosen and (explicit or role != "buffer"):
            stream = random.of(name) if edit.draws else random
            changed = partial(
                _edited, edit=edit, info=tensor, role=role, random=stream, overflows=overflows, options=own
            )
            if edit.resamples:
                compute = resampling(tensor, role, changed, options["bn"], stream)
            elif is_float(tensor.dtype) and (explicit or part not in ("running_mean", "running_var")):
                compute = Separable(changed, ((several, name),)) if edit.elementwise else changed
                compute = not_negative(changed) if part == "running_var" else compute
        result.append(TensorEdit(tensor, checkpoint, tensor, compute))
    return result


def edit_array(edit: Edit, x: "Array", *, random: RandomStream | None = None, **options: Any) -> "Array":
    """Do to an array of any shape what an edit does to a tensor of the part; `random` and `run` are given like options."""
    info = TensorInfo("x", dtype_name(x.dtype), x.shape, 0, 0)
    given = {name: parameter.checked(options.get(name, parameter.default)) for name, parameter in edit.options.items()}
    run: Any = options.get("run", map)
    random = random or RandomStream(0, edit.name, 0, info.name)
    given.pop("bn", None)
    return _edited(x, run, edit=edit, info=info, role="other", random=random, overflows=Overflows(), options=given)


def _edited(
    x: "Array",
    run: "Map",
    *,
    edit: Edit,
    info: TensorInfo,
    role: str,
    random: RandomStream,
    overflows: Overflows,
    options: Mapping[str, Any],
) -> "Array":
    import numpy as np

    tensor = Tensor(info, role, x, run)
    known = {RandomStream: random, Tensor: tensor}
    given = {**options, **{name: known.get(kind, run) for name, kind in edit.takes.items()}}
    if edit.resamples:
        result: Array = edit.function(x, **given)
        return result
    working = np.dtype("f8" if x.dtype == np.float64 else "f4")
    if edit.elementwise:
        return _elementwise(x, run, edit, given, tensor, working, overflows)
    made = np.asarray(edit.function(x.astype(working), **given))
    require_result(made, x.shape)
    rounded, lost = _rounded(x, made, x.dtype, working)
    overflows.note(info.name, lost, x.dtype)
    return rounded


def require_result(made: "Array", shape: tuple[int, ...], dtype: "np.dtype[Any] | None" = None) -> None:
    """Require that what an edit made of a tensor, or of a chunk, are real numbers in a shape, and of a type where one is given.

    Raises:
        WsurgeryError: it is something else; the tensor's name is to stand before the message.
    """
    if not _is_numbers(made, shape, dtype):
        due = f"{dtype or 'numbers'} {shape}"
        raise WsurgeryError(f"was to become {due}, and the edit made {made.dtype} {made.shape} of it")


def _is_numbers(made: "Array", shape: tuple[int, ...], dtype: "np.dtype[Any] | None" = None) -> bool:
    # Said by what they are not: those of ml_dtypes have the kind V.
    known = made.dtype.kind not in "OSUcMm" if dtype is None else made.dtype == dtype
    return known and made.shape == shape


class _Apart(Exception):
    """It was asked for what is one tensor's own."""


class _Together:
    """What an edit gets for several tensors at once, in place of a `Tensor` or a `RandomStream`."""

    def __init__(self, random: RandomStream, tensors: Sequence[tuple[str, int]]) -> None:
        self._random, self._tensors = random, tensors

    def __getattr__(self, name: str) -> Any:
        raise _Apart

    def normal(self, like: "Array") -> "Array":
        """Draw for the elements of each tensor what its own stream gives."""
        return standard_normals([(self._random.of(name), size) for name, size in self._tensors], like.dtype)


def _several(
    x: "Array", tensors: Sequence[tuple[str, int]], *, edit: Edit, random: RandomStream, options: Mapping[str, Any]
) -> "Array | None":
    import numpy as np

    working = np.dtype("f8" if x.dtype == np.float64 else "f4")
    together = _Together(random, tensors)
    given = {**options, **{name: map if kind is Map else together for name, kind in edit.takes.items()}}
    try:
        computed, flagged = _watched(edit.function, x, working, given)
    except Exception:  # whatever another package's code raises: one by one it is known in which tensor
        return None
    if not _is_numbers(computed, x.shape):
        return None
    result, lost = _rounded(x, computed, x.dtype, working, flagged=flagged)
    return None if lost else result


def _elementwise(
    x: "Array",
    run: "Map",
    edit: Edit,
    given: Mapping[str, Any],
    tensor: Tensor,
    working: "np.dtype[Any]",
    overflows: Overflows,
) -> "Array":
    import numpy as np

    flat = x.reshape(-1)
    result = np.empty(flat.size, x.dtype)
    lost: list[int] = []
    drawing = [name for name, kind in edit.takes.items() if kind is RandomStream]

    def fill(chunk: int) -> None:
        part = chunk_slice(chunk)
        own = {name: replace(given[name], chunk=chunk) for name in drawing}
        computed, flagged = _watched(edit.function, flat[part], working, {**given, **own})
        require_result(computed, flat[part].shape)
        result[part], count = _rounded(flat[part], computed, x.dtype, working, flagged=flagged)
        if count:
            lost.append(count)

    # The first chunk goes alone where it may ask for what only the whole tensor tells.
    alone = flat.size <= CHUNK or Tensor in edit.takes.values()
    if alone and flat.size:
        fill(0)
        tensor.settle()
    if flat.size > CHUNK:
        for_each_chunk(run, lambda chunk: fill(chunk) if chunk or not alone else None, flat.size)
    overflows.note(tensor.name, sum(lost), x.dtype)
    return result.reshape(x.shape)


def _watched(
    function: Callable[..., Any], x: "Array", working: "np.dtype[Any]", given: Mapping[str, Any]
) -> "tuple[Array, bool]":
    """Call a function on an array, as wide as it is computed in; say whether the processor noted an overflow, which costs
    nothing to ask.
    """
    import numpy as np

    noted: list[str] = []
    with np.errstate(over="call", invalid="ignore", call=lambda kind, flag: noted.append(kind)):
        return np.asarray(function(x.astype(working), **given)), bool(noted)


def _rounded(
    before: "Array", computed: "Array", dtype: "np.dtype[Any]", working: "np.dtype[Any]", *, flagged: bool = True
) -> "tuple[Array, int]":
    """Round to a type, once; count the values that were finite and no longer are."""
    import numpy as np

    from wsurgery.operations.cast import overflow_count, round_once

    result = round_once(computed, dtype)
    if not flagged and (dtype == working or overflow_count(computed, result) == 0):
        return result, 0
    with np.errstate(invalid="ignore"):
        return result, int((np.isfinite(before) & ~np.isfinite(result)).sum())


def not_negative(compute: "Compute") -> "Compute":
    """Refuse a result that no running variance can be."""

    def checked(x: "Array", run: "Map") -> "Array":
        import numpy as np

        result = compute(x, run)
        with np.errstate(invalid="ignore"):  # of NaN in bfloat16
            negative = (result < 0).any()
        if negative:
            raise WsurgeryError("is a running variance and would become negative: leave it out with --except")
        return result

    return checked
