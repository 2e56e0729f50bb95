from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from wsurgery.errors import WsurgeryError
from wsurgery.figures.page import render_results


class Page(HTMLParser):
    """The headings and pictures of a page."""

    def __init__(self, html):
        super().__init__()
        self.headings, self.pictures, self._open = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self._open = tag
        if tag == "img":
            self.pictures.append(dict(attrs))

    def handle_data(self, data):
        if self._open in ("h1", "h2", "h3") and data.strip():
            self.headings.append((self._open, data.strip()))


@pytest.fixture
def results(tmp_path):
    """Two recipes with one picture each."""
    files = []
    for name in ("meanvar", "gabor"):
        folder = tmp_path / name
        folder.mkdir()
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(folder / "curves.png")
        (folder / "RESULTS.md").write_text(
            f"# {name}\n\n## resnet18\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n<script>x</script>\n\n![{name}: curves](curves.png)\n"
        )
        files.append(folder / "RESULTS.md")
    return files


def test_results_stand_in_order_with_their_pictures_inside(results):
    html = render_results(results, title="All & all")
    page = Page(html)
    assert page.headings == [
        ("h1", "All & all"), ("h2", "meanvar"), ("h3", "resnet18"), ("h2", "gabor"), ("h3", "resnet18"),
    ]  # fmt: skip
    assert [picture["alt"] for picture in page.pictures] == ["meanvar: curves", "gabor: curves"]
    assert all(picture["src"].startswith("data:image/png;base64,iVBOR") for picture in page.pictures)
    assert html.count("<table>") == 2
    assert "<script>" not in html


@pytest.mark.parametrize("picture", ["missing.png", "../gabor/curves.png", "RESULTS.md", "https://example.org/x.png"])
def test_a_picture_that_does_not_lie_beside_is_named(results, picture):
    results[0].write_text(f"![x]({picture})")
    with pytest.raises(WsurgeryError, match=r"meanvar/RESULTS\.md shows"):
        render_results(results, title="t")


def test_markdown_and_folders_do_not_mix(results, invoke, tmp_path):
    failed = invoke("report", *results, tmp_path, "-o", tmp_path / "x.html", check=False)
    assert (failed.exit_code, len(failed.stderr.splitlines())) == (2, 1)
    missing = invoke("report", tmp_path / "no.md", "-o", tmp_path / "x.html", check=False)
    assert missing.exit_code == 1
    assert "no.md is not there" in missing.stderr
    assert not (tmp_path / "x.html").exists()
    invoke("report", *results, "-o", tmp_path / "x.html")
    assert "gabor" in (tmp_path / "x.html").read_text()
