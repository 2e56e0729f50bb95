import numpy as np

from wsurgery.figures.runs import LayerScore
from wsurgery.figures.similarities import draw_similarities, layer_means


def scores(*values: float | None) -> list[LayerScore]:
    return [LayerScore(f"b{i}", value, 0.05, 0.1, 0.9, None) for i, value in enumerate(values)]


def test_a_layer_that_one_seed_lacks_has_no_mean() -> None:
    assert layer_means([scores(0.5, 0.25), scores(0.75, None)], "value") == {"b0": 0.625}


def test_points_whiskers_and_tracks_are_the_data() -> None:
    axes = draw_similarities({"random": [scores(0.5, 0.25), scores(0.75, 0.5)], "transfer": [scores(0.5, 0.5)]}).axes[0]
    points = [container.lines[0].get_ydata(orig=False) for container in axes.containers]
    np.testing.assert_allclose(points, [[0.625, 0.375], [0.5, 0.5]])
    ends = [sorted(seg[:, 1]) for c in axes.containers for seg in c.lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[0.5, 0.75], [0.25, 0.5], [0.45, 0.55], [0.45, 0.55]])
    tracks = [segment[:, 1] for segment in axes.collections[0].get_segments()]
    np.testing.assert_allclose(tracks, [[0.1, 0.9], [0.1, 0.9]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["b0", "b1"]
