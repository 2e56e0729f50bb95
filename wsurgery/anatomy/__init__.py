"""Which tensor is what: its block, its role, and the selection of a part. From names, shapes and dtypes alone."""

from wsurgery.anatomy.blocks import (
    HEAD,
    MAX_BLOCK_MAP,
    UNPLACED,
    block_map,
    find_block,
    first_convolution,
    parse_block_map,
)
from wsurgery.anatomy.roles import role_map
from wsurgery.anatomy.selection import Selection, globs_for

__all__ = [
    "HEAD",
    "MAX_BLOCK_MAP",
    "UNPLACED",
    "Selection",
    "block_map",
    "find_block",
    "first_convolution",
    "globs_for",
    "parse_block_map",
    "role_map",
]
