from collections.abc import Mapping

import numpy as np

from wsurgery.experiments.cca import Comparison
from wsurgery.experiments.runs import LayerScore
from wsurgery.figures.similarities import draw_comparisons, draw_layers, draw_matrix
from wsurgery.similarity.results import LayerSimilarity


def results(metric: str, pairs: list[tuple[str, str]], values: list[float | None]) -> list[LayerSimilarity]:
    counts = {"c_a": 8, "c_b": 8, "d": 4, "p": 99, "images": 9, "groups": 9, "rank_a": 4, "rank_b": 4}
    return [
        LayerSimilarity(
            layer=a, layer_a=a, layer_b=b, metric=metric, value=value, se=0.05, se_images=0.04, se_channels=0.03,
            bias_corrected=value, floor=0.1, ceiling=0.9, normalised=None if value is None else (value - 0.1) / 0.8,
            dead_a=0, dead_b=0, repeats=[], notes=[],
            **counts,
        )
        for (a, b), value in zip(pairs, values, strict=True)
    ]  # fmt: skip


def compared(name: str, by_seed: Mapping[str, list[float | None]]) -> Comparison:
    scores = {
        seed: [LayerScore(f"b{i}", x, 0.01, 0.1, 0.9, None) for i, x in enumerate(values)]
        for seed, values in by_seed.items()
    }
    return Comparison(name, scores)


def test_lines_whiskers_and_bands_are_the_data() -> None:
    layers = [("conv1", "conv1"), ("b_$1", "b_$1")]
    found = results("mean_cca", layers, [0.5, None]) + results("linear_cka", layers, [0.4, 0.3])
    figure = draw_layers(found)
    axes = figure.axes[0]
    lines = [container.lines[0].get_ydata(orig=False) for container in axes.containers]
    np.testing.assert_allclose(lines, [[0.5, np.nan], [0.4, 0.3]])
    np.testing.assert_allclose(sorted(axes.containers[1].lines[2][0].get_segments()[0][:, 1]), [0.35, 0.45])
    dotted = [line.get_ydata(orig=False) for line in axes.lines if line.get_linestyle() == ":"]
    assert {round(float(y), 9) for ys in dotted for y in ys} == {0.1, 0.9}
    assert all(container.lines[0].get_linestyle() == "-" for container in axes.containers)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mean canonical correlation", "linear CKA"]
    assert "n 9 images" in figure.legends[0].get_title().get_text()
    figure.canvas.draw()


def test_the_heat_map_is_the_matrix() -> None:
    pairs = [(a, b) for a in ("conv1", "block1") for b in ("conv1", "block1", "block2")]
    figure = draw_matrix(results("mean_cca", pairs, [0.9, 0.5, 0.1, 0.4, None, 0.2]), title="A: a, B: b")
    assert figure.get_suptitle() == "A: a, B: b"
    axes = figure.axes[0]
    grid = axes.images[0].get_array().filled(np.nan)
    np.testing.assert_allclose(grid, [[1.0, 0.5, 0.0], [0.375, np.nan, 0.125]])  # between the floors and the ceilings
    assert [label.get_text() for label in axes.get_yticklabels()] == ["conv1", "block1"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["conv1", "block1", "block2"]
    figure.canvas.draw()


def test_lines_bands_and_bounds_are_the_data() -> None:
    figure = draw_comparisons(
        {"a": compared("a", {"1": [0.5, 0.25], "2": [0.75, 0.5]}), "b": compared("b", {"": [0.5, None]})}
    )
    axes = figure.axes[0]
    lines = [container.lines[0].get_ydata(orig=False) for container in axes.containers]
    np.testing.assert_allclose(lines[0], [0.625, 0.375])
    np.testing.assert_allclose(lines[1], [0.5])
    (whisker,) = axes.containers[1].lines[2][0].get_segments()
    np.testing.assert_allclose(sorted(whisker[:, 1]), [0.49, 0.51])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert set(band) == {0.5, 0.75, 0.25}
    dotted = [line.get_ydata(orig=False) for line in axes.lines if line.get_linestyle() == ":"]
    assert {round(float(y), 9) for ys in dotted for y in ys} == {0.1, 0.9}
    said = figure.legends[0].get_title().get_text().replace("\n", " ")
    assert all(
        word in said for word in ("n 1 to 2 seeds", "band: smallest to largest seed", "whisker: ±1 standard error")
    )
    figure.canvas.draw()
