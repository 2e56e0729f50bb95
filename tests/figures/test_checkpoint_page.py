"""A checkpoint's page: what is on it, that text stays text, and in a browser, where there is one, that it opens."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.conftest import peak_memory, small_resnet
from tests.figures.test_page import Page
from wsurgery.figures.checkpoint_page import MOST_TENSORS

HOSTILE = "layer2.0.</b></style><script>window.hurt=1</script><img src=x onerror='window.hurt=1'>\"&\x1b[31m/weight"


@pytest.fixture(scope="session")
def edited(tmp_path_factory, invoke) -> Path:
    """A checkpoint with a history, something frozen, another element type, and a hostile name."""
    folder = tmp_path_factory.mktemp("view")
    save_file(
        {**small_resnet(), HOSTILE: np.ones((3, 4), np.float32)}, folder / "net", metadata={"author": f"by {HOSTILE}"}
    )
    invoke("cast", folder / "net", "--to", "bf16", "--blocks", "head", "-o", folder / "half")
    invoke("freeze-spec", folder / "half", "--upto", "conv1", "-o", folder / "edited")
    invoke("scale", folder / "edited", "--by", "1.5", "--role", "conv", "-o", folder / "moved")
    return folder / "edited"


def page_of(invoke, *words) -> str:
    out = words[0].parent / "page.html"
    invoke("view", *words, "-o", out, "--force")
    return out.read_text(encoding="utf-8")


def test_the_page_has_every_block_with_the_parameters_that_show_says_and_every_tensor(edited, invoke):
    text = page_of(invoke, edited)
    shown = json.loads(invoke("show", edited, "--json").stdout)
    found = re.findall(r"<summary><strong>(.*?)</strong>.*?<small>([\d,]+) parameters", text)
    assert [name for name, _ in found] == [block["name"] for block in shown["blocks"]]
    parameters = [int(number.replace(",", "")) for _, number in found]
    assert parameters == [block["parameters"] for block in shown["blocks"]]
    assert f"{sum(parameters):,} parameters" in text
    cells = [re.findall(r"flex:(\d+) ", bar) for bar in re.findall(r"<span class='bar'.*?</span>", text)]
    assert [sum(map(int, sizes)) for sizes in cells] == parameters
    assert text.count("<li><b>") == len(shown["tensors"])


def test_the_page_needs_nothing_from_outside_and_runs_no_script(edited, invoke):
    text = page_of(invoke, edited, "--against", edited.with_name("moved"))
    assert "default-src 'none'" in text  # and what slipped through could not do it
    assert "url(" not in text
    assert "@import" not in text
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "link", "iframe", "object", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))


def test_hostile_names_and_metadata_are_text(edited, invoke):
    text = page_of(invoke, edited)
    said = HOSTILE.replace("\x1b", "\\x1b")
    texts = Page(text).text
    assert {said, f"by {said}"} <= set(texts)
    assert "\x1b" not in text


def test_change_is_what_diff_says(edited, invoke):
    moved = edited.with_name("moved")
    text = page_of(invoke, edited, "--against", moved)
    rows = json.loads(invoke("diff", edited, moved, "--json").stdout)
    words = dict(re.findall(r"<li><b>(.*?)</b><small>.*?change (\S+?)(?: · .*?)?</small>", text))
    for row in rows["tensors"]:
        if row["name"] != HOSTILE:
            assert words[row["name"]] == f"{row['relative_l2']:.3g}"
    for row in rows["blocks"]:
        assert re.search(rf"<strong>{row['name']}</strong>.*?change {row['relative_l2']:.3g}</small>", text)


def test_blocks_of_the_others_own_map_have_their_changes(invoke, tmp_path):
    (tmp_path / "map.json").write_text('{"below": ["conv1.*", "bn1.*"], "above": ["layer*", "fc.*"]}')
    save_file(small_resnet(), tmp_path / "net")
    invoke(
        "scale",
        tmp_path / "net",
        "--by",
        3,
        "--blocks",
        "below",
        "--block-map",
        tmp_path / "map.json",
        "-o",
        tmp_path / "b",
    )
    for pair in (("net", "b"), ("b", "net")):
        a, b = (tmp_path / name for name in pair)
        rows = json.loads(invoke("diff", a, b, "--json").stdout)["blocks"]
        assert {row["name"] for row in rows} == {"below", "above"}
        text = page_of(invoke, a, "--against", b)
        for row in rows:
            assert re.search(rf"<strong>{row['name']}</strong>.*?change {row['relative_l2']:.3g}</small>", text)


@pytest.mark.parametrize("shape", [(0, 3, 7, 7), (8, 3, 7, 0), (8, 0, 7, 7)])
def test_an_empty_first_layer_has_no_filters(shape, invoke, tmp_path):
    save_file({"conv1.weight": np.zeros(shape, np.float32), "fc.weight": np.ones((2, 8), np.float32)}, tmp_path / "net")
    assert "<img" not in page_of(invoke, tmp_path / "net")
    done = invoke("filters", tmp_path / "net", "-o", tmp_path / "x.png", check=False)
    assert done.exit_code == 2
    assert "conv1.weight is empty" in done.stderr


def test_what_has_another_shape_stands_there_without_a_number(edited, invoke, tmp_path):
    save_file({**load_file(edited.with_name("net")), "fc.weight": np.ones((2, 32), np.float32)}, tmp_path / "other")
    assert re.search(r"<b>fc.weight</b><small>[^<]*change –", page_of(invoke, edited, "--against", tmp_path / "other"))


def test_the_first_layers_filters_are_there(edited, invoke):
    text = page_of(invoke, edited)
    (data,) = re.findall(r"data:image/png;base64,([\w+/=]+)", text)
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (31, 31)  # 16 filters of 7 x 7
    assert "16 filters" in text


def test_a_stream_shards_and_another_number_of_threads_give_the_same_page(edited, invoke, wsurgery, tmp_path):
    one = page_of(invoke, edited, "--threads", 1)
    assert page_of(invoke, edited, "--threads", 3) == one
    wsurgery("view", "-o", tmp_path / "page.html", stdin=edited.read_bytes())
    by_pipe = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert by_pipe.replace("standard input", "edited") == one
    invoke("scale", edited, "--by", 1, "--only", "fc.bias", "-o", f"{tmp_path}/shards/", "--shard-size", "400kB")
    sharded = tmp_path / "sharded.html"
    invoke("view", f"{tmp_path}/shards", "-o", sharded)
    cards = [re.findall(r"<li><b>.*?</li>", text) for text in (sharded.read_text(encoding="utf-8"), one)]
    assert sorted(cards[0]) == sorted(cards[1])


def test_against_a_stream(edited, invoke, wsurgery, tmp_path):
    moved = edited.with_name("moved")
    wsurgery("view", edited, "--against", "-", "-o", tmp_path / "page.html", stdin=moved.read_bytes())
    found = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert found.replace("standard input", "moved") == page_of(invoke, edited, "--against", moved)


@pytest.fixture(scope="session")
def many(tmp_path_factory) -> Path:
    """More tensors than are shown one by one, in 1,000 blocks and more."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("many") / "many"
    parts = {"attn.qkv.weight": (8, 6), "attn.qkv.bias": (8,), "norm1.weight": (4,), "norm1.bias": (4,)}
    tensors = {f"blocks.{i}.{part}": shape for i in range(MOST_TENSORS // 4 + 100) for part, shape in parts.items()}
    save_file({name: rng.standard_normal(shape).astype(np.float32) for name, shape in tensors.items()}, path)
    return path


def test_ten_thousand_tensors_are_a_page_of_bounded_size(many, invoke):
    text = page_of(invoke, many)
    assert text.count("<li><b>") == MOST_TENSORS
    assert text.count("class='block'") == MOST_TENSORS // 4 + 100
    assert text.count(".attn.qkv.weight</b>") == MOST_TENSORS // 4 + 100  # of the largest each is there
    assert f"Of {MOST_TENSORS + 400:,} tensors the largest {MOST_TENSORS:,} are shown one by one" in text
    assert len(text) < 1000 * MOST_TENSORS


@pytest.mark.slow
def test_memory_follows_the_largest_tensor_and_not_the_file(tmp_path):
    def used(tensors: int) -> int:
        save_file({f"{i}.weight": np.ones((1024, 2048), np.float32) for i in range(tensors)}, tmp_path / "x", {})
        return peak_memory("view", tmp_path / "x", "-o", tmp_path / f"{tensors}.html", "--threads", 1)

    assert used(24) - used(6) < 8 * 2048  # KiB; the file grows by 144 MiB


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["-o", "x.txt"], 2),
        (["-o", "there.html"], 2),
        (["-", "--against", "-", "-o", "x.html"], 2),
        (["broken", "-o", "x.html"], 1),
        (["net", "--against", "broken", "-o", "x.html"], 1),
    ],
)
def test_what_cannot_be_is_a_line_and_no_file(words, status, wsurgery, tmp_path, edited):
    (tmp_path / "there.html").write_text("mine")
    shutil.copy(edited, tmp_path / "net")
    (tmp_path / "broken").write_bytes(edited.read_bytes()[:-100])
    words = words if words[0] in ("-", "broken", "net") else ["net", *words]
    done = wsurgery("view", *words, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (status, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"there.html", "net", "broken"}
    assert (tmp_path / "there.html").read_text() == "mine"


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of this machine's, if playwright and one are there."""
    api = pytest.importorskip("playwright.sync_api")
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, edited, invoke):
    """Open the page, at a width and in light or dark, and watch what it asks for."""
    page_of(invoke, edited, "--against", edited.with_name("moved"))
    pages = []

    def at(width: int, scheme: str = "light"):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(edited.with_name("page.html").as_uri())
        assert [url for url in asked if not url.startswith("data:")] == [edited.with_name("page.html").as_uri()]
        pages.append(page)
        return page

    yield at
    for page in pages:
        page.close()


