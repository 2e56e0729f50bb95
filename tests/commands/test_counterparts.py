"""Two checkpoints of one network that were written otherwise: tied tensors, wrappers' prefixes, missing counters, other types."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.conftest import small_resnet

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """`tied`, as `safetensors.torch.save_model` writes it, and `apart`, with another head."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    body = {"model.layers.0.mlp.weight": x[:8], "model.norm.weight": x[8]}
    save_file(body | {HEAD: x}, "tied", metadata={"format": "pt", EMBEDDING: HEAD})
    save_file(body | {HEAD: x + 1, EMBEDDING: x - 1}, "apart")
    return x


def metadata(path) -> dict[str, str]:
    with safe_open(path, "numpy") as file:
        return {key: value for key, value in file.metadata().items() if key != "wsurgery"}


def test_a_tied_tensor_is_compared_under_each_of_its_names(pair, invoke):
    for a, b in (("tied", "apart"), ("apart", "tied")):
        shown = json.loads(invoke("diff", a, b, "--json").stdout)
        assert shown["only_in_a"] == shown["only_in_b"] == shown["changed_kind"] == []
        moved = {row["name"]: row["max"] for row in shown["tensors"]}
        assert moved[EMBEDDING] == moved[HEAD] == pytest.approx(1, abs=1e-6)
    assert json.loads(invoke("diff", "tied", "tied", "--json").stdout)["identical"]


def test_an_average_with_what_is_not_tied_is_not_tied(pair, invoke, shell, tmp_path):
    for words in (["average", "tied", "apart"], ["average", "apart", "tied"], ["lerp", "tied", "apart", "--t", "0.5"]):
        invoke(*words, "-o", "made", "--force")
        made = load_file("made")
        np.testing.assert_array_equal(made[HEAD], (pair + (pair + 1)) / 2)
        np.testing.assert_array_equal(made[EMBEDDING], (pair + (pair - 1)) / 2)
        assert metadata("made") == {"format": "pt"}
    invoke("average", "tied", "tied", "-o", "made", "--force")
    assert metadata("made") == metadata("tied")
    piped = shell("cat tied | wsurgery average - apart > piped && wsurgery average tied apart > named", tmp_path)
    assert piped.returncode == 0, piped.stderr.decode()
    assert "no longer tied" in piped.stderr.decode()
    piped, named = load_file("piped"), load_file("named")
    assert all(np.array_equal(piped[name], named[name]) for name in named)


def test_transfuse_leaves_the_tied_tensor_that_was_not_selected(pair, invoke):
    done = invoke("transfuse", "apart", "--only", "lm_head.*", "--into", "tied", "-o", "made")
    assert f"{EMBEDDING} is no longer tied to {HEAD}" in done.stderr
    made = load_file("made")
    np.testing.assert_array_equal(made[HEAD], pair + 1)
    np.testing.assert_array_equal(made[EMBEDDING], pair)
    invoke("transfuse", "tied", "--only", EMBEDDING, "--into", "apart", "-o", "back")
    np.testing.assert_array_equal(load_file("back")[EMBEDDING], pair)
    np.testing.assert_array_equal(load_file("back")[HEAD], pair + 1)


@pytest.mark.parametrize("part", [["--only", "lm_head.*"], ["--only", EMBEDDING], ["--blocks", "stem"]], ids=str)
def test_what_changes_with_the_selected_tensor_is_said(part, pair, invoke):
    done = invoke("scale", "tied", "--by", 2, *part, "-o", "made")
    assert done.stderr == f"{EMBEDDING} is tied to {HEAD}: it is the same tensor, and changes with it\n"
    np.testing.assert_array_equal(load_file("made")[HEAD], 2 * pair)
    assert "tied" not in invoke("scale", "tied", "--by", 2, "-o", "all").stderr
    excepted = invoke("scale", "tied", "--by", 2, "--except", EMBEDDING, "-o", "rest")
    assert excepted.stderr == ""
    np.testing.assert_array_equal(load_file("rest")[HEAD], pair)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "encoder_q."])
