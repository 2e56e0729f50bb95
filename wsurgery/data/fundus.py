"""Drawn fundus photographs in five grades, after the lesions that the ICDR scale of diabetic retinopathy counts.

The grade shows in small lesions only. Look-alikes that do not depend on the grade, the style of a patient, labels that
are wrong now and then, and the contrast of the lesions decide how hard it is to learn.
"""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from wsurgery.data.grades import GRADES

Floats = NDArray[np.float64]
Colour = tuple[float, float, float]

GRADE_PRIOR = (0.50, 0.12, 0.20, 0.10, 0.08)
EYE_DIFFERS = 0.16  # probability that an eye is one grade off its patient's
RATER_ERRS = 0.06  # probability that a label is one grade off its image's
EYES = 2
CONTRAST = 0.42  # at 0.6 any network learns the task, at 0.3 one with random initialisation may not

SIZE = 64  # pixels; widths and radii below are in pixels of an image of this size
VESSEL_WIDTHS = (1.0, 0.75, 0.55)  # of a trunk, its branches, and theirs
VESSEL_COLOUR = (0.30, 0.45, 0.35)
NEW_VESSEL_COLOUR = (0.15, 0.60, 0.40)
DISC_COLOUR = (0.25, 0.35, 0.25)


class Spot(NamedTuple):
    """A kind of round spot: it takes away a part of each colour, or adds some light."""

    radius: float
    colour: Colour
    adds_light: bool


PIGMENT = Spot(2.6, (0.30, 0.30, 0.30), adds_light=False)
DRUSEN = Spot(1.6, (0.16, 0.16, 0.10), adds_light=True)
DUST = Spot(0.7, (0.45, 0.45, 0.45), adds_light=False)
MICROANEURYSM = Spot(0.75, (0.35, 0.65, 0.50), adds_light=False)
HAEMORRHAGE = Spot(1.9, (0.45, 0.75, 0.60), adds_light=False)
EXUDATE = Spot(1.0, (0.25, 0.45, 0.10), adds_light=True)

LOOK_ALIKES = (PIGMENT, DRUSEN, DUST)
LOOK_ALIKE_COUNTS = (3.0, 3.0, 4.0)  # means, in every grade
LESIONS = (MICROANEURYSM, HAEMORRHAGE, EXUDATE)
LESION_COUNTS = (  # means for each grade, of the lesions and, last, of new vessels; one more is there where it is not 0
    (0.0, 0.0, 0.0, 0.0),
    (3.0, 0.0, 0.0, 0.0),
    (5.0, 1.2, 1.5, 0.0),
    (8.0, 4.0, 3.0, 0.0),
    (8.0, 3.0, 3.0, 3.0),
)


class Eye(NamedTuple):
    """Where things are in an image of `size` × `size` pixels. All lengths are in pixels."""

    size: int
    scale: float
    radius: float
    centre_y: float
    centre_x: float
    disc_y: float
    disc_x: float
    side: int  # 1: the optic disc is on the right, -1: on the left