@pytest.mark.parametrize("width", [390, 1200])
def test_a_click_or_enter_opens_a_block_and_nothing_is_wider_than_the_screen(opened, width):
    page = opened(width)
    assert page.locator("li:visible >> text=layer2.0.conv2.weight").count() == 0
    page.click("summary:has-text('block2')")
    card = page.locator("li", has_text="layer2.0.conv2.weight")
    assert card.is_visible()
    assert card.locator("svg").count() == 2
    assert not page.locator("img").is_visible()
    page.locator("summary", has_text="conv1").focus()
    page.keyboard.press("Enter")
    assert page.locator("img").is_visible()
    for summary in page.locator("summary").all():
        if summary.locator("..").get_attribute("open") is None:
            summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("window.hurt") is None


def test_a_click_on_the_map_opens_the_block(opened):
    page = opened(1200)
    page.click(".map a:has-text('block2')")
    assert [each.inner_text() for each in page.locator("details[open].block strong").all()] == ["block2"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_choice_colours_and_has_its_legend(opened, scheme):
    page = opened(390, scheme)
    colours = set()
    page.focus("#by-0")
    for n in range(4):  # the arrow keys, as in any group of radio buttons
        assert [key.get_attribute("id") for key in page.locator(".key:visible").all()] == [f"key-{n}"]
        cells = page.eval_on_selector_all(".map i", "all => all.map(each => getComputedStyle(each).backgroundColor)")
        assert "rgba(0, 0, 0, 0)" not in cells
        legend = page.eval_on_selector_all(
            f"#key-{n} i", "all => all.map(each => getComputedStyle(each).backgroundColor)"
        )
        assert set(cells) <= set(legend)
        colours.add(tuple(cells))
        page.keyboard.press("ArrowRight")
    assert len(colours) == 4


def test_a_screen_reader_meets_headings_a_choice_and_the_blocks(opened):
    page = opened(390)
    tree = page.locator("body").aria_snapshot()
    for words in (
        'heading "Blocks"',
        'radio "role"',
        'radio "change"',
        'img "History of edited',
        "block2",
        " parameters (",
    ):
        assert words in tree
    assert "link" not in tree  # the map repeats the list, for eyes
