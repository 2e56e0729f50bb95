import signal
import subprocess
import sys
import time

import pytest

from wsurgery.data import sources
from wsurgery.data.manifest import read_manifest
from wsurgery.data.sources import make_data, open_data
from wsurgery.errors import UsageError

SPEC = "synthetic:textures?n=6&size=16"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WSURGERY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def state(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_made_once_and_left_alone_after(tmp_path):
    folder = tmp_path / "a" / "b"
    assert make_data(SPEC, folder)
    before = state(folder)
    assert not make_data("synthetic:textures?size=16&n=6&seed=0", folder)
    assert state(folder) == before
    assert len(read_manifest(folder / "manifest.csv")) == 6
    assert [path.name for path in folder.parent.iterdir()] == ["b"]


def test_other_data_is_replaced_by_force_only(tmp_path):
    folder = tmp_path / "a"
    make_data(SPEC, folder)
    with pytest.raises(UsageError, match="--force"):
        make_data("synthetic:textures?n=5&size=16", folder)
    assert len(read_manifest(folder / "manifest.csv")) == 6
    assert make_data("synthetic:textures?n=5&size=16", folder, force=True)
    assert len(list((folder / "images").iterdir())) == 5


def test_what_was_not_made_here_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="name another folder"):
        make_data(SPEC, tmp_path, force=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "a").mkdir()
    assert make_data(SPEC, tmp_path / "a")


def wsurgery(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "wsurgery", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )


def test_a_killed_run_is_not_taken_for_a_complete_one(tmp_path):
    folder = tmp_path / "a"
    process = wsurgery("data", "make", "synthetic:fundus?n=100000&size=64", "-o", str(folder), "--threads", "1")
    while not list(tmp_path.glob(".a.*/images/*.png")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not folder.exists()
    assert make_data(SPEC, folder)


def test_an_interrupted_run_ends_its_processes_and_leaves_nothing(tmp_path):
    process = wsurgery("data", "make", "synthetic:fundus?n=100000&size=64", "-o", str(tmp_path / "a"), "--threads", "2")
    while not list(tmp_path.glob(".a.*/images/*.png")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate()  # it ends when the last process that holds its output has
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "write_manifest", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_data(SPEC, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_specification_is_made_once_in_the_cache(cache):
    first = open_data(SPEC)
    before = state(cache)
    again = open_data("synthetic:textures?seed=0&size=16&n=6")
    assert state(cache) == before
    assert first.digest == again.digest
    assert first.root == again.root
    assert first.root.is_relative_to(cache)
    assert open_data("synthetic:textures?n=7&size=16").root != first.root


def test_a_manifest_is_read_where_it_is(tmp_path, cache):
    make_data(SPEC, tmp_path / "a")
    assert open_data(str(tmp_path / "a" / "manifest.csv")).root == tmp_path / "a"
    assert not cache.exists()


def test_two_processes_may_make_the_same_at_once(cache):
    processes = [wsurgery("data", "show", SPEC, "--json") for _ in range(2)]
    shown = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert shown[0] == shown[1] != ""
    assert len(list((cache / "data").iterdir())) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.csv", "nowhere.csv: there is no such file"),
        ("medical:x", "no scheme 'medical': there are synthetic"),
        ("synthetic:x", "there are synthetic:fundus, synthetic:textures"),
        ("synthetic:fundus?n", "'n' should be key=value"),
        ("synthetic:fundus?n=1&n=2", "'n=2' should be key=value, each key once"),
        ("synthetic:fundus?m=1", "no key 'm': there are n, size, seed, contrast"),
    ],
)
def test_what_cannot_be_opened(spec, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        open_data(spec)


def test_a_folder_is_no_manifest(tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        open_data(str(tmp_path))


def test_only_specifications_can_be_made(tmp_path):
    with pytest.raises(UsageError, match="is not a specification"):
        make_data("fundus", tmp_path / "a")


@pytest.mark.parametrize("damage", [b"", b"\xff", b"[" * 100_000, b"{}"])
def test_a_folder_whose_specification_is_damaged_is_somebody_else_s(tmp_path, damage):
    make_data(SPEC, tmp_path / "a")
    (tmp_path / "a" / "spec.json").write_bytes(damage)
    with pytest.raises(UsageError, match=r"^[^\n]*(was not made here|other data)[^\n]*$"):
        make_data(SPEC, tmp_path / "a")
