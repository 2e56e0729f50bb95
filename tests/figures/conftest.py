"""The fabricated experiment of the room below, to draw."""

from tests.experiments.conftest import make_experiment

__all__ = ["make_experiment"]
