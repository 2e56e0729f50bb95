"""What every edit does, said again with numpy alone: to the byte where nothing is drawn, else as laws."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from soak.checkpoints import FLOATS, SMALLER, TYPES, State, Tensor, blocks_of
from soak.edits import Edit
from soak.laws import LAWS, Law, computed, gaussian, in_float64, near, of_rank, positive, pruned_at_random, shuffled
from soak.selection import IDENTITY, Refused, Undecided, is_batch_norm, selected

CASTS = {"fp64": "F64", "fp32": "F32", "fp16": "F16", "bf16": "BF16", "fp8_e4m3": "F8_E4M3", "fp8_e5m2": "F8_E5M2"}
REAL = (*FLOATS, *SMALLER)
COUNTER = "num_batches_tracked"


@dataclass
class Expected:
    """What an edit has to give; `may_refuse` where a draw decides, or a limit of float64."""

    tensors: dict[str, Tensor | Law]
    metadata: dict[str, str]
    frozen: set[str]
    may_refuse: bool = False


@cache
def _table(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the finite numbers of a type from 0 up, with the one that would come next, and what lies half way between."""
    codes = 1 << 8 * np.dtype(TYPES[dtype]).itemsize - 1
    values = np.arange(codes).astype(f"u{np.dtype(TYPES[dtype]).itemsize}").view(TYPES[dtype]).astype(np.float64)
    values = values[np.isfinite(values)]
    values = np.append(values, 2 * values[-1] - values[-2])
    return values, (values[1:] + values[:-1]) / 2


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """Round to the nearest number of a type, ties to even, out of a table of all its numbers."""
    with np.errstate(all="ignore"):
        if dtype in ("F64", "F32", "F16"):
            return x.astype(TYPES[dtype])
        x = x.astype(np.float64)
        values, halves = _table(dtype)
        place = np.searchsorted(halves, np.abs(x))
        tie = (place < len(halves)) & (np.abs(x) == halves[np.minimum(place, len(halves) - 1)])
        place = np.where(tie & (place % 2 == 1), place + 1, place)
        result = np.copysign(values[np.minimum(place, len(values) - 1)], x).astype(TYPES[dtype])
        beyond = np.isinf(np.array([np.inf], TYPES[dtype]).astype(np.float64))[0]  # the type has an infinity
        return np.where(
            np.isnan(x), np.array(np.nan, TYPES[dtype]),
            np.where(place >= len(values) - 1, np.copysign(np.inf if beyond else np.nan, x).astype(TYPES[dtype]), result),
        ).astype(TYPES[dtype])  # fmt: skip


def whole(tensor: Tensor) -> Tensor:
    """Require elements that can be computed with."""
    if tensor.dtype in SMALLER:
        raise Refused
    return tensor


def expected(state: State, edit: Edit) -> Expected:
    """Say what an edit of a checkpoint gives.

    Raises:
        Refused: it has to be refused.
        Undecided: the model does not know.
    """
    tensors: dict[str, Tensor | Law] = dict(state.tensors)
    result = Expected(tensors, {"format": "pt", **state.metadata}, state.frozen)
    chosen = set(tensors) if edit.name in ("set_metadata", "join", "permute") else set()
    if edit.name in ("drop", "keep", "freeze_spec", "transfuse") and not edit.selectors:
        raise Refused
    chosen = chosen or selected(state, edit)
    MODELS[edit.name](state, edit, chosen, result)
    return result


def _explicit(edit: Edit) -> bool:
    return bool({"only", "role"} & edit.selectors.keys())


def _by_number(state: State, edit: Edit, chosen: set[str]) -> list[str]:
    """Name what a number changes: not running statistics, if nobody chose them."""
    running = ("running_mean", "running_var")
    return [
        name
        for name in state.tensors
        if name in chosen and state.tensors[name].dtype in REAL
        and (_explicit(edit) or not (is_batch_norm(state, name) and name.rpartition(".")[2] in running))
    ]  # fmt: skip


def _scale(state: State, edit: Edit, chosen: set[str], result: Expected) -> None:
    for name in _by_number(state, edit, chosen):
        x = whole(state.tensors[name])
        working = np.float64 if x.dtype == "F64" else np.float32
        with np.errstate(all="ignore"):
            y = rounded(x.array.astype(working) * working(edit.options["by"]), x.dtype)
        if is_batch_norm(state, name) and name.endswith("running_var") and (y.astype(np.float64) < 0).any():
            raise Refused
        result.tensors[name] = computed(y, x.dtype)