def draw_fundus(index: int, *, size: int, seed: int, contrast: float) -> tuple[NDArray[np.uint8], int]:
    """Draw image `index`. It depends on the arguments alone.

    Images 2p and 2p + 1 are the two eyes of patient p: they share a style, and their grade but for `EYE_DIFFERS`.

    Returns:
        The image, uint8 (size, size, 3), and its label, a grade of 0 to 4.
    """
    patient, eye_index = divmod(index, EYES)
    patient_rng, rng = np.random.default_rng([seed, 1, patient]), np.random.default_rng([seed, 2, index])
    patient_grade = int(patient_rng.choice(5, p=GRADE_PRIOR))
    style = patient_rng.uniform(size=6)
    grade = _clip_grade(patient_grade + rng.choice([-1, 0, 1], p=[EYE_DIFFERS / 2, 1 - EYE_DIFFERS, EYE_DIFFERS / 2]))

    eye = _place(rng, size, side=1 if eye_index else -1)
    image = _background(rng, eye, style)
    image *= _absorb(_vessels(rng, eye), VESSEL_COLOUR)
    lesion_counts = [rng.poisson(mean) + (mean > 0) for mean in LESION_COUNTS[grade]]
    look_alike_counts = rng.poisson(LOOK_ALIKE_COUNTS)
    for spot, count in zip(LOOK_ALIKES + LESIONS, [*look_alike_counts, *lesion_counts[:3]], strict=True):
        if count:
            _add_spots(image, rng, eye, spot, count, contrast)
    if lesion_counts[3]:
        image *= _absorb(contrast * _new_vessels(rng, eye, lesion_counts[3]), NEW_VESSEL_COLOUR)
    image = _photograph(rng, image, eye, style)

    if rng.random() < RATER_ERRS:
        grade = _clip_grade(grade + rng.choice([-1, 1]))
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), grade


def _clip_grade(grade: int) -> int:
    return int(np.clip(grade, 0, len(GRADES) - 1))


def _place(rng: Generator, size: int, side: int) -> Eye:
    scale = size / SIZE
    radius = size * (0.46 + 0.03 * rng.uniform(-1, 1))
    centre_y, centre_x = size / 2 + scale * rng.uniform(-1.5, 1.5, 2)
    disc_y = centre_y + scale * rng.uniform(-2, 2)
    return Eye(size, scale, radius, centre_y, centre_x, disc_y, centre_x + side * radius * 0.5, side)


def _background(rng: Generator, eye: Eye, style: Floats) -> Floats:
    """The retina with macula and optic disc, unevenly lit: (size, size, 3)."""
    y, x = np.ogrid[: eye.size, : eye.size]
    from_centre = np.hypot(y - eye.centre_y, x - eye.centre_x) / eye.radius
    light = 1.05 - 0.30 * from_centre**2 + 0.12 * style[5] * (x - eye.centre_x) / eye.radius * rng.choice([-1, 1])
    light *= 1 + 0.20 * gaussian_filter(rng.normal(size=(eye.size, eye.size)), 2 * eye.scale)
    macula_x = eye.centre_x - eye.side * eye.radius * 0.15
    macula = np.exp(-((y - eye.centre_y) ** 2 + (x - macula_x) ** 2) / (2 * (eye.radius * 0.16) ** 2))
    colour = np.array([0.62, 0.27, 0.10]) + np.array([0.15, 0.10, 0.08]) * style[:3]
    in_disc = ((y - eye.disc_y) / (eye.radius * 0.15)) ** 2 + ((x - eye.disc_x) / (eye.radius * 0.13)) ** 2
    retina: Floats = (light * (1 - 0.25 * macula))[..., None] * colour
    return retina + np.exp(-(in_disc**2))[..., None] * DISC_COLOUR


def _vessels(rng: Generator, eye: Eye) -> Floats:
    """The four arcades that leave the optic disc, with their branches: coverage (size, size) in [0, 1]."""
    levels: list[list[Floats]] = [[], [], []]
    for up in (-1, 1):
        for along, reach in ((-eye.side, 1.5), (eye.side, 0.5)):
            angle = np.arctan2(up, along * 0.55)
            curl = -up * along * 0.022 / eye.scale
            _grow(levels, rng, (eye.disc_y, eye.disc_x), angle, eye.radius * reach * 0.75, curl)
    widths = [width * eye.scale for width in VESSEL_WIDTHS]
    drawn = [_splat(points, eye.size, w, 2.2 * w) for points, w in zip(levels, widths, strict=True)]
    return np.maximum(np.maximum(drawn[0], drawn[1]), drawn[2])


