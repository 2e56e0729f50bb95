"""The picture of `diff`: its bars are the table's numbers, in the table's order."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.conftest import small_resnet
from wsurgery.errors import UsageError
from wsurgery.figures.block_changes import draw_block_changes


def row(name, relative_l2, *, identical=False):
    return {"name": name, "relative_l2": relative_l2, "identical": identical, "tensors": 3, "compared": 2}


def test_bars_are_the_blocks_in_order_and_words_say_what_no_bar_can():
    rows = [row("conv1", 0.25), row("$b$", 0.0, identical=True), row("head", None)]
    (axes,) = draw_block_changes({"blocks": rows}, title="A: a, B: b").axes
    assert [bar.get_width() for bar in axes.patches] == [0.25, 0, 0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["conv1", r"\$b\$", "head"]
    assert [words.get_text() for words in axes.texts] == ["0.25, n 2", "identical, n 2", "undefined, n 2"]
    bottom, top = axes.get_ylim()
    assert bottom > top  # the first stands at the top
    assert all(words in axes.get_xlabel() for words in ("‖B − A‖ / ‖A‖", "n: tensors", "no band"))


def test_more_blocks_than_a_picture_holds_are_an_error():
    with pytest.raises(UsageError, match=r"201 blocks.*--blocks"):
        draw_block_changes({"blocks": [row(str(i), 0.1) for i in range(201)]})


def test_the_command_draws_beside_what_it_prints(invoke, resnet, tmp_path):
    save_file({name: x * 2 if x.dtype == np.float32 else x for name, x in small_resnet().items()}, tmp_path / "b")
    plain = invoke("diff", resnet, tmp_path / "b", "--json").stdout
    assert invoke("diff", resnet, tmp_path / "b", "--json", "--plot", tmp_path / "d.svg").stdout == plain
    drawn = (tmp_path / "d.svg").read_bytes()
    assert {block["relative_l2"] for block in json.loads(plain)["blocks"]} == {1.0}
    invoke("diff", resnet, tmp_path / "b", "--plot", tmp_path / "d.svg", "--force")
    assert (tmp_path / "d.svg").read_bytes() == drawn
    assert invoke("diff", resnet, tmp_path / "b", "--plot", tmp_path / "d.svg", check=False).exit_code == 2