@pytest.mark.parametrize("command", ["average", "lerp"])
def test_prefixes_are_looked_through_and_counters_may_be_missing(command, prefix, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = small_resnet(0), small_resnet(1)
    save_file(a, "a")
    save_file({prefix + name: x for name, x in b.items() if not name.endswith("num_batches_tracked")}, "b")
    more = ["--t", "0.5"] if command == "lerp" else []
    invoke(command, "a", "b", *more, "-o", "made")
    invoke(command, "b", "a", *more, "-o", "back")
    made, back = load_file("made"), load_file("back")
    assert made.keys() == a.keys()
    assert back.keys() == load_file("b").keys()
    for name, x in a.items():
        half = x if x.dtype == np.int64 else ((x.astype(float) + b[name]) / 2).astype(np.float32)
        np.testing.assert_array_equal(made[name], half)
        np.testing.assert_array_equal(back.get(prefix + name, half), half)


@pytest.mark.parametrize(
    "line",
    [
        "average a b",
        "lerp a b --t 1",
        "merge a b --method slerp",
        "merge a --base b --method dare",
        "prune a --only * --zeros-of b",
    ],
)
def test_a_counter_of_floats_that_is_missing_stays_as_it_is(line, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    norm = {f"bn.{part}": np.ones(3, np.float32) for part in ("weight", "bias", "running_mean", "running_var")}
    save_file({**norm, "bn.num_batches_tracked": np.array(7, np.float32)}, "a")
    save_file(norm, "b")
    invoke(*line.split(), "-o", "made")
    assert load_file("made")["bn.num_batches_tracked"] == 7


def test_a_task_vector_is_added_by_weights(invoke, tmp_path, monkeypatch):
    """Ilharco et al. 2023: base + λ (tuned - base), and the same for several tasks."""
    monkeypatch.chdir(tmp_path)
    x = [np.random.default_rng(i).normal(size=9).astype(np.float32) for i in range(3)]
    for name, values in zip(("base", "one", "two"), x, strict=True):
        save_file({"w": values}, name)
    invoke("average", "base", "one", "two", "--weights", "0.2,0.4,0.4", "-o", "made")
    base, one, two = (values.astype(float) for values in x)
    np.testing.assert_allclose(load_file("made")["w"], base + 0.4 * (one - base) + 0.4 * (two - base), rtol=1e-6)


def every_name(path) -> dict[str, np.ndarray]:
    """The tensors, each under all of its names."""
    tensors = load_file(path)
    return tensors | {alias: tensors[name] for alias, name in metadata(path).items() if name in tensors}


@pytest.mark.parametrize(
    "part",
    ["--blocks head", "--upto stem", f"--only {EMBEDDING}", "--only model.*", "--role norm", f"--except {EMBEDDING}"],
)
def test_what_keep_keeps_and_drop_leaves_are_together_the_whole(part, pair, invoke):
    """A tied tensor stays under those of its names that are not dropped."""
    invoke("keep", "tied", *part.split(), "-o", "kept")
    invoke("drop", "tied", *part.split(), "-o", "left")
    whole, kept, left = map(every_name, ("tied", "kept", "left"))
    assert kept.keys().isdisjoint(left)
    assert kept.keys() | left.keys() == whole.keys()
    for name, value in (kept | left).items():
        np.testing.assert_array_equal(value, whole[name])


def test_a_head_that_is_dropped_leaves_the_embedding_that_was_tied_to_it(pair, invoke):
    done = invoke("drop", "tied", "--blocks", "head", "-o", "made")
    assert done.stderr == f"{EMBEDDING} stays: it was tied to {HEAD}, which goes\n"
    np.testing.assert_array_equal(load_file("made")[EMBEDDING], pair)
    assert HEAD not in load_file("made")
    assert metadata("made") == {"format": "pt"}
