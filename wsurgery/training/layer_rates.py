"""Learning rates that differ from block to block: by name, and by depth."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from wsurgery.anatomy.blocks import HEAD, NECK, UNPLACED, find_block, place
from wsurgery.errors import UsageError, printable


def lr_scales(
    model: nn.Module,
    *,
    scale: Sequence[tuple[str, float]],
    decay: float | None,
    blocks: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, float]:
    """Return the factor of the learning rate for each tensor of a network, by name.

    Args:
        model: the network.
        scale: pairs of a block, or a glob of tensor names, and a factor; of several for a tensor the last counts.
        decay: the head's factor is 1, that of each block below `decay` times that of the one above (BEiT, Bao et al. 2022).
            What stands between the blocks and the head goes with the last block, as in timm, and what no block holds with
            the head.
        blocks: a user's own block map.

    Raises:
        UsageError: no such block or tensor; the message lists the blocks.
    """
    shapes = {name: tuple(x.shape) for name, x in (*model.named_parameters(), *model.named_buffers())}
    placed = place(shapes, blocks)
    factors = dict.fromkeys(placed, 1.0)
    if decay is not None:
        by_block = _by_depth(list(dict.fromkeys(placed.values())), decay)
        factors = {name: by_block[block] for name, block in placed.items()}
    named: dict[str, float] = {}
    for word, factor in scale:
        if any(character in word for character in "*?["):
            matched = [name for name in placed if fnmatchcase(name, word)]
            if not matched:
                there = ", ".join(dict.fromkeys(placed.values()))
                raise UsageError(
                    f"--lr-scale {printable(word)} matches no tensor; the blocks are {printable(there, 1000)}"
                )
        else:
            try:
                block = find_block(word, placed)
            except UsageError as error:
                raise UsageError(f"--lr-scale: {error}") from None
            matched = [name for name, own in placed.items() if own == block]
        named |= dict.fromkeys(matched, factor)
    return {name: factor * named.get(name, 1.0) for name, factor in factors.items()}


def _by_depth(blocks: Sequence[str], decay: float) -> dict[str, float]:
    """Return the factor of each block; they are given in the order in which data meets them."""
    trunk = [block for block in blocks if block not in (NECK, HEAD, UNPLACED)]
    last = int(HEAD in blocks)  # its exponent: without a head, as a user's map may be, it is the top
    by_depth = {block: decay**exponent for exponent, block in enumerate(reversed(trunk), last)}
    return {HEAD: 1.0, NECK: decay**last, UNPLACED: 1.0, **by_depth}