def _cast(state: State, edit: Edit, chosen: set[str], result: Expected) -> None:
    dtype = CASTS[edit.options["to"]]
    for name in chosen:
        x = state.tensors[name]
        if x.dtype in REAL and x.dtype != dtype:
            result.tensors[name] = computed(rounded(in_float64(whole(x)), dtype), dtype)


def _keep(state: State, edit: Edit, chosen: set[str], result: Expected) -> None:
    stays = chosen if edit.name == "keep" else state.tensors.keys() - chosen
    if not stays:
        raise Refused
    result.tensors = {name: tensor for name, tensor in result.tensors.items() if name in stays}
    result.frozen &= stays


def _freeze(state: State, edit: Edit, chosen: set[str], result: Expected) -> None:
    result.frozen = chosen


def _rename(state: State, edit: Edit, chosen: set[str], result: Expected) -> None:
    try:
        pattern = re.compile(edit.options["pattern"])
        new = {n: pattern.sub(edit.options["replacement"], n) if n in chosen else n for n in state.tensors}
    except re.error:
        raise Refused from None
    met = any(pattern.search(name) for name in chosen)
    if not met or len(set(new.values())) < len(new) or {"", "__metadata__"} & set(new.values()):
        raise Refused
    result.tensors = {new[name]: tensor for name, tensor in result.tensors.items()}
    result.frozen = {new[name] for name in result.frozen}


def _reset(state: State, edit: Edit, chosen: set[str], result: Expected) -> None:
    found = {name for name in chosen if is_batch_norm(state, name)}
    if not found:
        raise Refused
    for name in found:
        result.tensors[name] = _identity(name, state.tensors[name])


def _identity(name: str, x: Tensor) -> Tensor:
    if x.dtype == "F8_E8M0":
        raise Undecided  # it has no 0
    return x._replace(data=np.full(x.shape, IDENTITY[name.rpartition(".")[2]], TYPES[whole(x).dtype]).tobytes())


def _metadata(state: State, edit: Edit, chosen: set[str], result: Expected) -> None:
    if not edit.options["set_"] and not edit.options["delete"]:
        raise Refused
    for key in edit.options["delete"]:
        if key == "format" or result.metadata.pop(key, None) is None:
            raise Refused
    result.metadata |= {key: value for key, _, value in (entry.partition("=") for entry in edit.options["set_"])}


def _join(state: State, edit: Edit, chosen: set[str], result: Expected) -> None:
    for other in edit.others.values():
        if other.tensors.keys() & result.tensors.keys():
            raise Refused
        result.tensors |= other.tensors


def _require_met(chosen: set[str], other: State) -> None:
    if not chosen & other.tensors.keys():
        raise Undecided  # it is looked for under prefixes


def _transfuse(state: State, edit: Edit, chosen: set[str], result: Expected) -> None:
    (other,) = edit.others.values()
    _require_met(chosen, other)
    beyond = selected(other, edit) - state.tensors.keys()
    if any(not name.endswith(COUNTER) for name in (beyond | (chosen - other.tensors.keys()))):
        raise Refused
    for name in chosen & other.tensors.keys():
        old, new = state.tensors[name], other.tensors[name]
        if old.shape != new.shape or (old.dtype != new.dtype and not {old.dtype, new.dtype} <= {*FLOATS}):
            raise Refused
        same = old.dtype == new.dtype
        result.tensors[name] = new if same else computed(rounded(in_float64(new), old.dtype), old.dtype)


def _require_same(state: State, other: State, chosen: set[str]) -> None:
    _require_met(chosen, other)
    for name in chosen:
        if name not in other.tensors:
            if name.endswith(COUNTER):
                continue
            raise Refused
        a, b = state.tensors[name], other.tensors[name]
        if a.shape != b.shape or (a.dtype in REAL) != (b.dtype in REAL) or (a.dtype in REAL and b.dtype in SMALLER):
            raise Refused


