"""Fresh random weights from role and shape alone, as timm initialises its ResNets."""

import math

import numpy as np

from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.batch_norm import batch_norm_identity
from wsurgery.operations.random_streams import RandomStream, chunk_slice, for_each_chunk

EMBEDDING_STD = 0.02
LAYER_SCALE = 1e-5  # as in timm's vision transformers (Touvron et al. 2021)


def random_init(x: Array, *, role: str, fan_in: int, random: RandomStream, run: Map = map) -> Array:
    """Replace a tensor by fresh random values.

    Convolutions are He-normal over fan_out (each group's for depthwise ones); linear layers and biases are uniform in
    ±1/√fan_in, torch's default, a bias without a weight zero; norms are the identity; layer scales are 1e-5; embeddings and
    other tables are Gaussian with standard deviation 0.02; other vectors, a gain or temperature of (n, 1, 1) too, are ones, and
    the gain of a skipped branch 0; integers are kept, but for batch norm's counter.

    Args:
        x: the tensor that is replaced, for its shape and dtype (and, for batch norm, the part it plays).
        role: as `anatomy.role_map` gives it.
        fan_in: inputs of one output: of the tensor itself for weights, of the weight beside it for biases, or 0.
        random: where the numbers come from; its tensor name tells the part of a norm.
        run: `map` over chunks.
    """
    part = random.tensor.rpartition(".")[2]
    if role == "batch_norm":
        return batch_norm_identity(x, part=part)
    if role == "integer":
        return x
    if role == "norm" or (role == "other" and x.size == max(x.shape, default=1)):
        return np.full(x.shape, 0 if part in ("bias", "beta", "skipinit_gain") else 1, x.dtype)
    if role == "layer_scale":
        return np.full(x.shape, LAYER_SCALE, x.dtype)
    if role == "bias" and not fan_in:
        return np.zeros(x.shape, x.dtype)
    if role in ("linear", "bias"):
        return _fill(x, lambda rng, n: rng.uniform(-1, 1, n) / math.sqrt(max(fan_in, 1)), random, run)
    std = EMBEDDING_STD
    if role in ("conv", "depthwise"):
        fan_out = math.prod(x.shape[2:]) * (1 if role == "depthwise" else x.shape[0])
        std = math.sqrt(2 / max(fan_out, 1))
    return _fill(x, lambda rng, n: rng.standard_normal(n, dtype=np.float32) * np.float32(std), random, run)


def _fill(x: Array, draw, random: RandomStream, run: Map) -> Array:  # type: ignore[no-untyped-def]
    result = np.empty(x.size, x.dtype)

    def fill(chunk: int) -> None:
        part = result[chunk_slice(chunk)]
        part[...] = draw(random.generator(chunk), part.size)

    for_each_chunk(run, fill, x.size)
    return result.reshape(x.shape)
