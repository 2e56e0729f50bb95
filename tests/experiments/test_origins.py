"""What an arm is, from the checkpoints that commands made."""

from pathlib import Path

import pytest

from wsurgery.experiments.origins import origin


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["init cbr_tiny --width 0.05 --num-classes 5 -o run/init.safetensors"], "init cbr_tiny --width 0.05"),
        (
            [
                "init cbr_tiny --width 0.05 --num-classes 9 -o source",
                "scale source --by 0.5 -o half",
                "init cbr_tiny --width 0.05 --num-classes 5 -o fresh",
                "transfuse half --upto block2 --into fresh -o run/init.safetensors",
            ],
            "init cbr_tiny --width 0.05, then transfuse --upto block2 of (init cbr_tiny --width 0.05, then scale --by 0.5)",
        ),
    ],
)
def test_an_arm_is_what_was_done_to_its_weights(lines, words, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for line in lines:
        invoke(*line.split())
    assert origin(tmp_path / "run") == words


def test_where_nobody_knows_nothing_is_said(tmp_path):
    assert origin(tmp_path) == ""
