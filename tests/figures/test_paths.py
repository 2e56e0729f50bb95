import numpy as np

from wsurgery.figures.paths import draw_path


def test_both_panels_have_the_points_and_the_line_between_the_ends() -> None:
    points = [
        {"t": t, "loss": loss, "macro_auc": auc} for t, loss, auc in ((0, 0.2, 0.9), (0.5, 0.7, None), (1, 0.3, 0.8))
    ]
    figure = draw_path({"points": points, "n": 1234}, title="A: a, B: b")
    for axes, values in zip(figure.axes, ([0.2, 0.7, 0.3], [0.9, np.nan, 0.8]), strict=True):
        between, path = (line.get_xydata() for line in axes.lines)
        np.testing.assert_allclose(between, [[0, values[0]], [1, values[-1]]])
        np.testing.assert_allclose(path, np.column_stack([[0, 0.5, 1], values]))
    assert figure.get_suptitle() == "A: a, B: b"
    assert "n 1,234 images" in figure.axes[1].get_xlabel()
    figure.canvas.draw()
