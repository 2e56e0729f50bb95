"""How two tensors of one shape differ, in one pass over the bytes of both, in float64.

Elements with equal bits (of equal value, where the types differ) are equal, NaN too, and identical bytes are known without
arithmetic. Only real floating-point elements have norms; integers, booleans, complex numbers and elements smaller than a byte
are told equal or not.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np

from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.dtypes import BITS, is_float, numpy_dtype
from wsurgery.cores import workers
from wsurgery.operations.arrays import Array
from wsurgery.operations.random_streams import CHUNK

_AT_ONCE = 1 << 12  # bytes that take less time than handing them to another thread
_TOGETHER = 256  # small tensors


@dataclass(frozen=True)
class Difference:
    """Sums over the elements of A and B. Those of two tensors, or of two chunks of one, add up.

    Attributes:
        elements: how many there are.
        equal_elements: how many have equal bits.
        real_elements: how many were real floating-point numbers, which alone enter the sums below.
        a_squares: ‖A‖². An element that is not finite and has equal bits in both counts as 0, here and in B.
        b_squares: ‖B‖².
        products: ⟨A, B⟩.
        squares: ‖B − A‖²; not finite where A and B differ in a NaN or an infinity.
        largest: max |B − A|.
    """

    elements: int = 0
    equal_elements: int = 0
    real_elements: int = 0
    a_squares: float = 0.0
    b_squares: float = 0.0
    products: float = 0.0
    squares: float = 0.0
    largest: float = 0.0

    def __add__(self, other: "Difference") -> "Difference":
        return Difference(
            self.elements + other.elements,
            self.equal_elements + other.equal_elements,
            self.real_elements + other.real_elements,
            self.a_squares + other.a_squares,
            self.b_squares + other.b_squares,
            self.products + other.products,
            self.squares + other.squares,
            math.nan if math.isnan(self.largest + other.largest) else max(self.largest, other.largest),
        )

    @property
    def identical(self) -> bool:
        """Whether all bits are equal."""
        return self.equal_elements == self.elements

    @property
    def equal(self) -> float:
        """Share of elements with equal bits; 1 without any element."""
        return self.equal_elements / self.elements if self.elements else 1.0

    @property
    def relative_l2(self) -> float | None:
        """‖B − A‖ / ‖A‖; None without real elements, where A is 0 and B is not, or where it is not finite."""
        if self.identical:
            return 0.0
        if not self.real_elements or not math.isfinite(self.a_squares):
            return None
        if not self.squares:  # zeros of different sign
            return 0.0
        return _finite(math.sqrt(self.squares / self.a_squares)) if self.a_squares else None

    @property
    def cosine(self) -> float | None:
        """⟨A, B⟩ / (‖A‖ ‖B‖); None without real elements, where one is 0, or where it is not finite."""
        if self.identical:
            return 1.0
        norms = math.sqrt(self.a_squares) * math.sqrt(self.b_squares)
        if not norms or not math.isfinite(norms):
            return None
        return max(-1.0, min(1.0, self.products / norms))

    @property
    def max_difference(self) -> float | None:
        """max |B − A|; None without real elements, or where it is not finite."""
        return 0.0 if self.identical else _finite(self.largest) if self.real_elements else None


def differences(
    a: Checkpoint, b: Checkpoint, names: Iterable[str], *, threads: int | None = None
) -> dict[str, Difference]:
    """Compare tensors that stand in both and are `comparable`.

    A chunk of each is in memory for every thread, whatever the tensors' sizes. The result does not depend on `threads`.

    Args:
        a: the one that changed.
        b: what it changed to.
        names: the tensors, in the order of the one that is a stream.
        threads: default all cores.

    Raises:
        WsurgeryError: an input ends early.
    """
    threads = workers(threads)
    found: dict[str, Difference] = {}
    pending: deque[tuple[str, Future[Difference]]] = deque()

    def collect(allowed: int) -> None:
        while len(pending) > allowed:
            name, future = pending.popleft()
            found[name] += future.result()

    def kind(name: str) -> tuple[str, str, int, str]:
        tensor, other = a.tensors[name], b.tensors[name]
        together = tensor.nbytes <= _AT_ONCE and tensor.dtype == other.dtype
        return tensor.dtype, other.dtype, tensor.nbytes, "" if together else name

    with ThreadPoolExecutor(threads) as pool:
        for (dtype, other, size, large), alike in groupby(names, kind):
            if not large:
                while batch := list(islice(alike, _TOGETHER)):
                    pairs = [(a.read(a.tensors[name]), b.read(b.tensors[name])) for name in batch]
                    found.update(zip(batch, _together(pairs, dtype, size), strict=True))
                continue
            found[large] = Difference()
            for x, y in zip(_chunks(a, a.tensors[large]), _chunks(b, b.tensors[large]), strict=True):
                work = (x, y, dtype) if dtype == other else (_widened(x, dtype), _widened(y, other), "F64")
                pending.append((large, pool.submit(difference, *work)))
                collect(threads)
        collect(0)
    return found


def comparable(a: TensorInfo, b: TensorInfo) -> bool:
    """Whether elements of two tensors can be compared: they are of one shape and one type, or both real numbers."""
    if a.shape != b.shape:
        return False
    return a.dtype == b.dtype or all(is_float(dtype) and BITS[dtype] >= 8 for dtype in (a.dtype, b.dtype))


def difference(a: Any, b: Any, dtype: str) -> Difference:
    """Compare the bytes of whole elements of `dtype`, equally many in `a` and `b`."""
    elements = len(a) * 8 // BITS[dtype]
    same = None if a == b else _equal_bits(a, b, BITS[dtype])
    equal = elements if same is None else int(np.count_nonzero(same))
    if not is_float(dtype) or BITS[dtype] < 8:
        return Difference(elements, equal)
    with np.errstate(over="ignore", invalid="ignore"):  # a signalling NaN, or squares beyond float64
        x = np.frombuffer(a, numpy_dtype(dtype)).astype(np.float64)
        squares = _dot(x, x)
        if same is None:  # the norm is for the whole, of which another part may differ
            if not math.isfinite(squares):
                x[~np.isfinite(x)] = 0
                squares = _dot(x, x)
            return Difference(elements, equal, elements, squares, squares, squares)
        y = np.frombuffer(b, numpy_dtype(dtype)).astype(np.float64)
        if not math.isfinite(squares):
            alike = same & ~np.isfinite(x)
            x[alike] = y[alike] = 0
            squares = _dot(x, x)
        products, a_squares, b_squares = _dot(x, y), squares, _dot(y, y)
        delta = np.subtract(y, x, out=y)
        squares, largest = _dot(delta, delta), float(np.abs(delta, out=delta).max())
    return Difference(elements, equal, elements, a_squares, b_squares, products, squares, largest)


def _widened(x: Any, dtype: str) -> bytes:
    with np.errstate(invalid="ignore"):
        wide = np.frombuffer(x, numpy_dtype(dtype)).astype(np.float64)
    wide[np.isnan(wide)] = np.nan  # each type has its own
    wide += 0.0  # and only some a minus before it
    return wide.tobytes()


def _together(pairs: Sequence[tuple[Any, Any]], dtype: str, size: int) -> list[Difference]:
    """Compare pairs of small tensors of one dtype and of `size` bytes: what `difference` says of each."""
    if not size or not is_float(dtype) or BITS[dtype] < 8:
        return [difference(x, y, dtype) for x, y in pairs]
    a, b = (b"".join(side) for side in zip(*pairs, strict=True))
    rows = len(pairs), size * 8 // BITS[dtype]
    with np.errstate(over="ignore", invalid="ignore"):
        x, y = (np.frombuffer(side, numpy_dtype(dtype)).reshape(rows).astype(np.float64) for side in (a, b))
        finite = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
        equal = np.count_nonzero(_equal_bits(a, b, BITS[dtype]).reshape(rows), axis=1)
        sums = [np.einsum("ij,ij->i", *factors) for factors in ((x, x), (y, y), (x, y))]
        delta = np.subtract(y, x, out=y)
        sums += [np.einsum("ij,ij->i", delta, delta), np.abs(delta, out=delta).max(axis=1)]
    found = []
    for i, (sound, same, *measured) in enumerate(zip(*(each.tolist() for each in (finite, equal, *sums)), strict=True)):
        found.append(Difference(rows[1], same, rows[1], *measured) if sound else difference(*pairs[i], dtype))
    return found


def _chunks(checkpoint: Checkpoint, tensor: TensorInfo) -> Iterator[bytearray]:
    """Cut a tensor's bytes at whole elements, whatever pieces they are read in."""
    size, chunk = CHUNK * BITS[tensor.dtype] // 8, bytearray()
    for piece in checkpoint.pieces(tensor):
        while len(chunk) + len(piece) >= size:
            taken = size - len(chunk)
            chunk += piece[:taken]
            yield chunk
            piece, chunk = piece[taken:], bytearray()
        chunk += piece
    if chunk:
        yield chunk


def _equal_bits(a: Any, b: Any, bits: int) -> Array:
    if bits % 8:
        x, y = (np.unpackbits(np.frombuffer(side, np.uint8), bitorder="little") for side in (a, b))
        equal: Array = (x == y).reshape(-1, bits).all(axis=1)
        return equal
    unsigned = np.dtype(f"u{bits // 8}")
    same: Array = np.frombuffer(a, unsigned) == np.frombuffer(b, unsigned)
    return same


def _dot(x: Array, y: Array) -> float:
    # Not np.dot: the result of a threaded BLAS depends on the number of its threads.
    return float(np.einsum("i,i->", x, y))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
