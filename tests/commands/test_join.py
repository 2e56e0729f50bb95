"""join, set-metadata, and folders of shards without an index, as a user runs them."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.conftest import small_resnet


def metadata(path) -> dict[str, str]:
    with safe_open(path, "numpy") as file:
        return {key: value for key, value in file.metadata().items() if key != "wsurgery"}


def test_what_was_taken_apart_is_joined_again(resnet, invoke, shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    invoke("freeze-spec", resnet, "--upto", "block1", "-o", "x")
    invoke("keep", "x", "--upto", "block1", "-o", "lower")
    invoke("drop", "x", "--upto", "block1", "-o", "upper")
    invoke("join", "lower", "upper", "-o", "whole")
    whole, before = load_file("whole"), load_file("x")
    assert whole.keys() == before.keys()
    assert all(whole[name].tobytes() == x.tobytes() for name, x in before.items())
    assert metadata("whole") == metadata("x")
    frozen = [json.loads(invoke("show", path, "--json").stdout)["tensors"] for path in ("x", "whole")]
    assert len({frozenset(row["name"] for row in rows if row["frozen"]) for rows in frozen}) == 1
    printed = invoke("log", "whole").stdout.strip()
    again = shell(f"{printed} > again && cat lower | wsurgery join - <(cat upper) > piped", tmp_path)
    assert again.returncode == 0, printed + again.stderr.decode()
    for path in ("again", "piped"):
        made = load_file(path)
        assert all(made[name].tobytes() == x.tobytes() for name, x in before.items()), path
    refused = invoke("join", "lower", "x", "-o", "y", check=False)
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "is in lower and in x: drop it from one, or rename it" in refused.stderr


def test_tied_tensors_stay_tied_and_shards_take_in_others(invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"a": np.ones(3, np.float32)}, "a", metadata={"alias": "a", "author": "me"})
    save_file({"b": np.ones(3, np.float32)}, "b", metadata={"other": "b", "author": "you"})
    invoke("join", "a", "b", "-o", "c")
    assert metadata("c") == {"alias": "a", "other": "b", "author": "me", "format": "pt"}
    invoke("cast", "a", "--to", "bf16", "-o", "shards/")
    invoke("join", "shards", "b", "-o", "more/")
    assert set(json.loads(invoke("show", "more", "--json").stdout)["blocks"][0]["tensors"]) == {"a", "b"}


def test_metadata_is_set_listed_and_deleted_and_wsurgerys_own_stays(resnet, invoke, shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--set", "license=apache-2.0", "--set", "note=a = b", "--delete", "author"]
    invoke("set-metadata", "resnet.safetensors", *words, "-o", "x")
    wanted = {"format": "pt", "license": "apache-2.0", "note": "a = b"}
    assert metadata("x") == json.loads(invoke("show", "x", "--metadata", "--json").stdout) == wanted
    assert "apache-2.0" in invoke("show", "x", "--metadata").stdout
    assert all(x.tobytes() == small_resnet()[name].tobytes() for name, x in load_file("x").items())
    again = shell(f"{invoke('log', 'x').stdout.strip()} > again", tmp_path)
    assert again.returncode == 0, again.stderr.decode()
    assert (tmp_path / "again").read_bytes() == (tmp_path / "x").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "what?"),
        (["--set", "license"], "KEY=VALUE"),
        (["--set", "=x"], "KEY=VALUE"),
        (["--set", "wsurgery={}"], "wsurgery's own"),
        (["--delete", "wsurgery"], "the history"),
        (["--delete", "format"], "set another value"),
        (["--delete", "autor"], "no such entry; there are format, author"),
    ],
)
def test_a_mistake_is_one_line(words, said, resnet, invoke, tmp_path):
    done = invoke("set-metadata", resnet, *words, "-o", tmp_path / "x", check=False)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr


def test_shards_are_read_without_an_index_if_all_are_there(resnet, invoke, tmp_path):
    folder = tmp_path / "shards"
    invoke("reset-bn", resnet, "-o", f"{folder}/", "--shard-size", "500KB")
    invoke("reset-bn", resnet, "-o", tmp_path / "one")
    (folder / "model.safetensors.index.json").unlink()
    assert len(list(folder.iterdir())) > 1
    assert json.loads(invoke("diff", folder, tmp_path / "one", "--json").stdout)["identical"]
    shards = sorted(folder.iterdir())
    shards[0].unlink()
    refused = invoke("show", folder, check=False)
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert f"lacks shard 1 of {len(shards)} ({shards[0].name})" in refused.stderr
