import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from wsurgery.figures.filters import draw_filters, filter_grid


def test_checkpoints_stand_side_by_side_with_label_and_scale() -> None:
    weight = np.full((4, 3, 3, 3), 0.25)
    figure = draw_filters([("a$b$", weight), ("c", -2 * weight)])
    titles = [axes.get_title() for axes in figure.axes]
    assert "±0.25" in titles[0]
    assert "±0.5" in titles[1]
    for axes, expected in zip(figure.axes, (1.0, 0.0), strict=True):
        (image,) = axes.get_images()
        assert image.get_array()[0, 0, 0] == expected


def test_panels_of_a_row_begin_on_one_line_and_small_patches_are_large_enough_to_read() -> None:
    random = np.random.default_rng(0)
    labelled = [(str(n), random.standard_normal((n, 3, side, side))) for n, side in ((64, 7), (6, 5), (8, 3))]
    figure = draw_filters(labelled)
    FigureCanvasAgg(figure).draw()
    tops = [axes.get_window_extent().y1 for axes in figure.axes]
    np.testing.assert_allclose(tops, tops[0], atol=0.5)
    figure = draw_filters([("vit", random.standard_normal((768, 3, 16, 16)))])
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    dots = axes.get_window_extent().width / figure.dpi * 200  # of a PNG file
    assert dots / filter_grid(random.standard_normal((768, 3, 16, 16))).pixels.shape[1] > 2.5  # for each weight
