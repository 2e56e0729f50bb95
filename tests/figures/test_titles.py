from pathlib import Path

from wsurgery.figures.titles import network_names, networks_of_runs


def test_each_network_is_named_once_and_what_says_none_is_passed_over(invoke, resnet, tmp_path: Path) -> None:
    for name, network in (("a", "cbr_tiny"), ("b", "resnet18"), ("c", "cbr_tiny")):
        (tmp_path / name).mkdir()
        invoke("init", network, "--width", 0.05, "--num-classes", 2, "-o", tmp_path / name / "init.safetensors")
    (tmp_path / "broken").write_bytes(b"x")
    files = [tmp_path / name / "init.safetensors" for name in "abc"]
    assert (
        network_names([*files, resnet, tmp_path / "broken", "-", "https://example.invalid/x"]) == "cbr_tiny, resnet18"
    )
    assert networks_of_runs([tmp_path / name for name in ("missing", "b", "a")]) == "resnet18, cbr_tiny"
