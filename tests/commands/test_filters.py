from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

from wsurgery.command_line import build_app


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), ["filters", *map(str, arguments)])


def test_filters_draws_checkpoints_labelled_by_their_paths(tmp_path: Path) -> None:
    checkpoints = [tmp_path / "runs" / arm / "1" / "init.safetensors" for arm in ("random", "gabor")]
    for path in checkpoints:
        path.parent.mkdir(parents=True)
        save_file({"block1.conv.weight": np.ones((4, 3, 5, 5), np.float32)}, path)
    result = invoke(*checkpoints, "-o", tmp_path / "a.svg")
    assert (result.exit_code, result.output) == (0, "")
    svg = (tmp_path / "a.svg").read_text()
    assert "random/1/init" in svg  # matplotlib leaves the text of its outlines in comments
    assert "gabor/1/init" in svg


def test_a_network_without_filters_ends_in_one_line_and_no_file(tmp_path: Path) -> None:
    save_file({"fc.weight": np.ones((4, 4), np.float32)}, tmp_path / "mlp.safetensors")
    result = invoke(tmp_path / "mlp.safetensors", "-o", tmp_path / "a.svg")
    assert result.exit_code == 2
    assert result.stderr.startswith("wsurgery filters: ")
    assert "mlp.safetensors: no convolution" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "a.svg").exists()