def _average(state: State, edit: Edit, chosen: set[str], result: Expected) -> None:
    given = edit.options.get("weights")
    weights = (
        [float(word) for word in given.split(",")] if given else [1 / (1 + len(edit.others))] * (1 + len(edit.others))
    )
    if edit.name == "lerp":
        weights = [1 - edit.options["t"], edit.options["t"]]
    for other in edit.others.values():
        _require_same(state, other, chosen)
        if any(not name.endswith(COUNTER) for name in selected(other, edit) - state.tensors.keys()):
            raise Refused
    for name in chosen:
        first = state.tensors[name]
        if first.dtype not in REAL:
            continue
        parts = [
            (each.tensors.get(name), w) for each, w in zip([state, *edit.others.values()], weights, strict=True) if w
        ]
        whole(first)
        if any(name not in other.tensors for other in edit.others.values()):
            continue  # a counter of floats
        if len(parts) == 1 and parts[0][1] == 1 and parts[0][0].dtype == first.dtype:
            result.tensors[name] = parts[0][0]
            continue
        total = np.full(first.shape, -0.0)
        with np.errstate(all="ignore"):
            for x, weight in parts:
                total = total + in_float64(x) * weight
        y = rounded(total, first.dtype)
        extrapolates = min(weight for _, weight in parts) < 0
        if extrapolates and name.endswith("running_var") and (y.astype(np.float64) < 0).any():
            raise Refused
        result.tensors[name] = computed(y, first.dtype)


def _layers(state: State, edit: Edit, chosen: set[str], kinds: tuple[str, ...]) -> dict[str, Tensor]:
    """Return what is chosen of a network's layers, or of any floating-point tensors that somebody chose, by name."""
    chosen = {name for name in chosen if state.tensors[name].dtype in REAL}
    if not _explicit(edit):
        if not blocks_of(state):
            raise Undecided
        chosen = {name for name in chosen if name.endswith(kinds)}
    if not chosen:
        raise Refused
    return {name: whole(state.tensors[name]) for name in sorted(chosen)}


