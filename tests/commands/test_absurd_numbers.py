"""A number that is typed absurdly large, or is none, is a usage error, before anything is read or memory is taken."""

import pytest

LINES = [
    "init cbr_tiny --num-classes", "init cbr_tiny --in-chans", "init cbr_tiny --width", "new-head x --num-classes",
    "adapt x --in-chans", "shuffle x --threads", "diff x x --threads", "train x --data d -o run --threads",
    "eval x --data d --bootstrap", "eval x --data d --threads", "compare a b --bootstrap", "cca x x --data d -p",
    "cca x x --data d -d", "cca x x --data d --repeats", "cca x x --data d --groups", "cca x x --data d --images",
    "train x --data d -o run --crop", "train x --data d -o run --ema", "histogram x -o x.png --bins",
    "view x -o x.html --threads", "curves run -o x.png --smooth",
]  # fmt: skip


@pytest.mark.parametrize("value", [str(10**18), str(10**30), "9" * 5000, "1e30", "nan", "-1"])
@pytest.mark.parametrize("line", LINES)
def test_it_is_a_usage_error(line, value, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(*line.split(), value, check=False)
    assert done.exit_code == 2, done.stderr
    assert list(tmp_path.iterdir()) == []
