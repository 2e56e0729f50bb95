"""Merging of fine-tuned checkpoints, in float64 and rounded once.

What a fine-tuned checkpoint adds to the one that it began from, the base, is its task vector (Ilharco et al. 2023, Editing models
with task arithmetic, arXiv 2212.04089). `task` adds them up; `ties`, `dare` and `breadcrumbs` thin them out before; `stock`
takes from the angle between them how far to go from the base; `slerp` needs no base.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock

import numpy as np

from wsurgery.anatomy import Selection
from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.dtypes import is_float, numpy_dtype
from wsurgery.checkpoint.spool import spooled
from wsurgery.cores import cores
from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.average import checked, matched, weighted_sum_edits
from wsurgery.operations.cast import overflow_count, round_once
from wsurgery.operations.overflows import Overflows
from wsurgery.operations.random_streams import CHUNK, RandomStream, chunks, for_each_chunk
from wsurgery.operations.ranks import magnitude_keys, of_ranks
from wsurgery.operations.tensor_edit import Result, TensorEdit, copy

# What each method takes beside weights, with its default.
SETTINGS: Mapping[str, Mapping[str, float]] = {
    "task": {"lambda_": 0.4},
    "ties": {"lambda_": 1.0, "density": 0.2},
    "dare": {"lambda_": 1.0, "drop": 0.9},
    "breadcrumbs": {"lambda_": 0.4, "beta": 0.85, "gamma": 0.993},
    "slerp": {},
    "stock": {},
}
_NOT_FINITE = "holds NaN or infinity, which --method task alone can merge: leave it out with --except"
# Keys between which magnitudes stay: none, and the largest number.
_NONE = (1, 0)
_LARGEST = int(magnitude_keys(np.array(np.inf)))
_PARALLEL = 1e-6  # radians: below, an arc and its chord are the same in float64's last digits

# Elements in float64 at a time, so that a block of each checkpoint fits in the cache. Of `dare`, part of the result.
_BLOCK = 1 << 15

# Gets the number of a block, and that block of each checkpoint, (m,) float64, the base last; gives the merged block.
Merge = Callable[[int, Sequence[Array]], Array]


def merge_edits(
    sources: Sequence[Checkpoint],
    base: Checkpoint | None,
    *,
    method: str,
    weights: Sequence[float] | None,
    settings: Mapping[str, float],
    selection: Selection,
    random: RandomStream,
) -> Result:
    """Merge the selected floating-point tensors of checkpoints; everything else, integers too, comes from the first.

    Args:
        sources: the first may be a stream, the others must be seekable.
        base: what they began from; None for `slerp`.
        method: a key of `SETTINGS`.
        weights: one a source. Default: 1, for `slerp` a half.
        settings: the method's, all of them.
        selection: of the first's tensors.
        random: of `dare`.

    Raises:
        UsageError: as many checkpoints or weights, or such ones, mean nothing to the method.
        WsurgeryError: a selected tensor is not in every checkpoint, or not with the same shape. When it is computed: one is
            not finite, or a running variance would become negative.
    """
    weights = _weights(method, len(sources), weights)
    if base is None:
        given = list(sources)
    elif method == "task":
        scaled = [settings["lambda_"] * weight for weight in weights]
        return weighted_sum_edits([*sources, base], [*scaled, 1 - math.fsum(scaled)], selection=selection)
    else:
        given = [*sources, base]
    if method == "ties":
        given[0] = spooled(given[0])  # it is read three times
    (first, *others), chosen, history, says = matched(given, selection)
    merged = [each for each in first.tensors.values() if each.name in chosen and is_float(each.dtype)]
    overflows = Overflows()
    scan = _Once(lambda: _trimmings([first, *others], merged, settings["density"]))

    def prepare(xs: Sequence[Array], name: str, run: Map) -> Merge:
        if method == "slerp":
            return partial(_linear, coefficients=_slerp(_gram(xs, run), weights[1]))
        if method == "stock":
            return partial(_linear, coefficients=_stock(_gram(xs, run, less_last=True)))
        scale = settings["lambda_"]
        if method == "ties":
            return partial(_ties, weights=weights, scale=scale, bounds=scan())
        if method == "dare":
            thin: Callable[..., Array] = partial(_dropped, rate=settings["drop"], random=random.of(name))
        else:
            thin = partial(_within, bounds=_bounds(xs, settings["beta"], settings["gamma"], run))
        return partial(_sum, weights=weights, scale=scale, thin=thin)

    def combine(x: Array, run: Map, *, tensor: TensorInfo) -> Array:
        xs = [x, *(other.read_array(tensor.name) for other in others)]
        return _merged(xs, prepare(xs, tensor.name, run), tensor, run, overflows)

    names = {tensor.name for tensor in merged}
    edits = [
        checked(TensorEdit(tensor, first, tensor, partial(combine, tensor=tensor)))
        if tensor.name in names
        else copy(tensor, first)
        for tensor in first.tensors.values()
    ]
    return Result(edits, history, says=says, warns=overflows.warnings)


def _weights(method: str, count: int, weights: Sequence[float] | None) -> Sequence[float]:
    least, most = {"slerp": (2, 2), "stock": (2, math.inf)}.get(method, (1, math.inf))
    if not least <= count <= most:
        raise UsageError(
            f"--method {method} is of {'' if most == least else 'at least '}{least} checkpoints: {count} given"
        )
    if weights is None:
        return [1 / 2, 1 / 2] if method == "slerp" else [1.0] * count
    if method == "stock":
        raise UsageError("--weights is not for --method stock, which finds them: leave it out")
    if len(weights) != count:
        raise UsageError(f"{count} checkpoints and {len(weights)} weights: give each checkpoint one")
    if method == "slerp" and not math.isclose(math.fsum(weights), 1, abs_tol=1e-6):
        raise UsageError(f"the weights sum to {math.fsum(weights):.9g}: make them sum to 1")
    if method == "ties" and min(weights) <= 0:
        raise UsageError("--weights: above 0 with --method ties, which takes their mean")
    return weights


class _Once:
    """A function that is called when its result is needed first, by whichever thread."""

    def __init__(self, function: Callable[[], Sequence[tuple[int, int]]]) -> None:
        self._function, self._lock = function, Lock()
        self._result: Sequence[tuple[int, int]] | None = None

    def __call__(self) -> Sequence[tuple[int, int]]:
        with self._lock:
            if self._result is None:
                self._result = self._function()
            return self._result


def _merged(xs: Sequence[Array], merge: Merge, tensor: TensorInfo, run: Map, overflows: Overflows) -> Array:
    flat = [x.reshape(-1) for x in xs]
    result = np.empty(flat[0].size, numpy_dtype(tensor.dtype))
    lost = []

    def fill(chunk: int) -> None:
        for block, parts in _blocks(flat, chunk):
            if not all(np.isfinite(part).all() for part in parts):
                raise WsurgeryError(_NOT_FINITE)
            with np.errstate(over="ignore", invalid="ignore"):
                values = merge(block, parts)
            rounded = round_once(values, result.dtype)
            result[block * _BLOCK :][: rounded.size] = rounded
            lost.append(overflow_count(values, rounded))

    for_each_chunk(run, fill, result.size)
    overflows.note(tensor.name, sum(lost), result.dtype)
    return result.reshape(xs[0].shape)


def _blocks(flat: Sequence[Array], chunk: int) -> Iterator[tuple[int, list[Array]]]:
    """Yield the blocks of a chunk: the number of each, and the elements of each array."""
    for block in range(chunk * CHUNK // _BLOCK, -(-min((chunk + 1) * CHUNK, flat[0].size) // _BLOCK)):
        part = slice(block * _BLOCK, (block + 1) * _BLOCK)
        with np.errstate(invalid="ignore"):  # a signalling NaN
            yield block, [x[part].astype(np.float64) for x in flat]


def _linear(block: int, parts: Sequence[Array], *, coefficients: Sequence[float]) -> Array:
    total = coefficients[0] * parts[0]
    for coefficient, x in zip(coefficients[1:], parts[1:], strict=True):
        total += coefficient * x
    return total


def _sum(
    block: int,
    parts: Sequence[Array],
    *,
    weights: Sequence[float],
    scale: float,
    thin: Callable[[int, int, Array], Array],
) -> Array:
    """Add up thinned task vectors: `thin` gets the number of each, and the block's."""
    *xs, base = parts
    total = np.zeros_like(base)
    for i, (x, weight) in enumerate(zip(xs, weights, strict=True)):
        if weight:
            total += weight * thin(i, block, x - base)
    return base + scale * total


