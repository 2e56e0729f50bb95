"""`merge` as a user runs it: in a pipe, on any number of threads, again by its history."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import small_resnet

METHODS = ["task", "ties", "dare", "breadcrumbs", "slerp", "stock"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A base and two that went from it."""
    monkeypatch.chdir(tmp_path)
    base = small_resnet()
    save_file(base, "base")
    for seed, name in ((1, "a"), (2, "b")):
        step = small_resnet(seed)
        moved = {n: x + np.float32(0.1) * step[n] if x.dtype == np.float32 else x for n, x in base.items()}
        save_file(dict(reversed(moved.items())) if name == "b" else moved, name)
    return tmp_path


@pytest.mark.parametrize("method", METHODS)
def test_threads_and_shards_do_not_change_it_and_it_is_made_again(method, folder, invoke):
    invoke("scale", "a", "--by", 1, "-o", "s/", "--shard-size", "400kB")
    base = [] if method == "slerp" else ["--base", "base"]
    for a, threads, out in (("a", 1, "one"), ("a", 8, "eight"), ("s", 3, "whole/")):
        invoke("merge", a, "b", *base, "--method", method, "--threads", threads, "-o", out)
    assert (folder / "one").read_bytes() == (folder / "eight").read_bytes()
    one = load_file("one")
    for path in (folder / "whole").glob("*.safetensors"):
        assert all(x.tobytes() == one[name].tobytes() for name, x in load_file(path).items())
    log = invoke("log", "one").stdout
    assert log.startswith(f"wsurgery merge a b --method {method}")
    assert log.endswith(f"{' '.join(['', *base])}\n") or not base
    assert invoke("replay", "one").stdout == "identical\n"


def test_every_input_may_be_a_pipe(folder, shell):
    line = "cat a | wsurgery merge - <(cat b) --base <(cat base) --method ties > piped"
    done = shell(f"{line} && wsurgery merge a b --base base --method ties > named", folder)
    assert done.returncode == 0, done.stderr.decode()
    piped, named = load_file("piped"), load_file("named")
    assert all(x.tobytes() == named[name].tobytes() for name, x in piped.items())


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["a", "b", "--method", "ties"], 2, "give --base BASE"),
        (["a", "b", "--base", "base", "--method", "slerp"], 2, "--base is not for --method slerp"),
        (["-", "b", "--base", "-", "--method", "ties"], 2, "standard input"),
        (["a", "b", "--base", "small", "--method", "ties"], 1, "is in a and not in small"),
    ],
)
def test_a_mistake_is_one_line(words, status, said, folder, invoke):
    save_file({"fc.weight": small_resnet()["fc.weight"]}, "small")
    done = invoke("merge", *words, "-o", "out", check=False)
    assert done.exit_code == status, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "out").exists()