def _low_rank(state: State, edit: Edit, chosen: set[str], result: Expected) -> None:
    for name, x in _layers(state, edit, chosen, ("conv1.weight", "fc.weight")).items():
        rank = edit.options["rank"]
        if len(x.shape) < 2 or not x.elements or rank >= min(x.shape[0], x.elements // x.shape[0]):
            continue
        if not np.isfinite(in_float64(x)).all():
            raise Refused
        result.may_refuse |= bool((np.abs(in_float64(x)) > 1e300).any())
        result.tensors[name] = Law(x.dtype, x.shape, of_rank(x, rank))


def _prune(state: State, edit: Edit, chosen: set[str], result: Expected) -> None:
    xs = _layers(state, edit, chosen, ("conv1.weight",))
    if "zeros_of" in edit.options:
        (other,) = edit.others.values()
        _require_same(state, other, {*xs})
        for name, x in xs.items():
            if name not in other.tensors:
                continue
            y = x.array.copy()
            y[in_float64(other.tensors[name]) == 0] = 0
            result.tensors[name] = x._replace(data=y.tobytes())
        return
    groups = [xs] if edit.options["scope"] == "all" else [{name: x} for name, x in xs.items()]
    if edit.options["by"] == "random":
        for name, x in xs.items():
            result.tensors[name] = Law(x.dtype, x.shape, pruned_at_random(x, edit.options["sparsity"], len(groups) > 1))
        return
    for group in groups:
        _least(group, edit.options["sparsity"], result)


def _least(group: dict[str, Tensor], sparsity: float, result: Expected) -> None:
    """Set the least to zero; equal ones by the order of names and places."""
    magnitude = np.concatenate([np.abs(in_float64(x)).reshape(-1) for x in group.values()])
    count = round(sparsity * magnitude.size)
    order = np.argsort(np.where(np.isnan(magnitude), np.inf, magnitude), kind="stable")[:count]
    if np.isnan(magnitude[order]).any() or (np.isnan(magnitude).any() and np.isinf(magnitude[order]).any()):
        raise Undecided  # which NaN goes first
    gone = np.zeros(magnitude.size, bool)
    gone[order] = True
    for name, x in group.items():
        own, gone = gone[: x.elements], gone[x.elements :]
        y = x.array.reshape(-1).copy()
        y[own] = 0
        result.tensors[name] = x._replace(data=y.tobytes())


def _resample(state: State, edit: Edit, chosen: set[str], result: Expected) -> None:
    law, bn = LAWS[edit.name], edit.options["bn"]
    for name in chosen:
        x, own = state.tensors[name], is_batch_norm(state, name)
        if own and bn == "identity":
            result.tensors[name] = _identity(name, x)
        elif x.dtype in REAL and x.elements >= 2 and not (own and bn == "keep"):
            values = in_float64(whole(x))
            wide = bool((np.abs(values[np.isfinite(values)]) > 1e150).any())  # float64 may overflow, or not
            result.may_refuse |= wide
            finite = bool(np.isfinite(values).all())
            if own:
                if not finite:
                    raise Refused
                variance = name.endswith("running_var")
                if variance and not wide and values.mean() <= 0:
                    if values.mean() > -1e-12:
                        raise Undecided
                    raise Refused
                result.tensors[name] = Law(x.dtype, x.shape, positive if variance else gaussian(x, {}))
            else:
                if (
                    not finite
                    and edit.name not in ("shuffle", "sample")
                    and not (edit.name == "spectrum" and values.ndim < 2)
                ):
                    raise Refused
                result.tensors[name] = Law(x.dtype, x.shape, law(x, edit.options))


def _noise(state: State, edit: Edit, chosen: set[str], result: Expected) -> None:
    for name in _by_number(state, edit, chosen):
        x, std = whole(state.tensors[name]), edit.options["std"]
        values = in_float64(x)
        if edit.options.get("relative") and x.elements:
            if not np.isfinite(values).all():
                raise Refused
            if (np.abs(values) > 1e150).any():
                raise Undecided
            std = std * values.std()
        result.may_refuse |= is_batch_norm(state, name) and name.endswith("running_var")
        result.tensors[name] = Law(x.dtype, x.shape, near(x, std))


def _permute(state: State, edit: Edit, chosen: set[str], result: Expected) -> None:
    result.may_refuse = True  # of what it knows no symmetry of
    for name, x in state.tensors.items():
        if x.dtype not in SMALLER:
            result.tensors[name] = Law(x.dtype, x.shape, shuffled(x, {}))


MODELS: dict[str, Callable[[State, Edit, set[str], Expected], None]] = {
    "scale": _scale, "cast": _cast, "keep": _keep, "drop": _keep, "freeze_spec": _freeze, "rename": _rename,
    "reset_bn": _reset, "set_metadata": _metadata, "join": _join, "transfuse": _transfuse, "lerp": _average,
    "average": _average, "prune": _prune, **dict.fromkeys(LAWS, _resample), "add_noise": _noise, "permute": _permute,
    "low_rank": _low_rank,
}  # fmt: skip


def differences(expected: Expected, got: State, edit: Edit) -> list[str]:
    """Say in what a result is not what was expected."""
    found = []
    if (names := _in_order(got.tensors)) != (wanted := _in_order(expected.tensors)):
        return [f"names {names}, not {wanted}"]
    for name, known in expected.tensors.items():
        tensor = got.tensors[name]
        if (tensor.dtype, tensor.shape) != (known.dtype, known.shape):
            found.append(f"{name!r} is {tensor.dtype} {tensor.shape}, not {known.dtype} {known.shape}")
        elif not _holds(known, tensor):
            found.append(f"{name!r}, {tensor.dtype} {tensor.shape}, has wrong numbers")
    if got.metadata != expected.metadata:
        found.append(f"metadata {got.metadata}, not {expected.metadata}")
    if got.frozen != expected.frozen:
        found.append(f"frozen are {sorted(got.frozen)}, not {sorted(expected.frozen)}")
    if not got.log or got.log[-1]["command"] != edit.name.replace("_", "-"):
        found.append(f"the last record is {got.log[-1:]}")
    return found


def _in_order(tensors: Mapping[str, Tensor | Law]) -> list[str]:
    """Name them in the order of their bytes; those without any, at one place, by name."""
    places, place = [], 0
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape)
        places.append((place, size > 0, name))
        place += size
    return [name for *_, name in sorted(places)]


def _holds(known: Tensor | Law, tensor: Tensor) -> bool:
    with np.errstate(all="ignore"):
        return tensor == known if isinstance(known, Tensor) else known.holds(tensor)
