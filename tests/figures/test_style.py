import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from wsurgery.errors import UsageError
from wsurgery.experiments.runs import Run
from wsurgery.figures.curves import draw_curves
from wsurgery.figures.style import PAGE_WIDTH, PALETTE, WIDTH, inline_svg, line_styles, save

RUNS = [Run(Path(arm), arm, "1", {0: 0.5, 10: 0.75}, {}) for arm in ("random", "<b>&_$x$", "_hidden")]
STARTS = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


@pytest.mark.parametrize("suffix", STARTS)
def test_a_figure_has_the_same_bytes_every_time(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{i}{suffix}" for i in range(2)]
    for path in paths:
        save(draw_curves(RUNS), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes().startswith(STARTS[suffix])


def test_files_are_neither_overwritten_nor_of_an_unknown_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("precious")
    with pytest.raises(UsageError, match="--force"):
        save(draw_curves(RUNS), path)
    assert path.read_text() == "precious"
    save(draw_curves(RUNS), path, force=True)
    assert np.asarray(Image.open(io.BytesIO(path.read_bytes()))).std() > 0
    with pytest.raises(UsageError, match=r"\.pdf, \.svg or \.png"):
        save(draw_curves(RUNS), tmp_path / "a.jpg")


def test_an_arm_of_the_paper_looks_the_same_in_any_company_and_no_two_arms_look_alike() -> None:
    others = [f"arm{i}" for i in range(14)]
    together = line_styles(["random", "transfer", "gabor", *others])
    for arm in ("random", "transfer", "gabor"):
        assert line_styles([arm])[arm] == together[arm]
    assert line_styles(reversed(others)) == line_styles(others)
    assert len({tuple(style.values()) for style in together.values()}) == len(together)
    few = line_styles(["random", "transfer", *others[:5]])
    assert len({style["color"] for style in few.values()}) == len(few) == len(PALETTE)


def test_colours_keep_apart_for_the_colour_blind() -> None:
    """Simulated with the matrices of Machado et al. 2009, severity 1: protanopia and deuteranopia."""
    matrices = (
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    )
    colours = np.array([to_rgb(colour) for colour in PALETTE])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    for matrix in matrices:
        seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.4)
        distances = np.linalg.norm(seen[:, None] - seen[None], axis=2)[~np.eye(len(seen), dtype=bool)]
        assert distances.min() > 0.12


LONG = ["meanvar-of-the-whole-network-but-the-head", "transfuse-upto-block3-with-the-rest-fresh", "W" * 40]


@pytest.mark.parametrize("names", [LONG, [f"arm-{i}" for i in range(11)], ["$äß$" * 8, *LONG], ["a"]], ids=len)
@pytest.mark.parametrize("width", [WIDTH, PAGE_WIDTH])
def test_a_legend_is_whole_and_covers_nothing(names: list[str], width: float) -> None:
    """By matplotlib's own renderer."""
    figure = draw_curves([Run(Path(arm), arm, "1", {0: 0.5, 10: 0.75}, {}) for arm in names], width=width)
    figure.canvas.draw()
    (legend,) = figure.legends
    entries = [*legend.get_texts(), legend.get_title(), *legend.get_lines()]
    assert len(legend.get_texts()) == len(legend.get_lines()) == len(names)
    for entry in entries:
        box = entry.get_window_extent()
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
    tight = figure.axes[0].get_tightbbox()
    assert tight is not None
    assert max(entry.get_window_extent().y1 for entry in entries) <= tight.y0
    assert figure.axes[0].get_window_extent().height > 0.35 * width * figure.dpi


def test_a_legend_shows_each_arms_line_and_marker() -> None:
    names = [f"arm{i}" for i in range(11)]
    figure = draw_curves([Run(Path(arm), arm, "1", {0: 0.5, 10: 0.75}, {}) for arm in names])
    shown = [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in figure.legends[0].get_lines()]
    assert shown == [tuple(line_styles(names)[arm][key] for key in ("color", "linestyle", "marker")) for arm in names]
    assert len({marks[1:] for marks in shown}) == 11  # and without colour


def test_inline_svg_is_one_element_with_text_escaped() -> None:
    svg = inline_svg(draw_curves(RUNS), "what it is")
    assert svg.startswith("<svg ")
    assert svg.rstrip().endswith("</svg>")
    assert "<b>" not in svg
    assert "&lt;b&gt;&amp;_$x$" in svg
    assert "_hidden" in svg
    assert "currentColor" in svg
