"""Random numbers that depend on what is drawn for, never on who draws or when.

Every tensor has its own stream, cut in chunks with a generator each, so that the result does not depend on the number of
threads, the order of tensors, sharding, or pipe versus file.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from wsurgery.operations.arrays import Array

CHUNK = 1 << 18  # elements; part of what defines the result


@dataclass(frozen=True)
class RandomStream:
    """The stream of one tensor in one operation.

    Attributes:
        seed: the user's seed.
        operation: name of the operation.
        occurrence: how often the operation already stands in the file's history.
        tensor: the tensor's name.
        chunk: the part of the tensor that is drawn for.
    """

    seed: int
    operation: str
    occurrence: int
    tensor: str
    chunk: int = 0

    def of(self, tensor: str) -> "RandomStream":
        """Return the stream of another tensor in the same operation."""
        return RandomStream(self.seed, self.operation, self.occurrence, tensor)

    def generator(self, chunk: int | None = None, purpose: str = "values") -> "np.random.Generator":
        """Return the generator of a chunk, its own by default; the same arguments give the same numbers on every machine."""
        import numpy as np

        chunk = self.chunk if chunk is None else chunk
        key = json.dumps([self.seed, self.operation, self.occurrence, self.tensor, purpose, chunk])
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return np.random.Generator(np.random.SFC64(np.frombuffer(digest, "<u4")))  # an int would be cut in just these

    def standard_normal(self, chunk: int, *, out: "Array") -> None:
        """Fill a one-dimensional array, float32 or float64, with the chunk's iid standard normal numbers."""
        from wsurgery.operations.gaussian import float32_normal

        if out.dtype == "float32":
            float32_normal(self.generator(chunk), out)
        else:
            self.generator(chunk).standard_normal(out=out)

    def normal(self, like: "Array") -> "Array":
        """Draw iid standard normal numbers in the shape and dtype, float32 or float64, of a chunk."""
        import numpy as np

        drawn = np.empty(like.size, like.dtype)
        self.standard_normal(self.chunk, out=drawn)
        return drawn.reshape(like.shape)


def standard_normals(generators: "Sequence[tuple[np.random.Generator, int]]", dtype: "np.dtype[Any]") -> "Array":
    """Draw iid standard normal numbers, float32 or float64, from several generators: as many from each as stand with it.

    They are those of `RandomStream.standard_normal`, end to end.
    """
    import numpy as np

    from wsurgery.operations.gaussian import float32_normals

    if dtype == "float32":
        return float32_normals(generators)
    return np.concatenate([generator.standard_normal(size) for generator, size in generators])


def chunks(elements: int) -> range:
    """Return the numbers of the chunks that cover `elements`."""
    return range(-(-elements // CHUNK))


def for_each_chunk(run: Callable[..., Iterable[object]], work: Callable[[int], object], elements: int) -> None:
    """Call `work` with the number of each chunk: even ones first.

    Two chunks of float32 make a huge page of a fresh array; were they worked on at once, both threads would clear it.
    """
    numbers = chunks(elements)
    for _ in run(work, [*numbers[::2], *numbers[1::2]]):
        pass


def chunk_slice(chunk: int) -> slice:
    """Return the elements of one chunk."""
    return slice(chunk * CHUNK, (chunk + 1) * CHUNK)