def _dropped(i: int, block: int, vector: Array, *, rate: float, random: RandomStream) -> Array:
    """DARE: drop each element with probability `rate`, and rescale the others (Yu et al. 2024, arXiv 2311.03099)."""
    drawn = random.generator(block, f"task vector {i}").random(vector.size, np.float32)
    return np.where(drawn >= rate, vector / (1 - rate), 0)


def _within(i: int, block: int, vector: Array, *, bounds: Sequence[tuple[int, int]]) -> Array:
    """Keep the elements whose magnitudes' keys are between two, which count."""
    keys = magnitude_keys(vector)
    return np.where((keys >= bounds[i][0]) & (keys <= bounds[i][1]), vector, 0)


def _bounds(xs: Sequence[Array], beta: float, gamma: float, run: Map) -> list[tuple[int, int]]:
    """Model breadcrumbs: which magnitudes stay (Davari and Belilovsky 2024, arXiv 2312.06795).

    In each task vector, and each tensor of n elements by itself, those of the ranks from βn to γn, rounded; small ones and
    outliers go. Those tied with the outermost stay.
    """
    *flat, base = (x.reshape(-1) for x in xs)
    low, high = round(beta * base.size), round(gamma * base.size)
    if low >= high:
        return [_NONE] * len(flat)
    found = [of_ranks([low, high - 1], partial(_visit, x, base, run)) for x in flat]
    return [(least.key, most.key) for least, most in found]


