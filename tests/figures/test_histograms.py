import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.conftest import small_resnet
from wsurgery.anatomy import Selection
from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.figures.histograms import Histogram, draw_histograms, read_histograms


def test_densities_are_numpys_over_common_bins(tmp_path):
    rng = np.random.default_rng(0)
    parts = [rng.normal(i, 1 + i, (8, 3, 7, 7)).astype(np.float32) for i in range(2)]
    for i, part in enumerate(parts):
        save_file({"conv1.weight": part, "fc.weight": np.full((2, 8), 100, np.float32)}, tmp_path / str(i))
    edges, found = read_histograms([tmp_path / "0", tmp_path / "1"], selection=None, bins=30)
    assert (edges[0], edges[-1]) == (min(map(np.min, parts)), max(map(np.max, parts)))
    for part, histogram in zip(parts, found, strict=True):
        np.testing.assert_allclose(histogram.density, np.histogram(part.astype(float), edges, density=True)[0])
        assert (histogram.density * np.diff(edges)).sum() == pytest.approx(1)
        assert (histogram.elements, histogram.std) == (part.size, pytest.approx(part.std(dtype=float)))


def test_a_selection_pools_its_floating_point_tensors(resnet):
    tensors = small_resnet()
    pooled = np.concatenate([x.ravel() for name, x in tensors.items() if name.startswith("layer2") and x.dtype != int])
    edges, [histogram] = read_histograms([resnet], selection=Selection(blocks="block2"), bins=50)
    assert histogram.elements == pooled.size  # more than one chunk of it
    np.testing.assert_allclose(histogram.density, np.histogram(pooled.astype(float), edges, density=True)[0])


def test_equal_weights_and_a_pipe_can_be_drawn(invoke, shell, resnet, tmp_path):
    save_file({"conv1.weight": np.zeros((4, 3, 3, 3), np.float32)}, tmp_path / "zeros")
    invoke("histogram", tmp_path / "zeros", "-o", tmp_path / "x.svg", "--log")
    done = shell(
        "wsurgery meanvar resnet.safetensors | wsurgery histogram resnet.safetensors - --role conv -o y.png", tmp_path
    )
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "y.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_says_whose_weights_it_shows(resnet, invoke, tmp_path):
    invoke("histogram", resnet, "-o", tmp_path / "x.svg")
    assert "<!-- the first convolution only (conv1.weight) -->" in (tmp_path / "x.svg").read_text()
    invoke("histogram", resnet, "-o", tmp_path / "x.svg", "--force", "--only", "fc.*")
    assert re.search(r"<!-- 2 tensors: .*only fc\.\* -->", (tmp_path / "x.svg").read_text())


def test_every_checkpoint_has_a_line_with_its_name():
    edges = np.linspace(-1, 1, 5)
    one = Histogram(np.ones(4) / 2, mean=0.0, std=0.58, elements=7)
    figure = draw_histograms(edges, [("a$b", one), ("_c", one)])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(figure.axes[0].patches) == len(labels) == 2
    assert r"a\$b" in labels[0]


def test_errors_name_the_file(tmp_path):
    save_file({"conv1.weight": np.full((4, 3, 3, 3), np.nan, np.float32), "ids": np.arange(3)}, tmp_path / "broken")
    with pytest.raises(WsurgeryError, match=r"broken: conv1\.weight has NaN"):
        read_histograms([tmp_path / "broken"], selection=None)
    save_file({"conv1.weight": np.resize([-1e308, 1e308], (4, 3, 3, 3))}, tmp_path / "far")
    with pytest.raises(WsurgeryError, match="too far apart"):
        read_histograms([tmp_path / "far"], selection=None)
    with pytest.raises(UsageError, match="broken: the selected part has no floating-point"):
        read_histograms([tmp_path / "broken"], selection=Selection(only=("ids",)))
