"""What an arm is, from the checkpoints that commands made."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from wsurgery.experiments.origins import origin, source_units


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


@pytest.mark.parametrize(
    ("sources", "units"),
    [
        ({"1": "a", "2": "b", "3": "c"}, {"1": "1", "2": "2", "3": "3"}),
        ({"1": "a", "2": "b", "3": "a", "4": "b"}, {"1": "1", "2": "2", "3": "1", "4": "2"}),
        ({"1": "a", "2": "a", "3": "a"}, {"1": "1", "2": "1", "3": "1"}),
    ],
)
def test_seeds_share_the_source_network_that_their_checkpoints_name(
    sources: Mapping[str, str], units: Mapping[str, str], invoke, tmp_path: Path
) -> None:
    invoke("init", "cbr_tiny", "--width", 0.05, "--num-classes", 5, "-o", tmp_path / "fresh.safetensors")
    for name in set(sources.values()):  # of another library, without a history
        tensors = load_file(tmp_path / "fresh.safetensors")
        tensors["block1.conv.weight"] += np.float32(ord(name))
        save_file(tensors, tmp_path / f"{name}.safetensors")
    arms: dict[str, list[Path]] = {"random": [], "transfer": [], "meanvar": []}
    for seed, source in sources.items():
        for arm in arms:
            arms[arm].append(tmp_path / arm / seed)
            (tmp_path / arm / seed).mkdir(parents=True)
        fresh = tmp_path / "random" / seed / "init.safetensors"
        invoke("init", "cbr_tiny", "--width", 0.05, "--num-classes", 5, "--seed", seed, "-o", fresh)
        given, onto = tmp_path / f"{source}.safetensors", ["--upto", "block2", "--into", fresh, "-o"]
        invoke("transfuse", given, *onto, tmp_path / "transfer" / seed / "init.safetensors")
        invoke("meanvar", given, "--seed", seed, "-o", tmp_path / "edited.safetensors", "--force")
        invoke("transfuse", tmp_path / "edited.safetensors", *onto, tmp_path / "meanvar" / seed / "init.safetensors")
    for chosen in (arms, {"meanvar": arms["meanvar"]}):
        assert source_units(chosen) == units
    assert source_units({"random": arms["random"]}) == {}