def _ties(
    block: int, parts: Sequence[Array], *, weights: Sequence[float], scale: float, bounds: Sequence[tuple[int, int]]
) -> Array:
    """TIES: trim, elect the sign, and take the mean of what agrees with it (Yadav et al. 2023, arXiv 2306.01708).

    The elected sign is that of the sum of the trimmed task vectors, each times its weight; the mean is over those with this
    sign, weighted.
    """
    *xs, base = parts
    trimmed = [_within(i, block, x - base, bounds=bounds) for i, x in enumerate(xs)]
    elected = np.sign(sum(weight * vector for weight, vector in zip(weights, trimmed, strict=True)))
    total, share = np.zeros_like(base), np.zeros_like(base)
    for weight, vector in zip(weights, trimmed, strict=True):
        agrees = (np.sign(vector) == elected) & (elected != 0)
        total += np.where(agrees, weight * vector, 0)
        share += np.where(agrees, weight, 0)
    return base + scale * np.divide(total, share, out=total, where=share > 0)


def _trimmings(
    checkpoints: Sequence[Checkpoint],
    tensors: Sequence[TensorInfo],
    density: float,
) -> list[tuple[int, int]]:
    """TIES: which magnitudes stay in each task vector: the largest, the share `density` of all its n elements, rounded.

    Those tied with the least stay. The last checkpoint is the base.
    """
    *xs, base = checkpoints
    count = sum(tensor.elements for tensor in tensors)
    kept = round(density * count)
    if not kept:
        return [_NONE] * len(xs)
    with ThreadPoolExecutor(cores()) as pool:

        def visit(source: Checkpoint, look: Callable[[Array], None]) -> None:
            for tensor in tensors:
                x, less = (each.read_array(tensor.name).reshape(-1) for each in (source, base))
                _visit(x, less, pool.map, look)

        return [(of_ranks([count - kept], partial(visit, source))[0].key, _LARGEST) for source in xs]


def _visit(x: Array, base: Array, run: Map, look: Callable[[Array], None]) -> None:
    """Show a task vector's magnitudes, chunk by chunk."""

    def work(chunk: int) -> None:
        for _, (part, less) in _blocks([x, base], chunk):
            with np.errstate(over="ignore", invalid="ignore"):
                look(magnitude_keys(part - less))

    for_each_chunk(run, work, x.size)


def _gram(xs: Sequence[Array], run: Map, *, less_last: bool = False) -> Array:
    """Return the inner products of tensors, or of what they have beyond the last, (n, n), summed in the order of chunks.

    Raises:
        WsurgeryError: one is not finite.
    """
    flat, n = [x.reshape(-1) for x in xs], len(xs) - less_last

    def part(chunk: int) -> Array:
        total = np.zeros((n, n))
        for _, parts in _blocks(flat, chunk):
            with np.errstate(over="ignore", invalid="ignore"):
                vectors = [x - parts[-1] for x in parts[:-1]] if less_last else parts
                # Not a matrix product, whose last digits depend on the number of threads.
                total += [[np.add.reduce(u * v) for v in vectors] for u in vectors]
        return total

    products: Iterable[Array] = run(part, chunks(flat[0].size))
    total = sum(products, start=np.zeros((n, n)))
    if not np.isfinite(total).all():
        raise WsurgeryError(_NOT_FINITE)
    return total


def _slerp(gram: Array, t: float) -> tuple[float, float]:
    """Say how much of each of two tensors is on the arc between them, at `t` of its angle (Shoemake 1985, SIGGRAPH).

    The directions are interpolated on the sphere, and the norms linearly. Where there is no arc, because a norm is 0 or the
    two point in the same direction or in opposite ones, the tensors are interpolated linearly.
    """
    a, b = math.sqrt(gram[0, 0]), math.sqrt(gram[1, 1])
    angle = math.acos(min(1.0, max(-1.0, gram[0, 1] / a / b))) if a and b else 0.0
    if not _PARALLEL < angle < math.pi - _PARALLEL:
        return 1 - t, t
    norm = ((1 - t) * a + t * b) / math.sin(angle)
    return norm * math.sin((1 - t) * angle) / a, norm * math.sin(t * angle) / b


def _stock(gram: Array) -> list[float]:
    """Model stock: how much of each checkpoint, and of the base (Jang, Yun and Han 2024, arXiv 2403.19522, section 4.2).

    The mean of n checkpoints counts t = n cos θ / (1 + (n - 1) cos θ), the base 1 - t; θ is the angle between task vectors,
    its cosine the mean over all pairs. Where they point apart, so that the cosine is negative, the base stays.
    """
    n = len(gram)
    norms = np.sqrt(np.diag(gram))
    pairs = [(i, j) for i in range(n) for j in range(i)]
    cosine = math.fsum(gram[i, j] / norms[i] / norms[j] for i, j in pairs if norms[i] and norms[j]) / len(pairs)
    cosine = min(1.0, max(0.0, cosine))
    t = n * cosine / (1 + (n - 1) * cosine)
    return [*([t / n] * n), 1 - t]
