"""How image files become squares of 8 bits a channel: what is said of it, and how it is recorded."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from wsurgery.errors import UsageError, printable

Fit = Literal["crop", "pad", "stretch"]
_SQUARES = (
    "the centred square of each image",
    "all of each image, on a black square",
    "all of each image, stretched to a square",
)
FITS: dict[str, str] = dict(zip(get_args(Fit), _SQUARES, strict=True))
WINDOWS = {
    "auto": "of more than 8 bits, as a DICOM file says, or else each image's least value to its greatest",
    "span": "of more than 8 bits and in DICOM, each image's least value to its greatest",
    "full": "of more than 8 bits and in DICOM, the least value that there can be to the greatest",
    "percentiles": "of more than 8 bits and in DICOM, each image's 1st percentile to its 99th",
}


@dataclass(frozen=True)
class Rendering:
    """How image files become squares of 8 bits a channel.

    Attributes:
        fit: `crop`, `pad` or `stretch`.
        window: which values are black and white in images of more than 8 bits a channel, and in DICOM: `auto`, `span`,
            `full`, `percentiles`, or the two values themselves, `LOW:HIGH`.

    Raises:
        UsageError: another one.
    """

    fit: str = "crop"
    window: str = "auto"

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise UsageError(f"fit={printable(self.fit)} is not one of {', '.join(FITS)}")
        if self.window not in WINDOWS and self.limits is None:
            raise UsageError(
                f"window={printable(self.window)} is not one of {', '.join(WINDOWS)}, or two numbers LOW:HIGH"
            )

    @property
    def limits(self) -> tuple[float, float] | None:
        """The values that are black and white where they are named."""
        low, _, high = self.window.partition(":")
        try:
            limits = float(low), float(high)
        except ValueError:
            return None
        return limits if all(map(math.isfinite, limits)) and limits[0] < limits[1] else None

    @property
    def keys(self) -> dict[str, str]:
        """The keys of a specification that say it: those that are not as they are by default."""
        return {key: value for key, value in asdict(self).items() if value != getattr(DEFAULT, key)}

    @property
    def described(self) -> str:
        """It in words."""
        window = WINDOWS.get(self.window, "of more than 8 bits and in DICOM, these values")
        return f"fit={self.fit}: {FITS[self.fit]}; window={self.window}: {window}"


DEFAULT = Rendering()
KEYS = tuple(asdict(DEFAULT))


def split_keys(given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The keys of a specification that say how images are rendered, and the others."""
    ours = {key: value for key, value in given.items() if key in KEYS}
    return ours, {key: value for key, value in given.items() if key not in KEYS}
