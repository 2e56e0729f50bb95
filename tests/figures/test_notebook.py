"""What a notebook shows by itself."""

import json
import re
from xml.etree import ElementTree

import numpy as np

import wsurgery
from wsurgery.studies import Trained


def shown(pipeline) -> dict[str, str]:
    html = pipeline._repr_html_()
    ElementTree.fromstring(f"<div>{html}</div>")  # whole, and nothing left open
    return dict(re.findall(r"<tr><th style[^>]*>(.*?)</th>.*?</td><td>([\d,]+)</td>", html))


def test_a_checkpoint_shows_the_blocks_that_show_does(resnet, invoke):
    blocks = json.loads(invoke("show", resnet, "--json").stdout)["blocks"]
    assert shown(wsurgery.open(resnet)) == {block["name"]: f"{block['parameters']:,}" for block in blocks}


def test_edits_that_are_not_made_yet_are_seen_and_nothing_is_read(resnet):
    chain = wsurgery.open(resnet).drop(blocks="head")
    resnet.unlink()
    assert list(shown(chain)) == ["conv1", "block1", "block2"]


def test_names_are_text():
    html = wsurgery.open({"<script>x</script>.weight": np.ones((2, 2), np.float32)})._repr_html_()
    assert "<script" not in html


def test_many_blocks_are_cut():
    tensors = {f"blocks.{i}.weight": np.ones((2, 2), np.float32) for i in range(130)}
    pipeline = wsurgery.open(tensors)
    assert len(shown(pipeline)) == 100
    assert "and 30 more blocks" in pipeline._repr_html_()


def test_a_run_shows_its_curves_and_its_folder_both(finished, tmp_path):
    curves = Trained(finished, {})._repr_html_()
    assert curves.count("<svg") == 2
    assert wsurgery.open(finished)._repr_html_().endswith(curves)
    assert Trained(tmp_path, {})._repr_html_() is None
