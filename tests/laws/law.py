"""What a law is."""

from typing import NamedTuple


class Law(NamedTuple):
    """What always holds.

    Attributes:
        sentence: says what the test checks, and no more; of 110 characters at most.
        test: as pytest names it, without parameters.
    """

    sentence: str
    test: str
