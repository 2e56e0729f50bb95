"""Drawn textured shapes in 16 classes, a source task: it takes edges, orientations and opponent colours to tell them."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Floats = NDArray[np.float64]

SHAPES = ("disc", "square", "triangle", "ring")
TEXTURES = ("stripes", "checks", "clouds", "ripples")
CLASSES = tuple(f"{shape}_{texture}" for shape in SHAPES for texture in TEXTURES)


def draw_texture(index: int, *, size: int, seed: int) -> tuple[NDArray[np.uint8], int]:
    """Draw image `index`: one textured shape on a coloured ground. It depends on the arguments alone.

    Returns:
        The image, uint8 (size, size, 3), and its class, an index into `CLASSES`.
    """
    rng = np.random.default_rng([seed, 3, index])
    label = int(rng.integers(len(CLASSES)))
    shape, texture = divmod(label, len(TEXTURES))
    x = np.arange(size)[None] / size - 0.5
    y = x.T
    pattern = _texture(rng, TEXTURES[texture], y, x)
    inside = _shape(rng, SHAPES[shape], y, x)[..., None]
    colour_a, colour_b, ground_colour = rng.uniform(0, 1, (3, 3))
    textured = colour_a + (colour_b - colour_a) * (pattern * 0.5 + 0.5)[..., None]
    clouds = gaussian_filter(rng.normal(size=(size, size)), size / 12) * size / 6
    tint = rng.uniform(-1, 1, 3)
    slope = x * rng.normal() + y * rng.normal()
    ground = ground_colour + 0.15 * clouds[..., None] * tint + 0.2 * slope[..., None]
    image = inside * textured + (1 - inside) * ground + rng.normal(0, 0.02, (size, size, 3))
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), label


def _texture(rng: Generator, texture: str, y: Floats, x: Floats) -> Floats:
    """A pattern of random direction, 5 to 14 periods an image, and phase: (size, size), about in [-1, 1]."""
    angle, frequency = rng.uniform(0, np.pi), 2 * np.pi * rng.uniform(5, 14)
    along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    phase_along, phase_across = rng.uniform(0, 2 * np.pi, 2)
    pattern: Floats
    if texture == "stripes":
        pattern = np.sin(frequency * along + phase_along)
    elif texture == "checks":
        pattern = np.sin(frequency * along + phase_along) * np.sin(frequency * across + phase_across)
    elif texture == "clouds":
        pattern = gaussian_filter(rng.normal(size=(y.size, y.size)), y.size / 40) * y.size / 20
    else:
        pattern = np.sin(1.2 * frequency * np.hypot(along - 0.1, across) + phase_along)
    return pattern


def _shape(rng: Generator, shape: str, y: Floats, x: Floats) -> Floats:
    """A turned shape with a soft edge of about a pixel: (size, size), 1 inside and 0 outside."""
    centre_y, centre_x = rng.uniform(-0.15, 0.15, 2)
    radius, angle = rng.uniform(0.22, 0.34), rng.uniform(0, 2 * np.pi)
    u = (x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)
    v = -(x - centre_x) * np.sin(angle) + (y - centre_y) * np.cos(angle)
    if shape == "disc":
        outside = np.hypot(u, v) - radius
    elif shape == "square":
        outside = np.maximum(abs(u), abs(v)) - radius * 0.85
    elif shape == "triangle":
        outside = np.maximum(-v, abs(u) * 0.866 + v * 0.5) - radius * 0.55
    else:
        outside = abs(np.hypot(u, v) - radius * 0.8) - radius * 0.25
    inside: Floats = 1 / (1 + np.exp(outside * y.size))
    return inside
