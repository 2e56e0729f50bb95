"""Settings and licence of a model go along into an output folder."""

import numpy as np
import pytest
from safetensors.numpy import save_file


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"model.fc.weight": np.ones((2, 3), np.float32)}, folder / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json", "LICENSE", "README.md", "train.py"):
        (folder / name).write_text("{}")
    (folder / "LICENSE.d").mkdir()
    return folder


def names_in(folder):
    return {path.name for path in folder.iterdir() if ".safetensors" not in path.name}


def test_they_go_along_and_what_is_there_stays(model, invoke, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("mine")
    invoke("cast", model, "--to", "bf16", "-o", f"{out}/")
    assert names_in(out) == {"config.json", "preprocessor_config.json", "tokenizer.json", "LICENSE"}
    assert (out / "config.json").read_text() == "mine"
    invoke("cast", model, "--to", "bf16", "-o", f"{out}/", "--force")
    assert (out / "config.json").read_text() == "{}"


@pytest.mark.parametrize("arguments", [["convert"], ["rename", "^model.", ""]])
def test_config_json_stays_behind_where_names_change(arguments, model, invoke, tmp_path):
    invoke(*arguments, model, "-o", f"{tmp_path}/out/")
    assert names_in(tmp_path / "out") == {"preprocessor_config.json", "tokenizer.json", "LICENSE"}
    invoke("convert", model, "--keep-names", "-o", f"{tmp_path}/kept/")
    assert "config.json" in names_in(tmp_path / "kept")


def test_a_file_has_nothing_beside_it(model, invoke, tmp_path):
    (model / "model.safetensors").rename(model / "other.safetensors")
    invoke("cast", model / "other.safetensors", "--to", "bf16", "-o", f"{tmp_path}/out/")
    assert names_in(tmp_path / "out") == set()


def test_a_link_in_the_output_folder_is_not_followed(model, invoke, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").symlink_to(tmp_path / "victim")
    refused = invoke("scale", model, "--by", 2, "-o", f"{out}/", "--force", check=False)
    assert refused.exit_code == 1
    assert "config.json is a symbolic link" in refused.stderr
    invoke("scale", model, "--by", 2, "-o", f"{out}/")
    assert (out / "config.json").is_symlink()
    assert not (tmp_path / "victim").exists()


def test_a_link_out_of_the_input_folder_is_not_followed_but_for_the_cache_of_the_hub(model, invoke, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (model / "LICENSE").unlink()
    (model / "LICENSE").symlink_to("../secret")
    (model / "NOTICE").symlink_to("config.json")
    said = invoke("cast", model, "--to", "bf16", "-o", f"{tmp_path}/out/").stderr
    assert "LICENSE leads out of its folder, and does not go along: copy the file there" in said
    assert names_in(tmp_path / "out") == {"config.json", "preprocessor_config.json", "tokenizer.json", "NOTICE"}
    cache = tmp_path / "models--org--net"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "0123").write_text("theirs")
    (cache / "snapshots").mkdir()
    model.rename(cache / "snapshots" / "commit")
    (cache / "snapshots" / "commit" / "COPYING").symlink_to("../../blobs/0123")
    invoke("cast", cache / "snapshots" / "commit", "--to", "bf16", "-o", f"{tmp_path}/cached/")
    assert (tmp_path / "cached" / "COPYING").read_text() == "theirs"
    assert not (tmp_path / "cached" / "LICENSE").exists()
    (cache / "blobs").rename(tmp_path / "elsewhere")
    (cache / "blobs").symlink_to(tmp_path / "elsewhere")
    invoke("cast", cache / "snapshots" / "commit", "--to", "bf16", "-o", f"{tmp_path}/linked/")
    assert not (tmp_path / "linked" / "COPYING").exists()