def _new_vessels(rng: Generator, eye: Eye, count: int) -> Floats:
    """Fine curly tufts of proliferative disease: coverage (size, size) in [0, 1]."""
    levels: list[list[Floats]] = [[], []]
    for _ in range(count):
        angle, distance = rng.uniform(0, 2 * np.pi), eye.radius * rng.uniform(0.2, 0.7)
        start = eye.centre_y + distance * np.sin(angle), eye.centre_x + distance * np.cos(angle)
        _grow(levels, rng, start, rng.uniform(0, 2 * np.pi), 7 * eye.scale, 0.25 / eye.scale)
    return _splat(levels[0] + levels[1], eye.size, 0.6 * eye.scale, 1.5 * eye.scale)


def _grow(
    levels: list[list[Floats]], rng: Generator, start: tuple[float, float], angle: float, length: float, curl: float
) -> None:
    """Add a wandering vessel to `levels[0]`, two points a pixel, and its branches to the levels after it.

    `curl` is the turn in radians a pixel; branches turn the other way.
    """
    n = max(4, int(2 * length))
    heading = angle + np.cumsum(rng.normal(0, 0.05, n) + curl / 2)
    points = np.empty((n, 2))
    points[:, 0] = start[0] + np.cumsum(np.sin(heading)) / 2
    points[:, 1] = start[1] + np.cumsum(np.cos(heading)) / 2
    levels[0].append(points)
    if len(levels) > 1:
        for turn in (-1, 1):
            fork = rng.integers(n // 3, n)
            branch_angle = heading[fork] + turn * rng.uniform(0.4, 0.8)
            _grow(levels[1:], rng, (points[fork, 0], points[fork, 1]), branch_angle, length * 0.6, -curl)


def _add_spots(image: Floats, rng: Generator, eye: Eye, spot: Spot, count: int, contrast: float) -> None:
    """Put `count` spots at random places of the retina into `image`, in place."""
    angle, distance = rng.uniform(0, 2 * np.pi, count), eye.radius * np.sqrt(rng.uniform(0.02, 0.8, count))
    points = np.stack([eye.centre_y + distance * np.sin(angle), eye.centre_x + distance * np.cos(angle)], axis=1)
    radius = spot.radius * eye.scale
    coverage = contrast * _splat([points], eye.size, radius, 14 * radius**2)
    if spot.adds_light:
        image += coverage[..., None] * spot.colour
    else:
        image *= _absorb(coverage, spot.colour)


def _absorb(coverage: Floats, colour: Colour) -> Floats:
    return 1 - coverage[..., None] * colour


def _splat(lines: list[Floats], size: int, width: float, gain: float) -> Floats:
    """Points (n, 2) as coverage (size, size) in [0, 1): shared among their four pixels, blurred, and saturated."""
    points = np.concatenate(lines)
    points = points[((points > 0) & (points < size - 1)).all(axis=1)]
    pixel = points.astype(np.intp)
    y, x = (points - pixel).T
    corner = pixel[:, 0] * size + pixel[:, 1]
    corners = np.concatenate([corner, corner + 1, corner + size, corner + size + 1])
    shares = np.concatenate([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x])
    image = np.bincount(corners, shares, size * size).reshape(size, size)
    coverage: Floats = -np.expm1(-gain * gaussian_filter(image, width))
    return coverage


def _photograph(rng: Generator, image: Floats, eye: Eye, style: Floats) -> Floats:
    """What the camera makes of it: blur, exposure, the round aperture, and noise."""
    y, x = np.ogrid[: eye.size, : eye.size]
    from_centre = np.hypot(y - eye.centre_y, x - eye.centre_x) / eye.radius
    aperture = 1 / (1 + np.exp((from_centre - 1) * 40))
    blur = eye.scale * 0.25 * (1 + style[3])
    exposed: Floats = gaussian_filter(image, (blur, blur, 0)) * (0.85 + 0.30 * style[4])
    return exposed * aperture[..., None] + 0.02 + rng.normal(0, 0.015, image.shape)
