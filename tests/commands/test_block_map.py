"""Blocks in the user's own words: from a file into the record, and back without the file."""

import json
import shlex

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

OWN_BLOCKS = {"lower": ["conv1.*", "bn1.*", "layer1.*"], "upper": ["layer2.*", "fc.*"]}
ERRORS = [
    ('{"lower": ["conv1.*"]}', "in no block"),
    ('{"a": ["*"], "b": ["fc.*"]}', "in a and in b"),
    ('{"a": "*"}', "a block map is a JSON object"),
    ("{}", "a block map is a JSON object"),
    ("{nonsense", "no JSON"),
    ("missing.json", "missing.json: No such file"),
]


@pytest.fixture
def own_blocks(tmp_path):
    path = tmp_path / "blocks.json"
    path.write_text(json.dumps(OWN_BLOCKS))
    return path


def test_a_file_and_its_content_say_the_same_as_globs(invoke, resnet, own_blocks, tmp_path):
    globs = [word for glob in OWN_BLOCKS["lower"] for word in ("--only", glob)]
    for i, selectors in enumerate(
        (
            globs,
            ["--upto", "lower", "--block-map", own_blocks],
            ["--blocks", "lower", "--block-map", json.dumps(OWN_BLOCKS)],
        )
    ):
        invoke("keep", resnet, *selectors, "-o", tmp_path / str(i))
    kept = [load_file(tmp_path / str(i)).keys() for i in range(3)]
    assert kept[0] == kept[1] == kept[2]
    assert (tmp_path / "1").read_bytes() != (tmp_path / "0").read_bytes()  # the histories differ


def test_the_record_holds_the_map_so_that_replay_and_log_need_no_file(invoke, shell, resnet, own_blocks, tmp_path):
    odd = {**OWN_BLOCKS, "upper": [*OWN_BLOCKS["upper"], "a/b'c"]}
    own_blocks.write_text(json.dumps(odd))
    out = tmp_path / "out.safetensors"
    invoke("shuffle", resnet, "--upto", "lower", "--block-map", own_blocks, "--seed", 3, "-o", out)
    own_blocks.unlink()
    invoke("replay", out, "--inputs", tmp_path)
    pipeline = invoke("log", out).stdout
    assert json.loads(shlex.split(pipeline)[-3]) == odd
    done = shell(f"{pipeline.strip()} > again.safetensors", tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "again.safetensors").read_bytes() == out.read_bytes()


@pytest.mark.parametrize(("block_map", "message"), ERRORS)
def test_a_map_that_is_none_is_one_line(invoke, resnet, tmp_path, block_map, message):
    out = tmp_path / "out"
    refused = invoke("keep", resnet, "--upto", "lower", "--block-map", block_map, "-o", out, check=False)
    assert refused.exit_code in (1, 2)
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not out.exists()


def test_a_map_alone_selects_nothing(invoke, resnet, own_blocks, tmp_path):
    refused = invoke("freeze-spec", resnet, "--block-map", own_blocks, "-o", tmp_path / "out", check=False)
    assert refused.exit_code == 2
    assert "which part?" in refused.stderr
    assert not (tmp_path / "out").exists()


def blocks_of(invoke, path):
    return [block["name"] for block in json.loads(invoke("show", path, "--json").stdout)["blocks"]]


def test_a_map_that_an_edit_used_stays_in_the_metadata_and_later_edits_use_it(invoke, resnet, own_blocks, tmp_path):
    odd = {"z": OWN_BLOCKS["lower"], "a": OWN_BLOCKS["upper"]}  # in the order of data, not of the alphabet
    own_blocks.write_text(json.dumps(odd))
    scaled, frozen, direct = (tmp_path / name for name in ("scaled", "frozen", "direct"))
    invoke("scale", resnet, "--by", 2, "--upto", "z", "--block-map", own_blocks, "-o", scaled)
    assert blocks_of(invoke, scaled) == ["z", "a"]
    assert [block["name"] for block in json.loads(invoke("diff", resnet, scaled, "--json").stdout)["blocks"]] == [
        "z",
        "a",
    ]
    invoke("freeze-spec", scaled, "--upto", "z", "-o", frozen)
    invoke("freeze-spec", scaled, "--upto", "z", "--block-map", own_blocks, "-o", direct)
    specification = [
        json.loads(invoke("freeze-spec", path, "--upto", "z", "--json").stdout) for path in (frozen, direct)
    ]
    assert specification[0] == specification[1]
    assert "--block-map" not in invoke("log", frozen).stdout.splitlines()[-1]
    invoke("replay", frozen, "--inputs", tmp_path)
    invoke(
        "shuffle", frozen, "--blocks", "block1", "--block-map", json.dumps({"block1": ["*"]}), "-o", tmp_path / "other"
    )
    assert blocks_of(invoke, tmp_path / "other") == ["block1"]


@pytest.mark.parametrize("chosen", [[], ["--only", "fc.*"]])
def test_a_map_that_is_given_stays_whether_or_not_blocks_are_chosen_by_it(chosen, invoke, resnet, own_blocks, tmp_path):
    for name, words in (("with", ["--block-map", own_blocks]), ("without", [])):
        invoke("scale", resnet, "--by", 2, *chosen, *words, "-o", tmp_path / name)
    made = load_file(tmp_path / "with")
    assert all(np.array_equal(made[name], x) for name, x in load_file(tmp_path / "without").items())
    assert blocks_of(invoke, tmp_path / "with") == ["lower", "upper"]
    invoke("replay", tmp_path / "with", "--inputs", tmp_path)
    twice = json.dumps({"lower": ["*"], "upper": ["fc.*"]})
    refused = invoke("scale", resnet, "--by", 2, *chosen, "--block-map", twice, "-o", tmp_path / "no", check=False)
    assert refused.exit_code == 2
    assert "each tensor belongs in one" in refused.stderr


def test_the_map_follows_new_names_and_a_part(invoke, resnet, own_blocks, tmp_path):
    scaled, renamed, part = (tmp_path / name for name in ("scaled", "renamed", "part"))
    invoke("scale", resnet, "--by", 2, "--upto", "lower", "--block-map", own_blocks, "-o", scaled)
    before = {row["name"]: row["block"] for row in json.loads(invoke("show", scaled, "--json").stdout)["tensors"]}
    invoke("rename", "^layer", "stage", scaled, "--upto", "lower", "-o", renamed)
    after = {row["name"]: row["block"] for row in json.loads(invoke("show", renamed, "--json").stdout)["tensors"]}
    moved = {name.replace("layer1", "stage1"): block for name, block in before.items()}
    assert moved != before
    assert after == moved
    invoke("keep", scaled, "--blocks", "upper", "-o", part)
    assert blocks_of(invoke, part) == ["upper"]


def test_that_the_sources_own_map_means_other_tensors_is_said(invoke, resnet, own_blocks, tmp_path):
    invoke("scale", resnet, "--by", 2, "--upto", "lower", "--block-map", own_blocks, "-o", tmp_path / "mapped")
    other = json.dumps({"lower": ["conv1.*", "bn1.*"], "upper": ["layer*", "fc.*"]})
    invoke("scale", resnet, "--by", 1, "--block-map", other, "-o", tmp_path / "into")
    words = ["transfuse", tmp_path / "mapped", "--upto", "lower", "--into"]
    said = invoke(*words, tmp_path / "into", "-o", tmp_path / "a").stderr
    assert "has other blocks of these names: those of --into count" in said
    assert "other blocks" not in invoke(*words, tmp_path / "mapped", "-o", tmp_path / "b").stderr


def test_new_head_finds_the_head_that_a_map_names(invoke, tmp_path):
    tensors = {"layer1.weight": np.ones((4, 3, 3, 3), np.float32), "w.weight": np.ones((2, 4), np.float32)}
    save_file(tensors, tmp_path / "x")
    assert "no head" in invoke("new-head", tmp_path / "x", "--num-classes", 5, "-o", tmp_path / "y", check=False).stderr
    given = json.dumps({"block1": ["layer1.*"], "head": ["w.*"]})
    invoke("scale", tmp_path / "x", "--by", 1, "--upto", "head", "--block-map", given, "-o", tmp_path / "mapped")
    invoke("new-head", tmp_path / "mapped", "--num-classes", 5, "-o", tmp_path / "y")
    assert load_file(tmp_path / "y")["w.weight"].shape == (5, 4)


@pytest.mark.parametrize("blocks", [{}, [], "x", {"a": "*"}, {"a": [1]}, {"a": {"*": 1}}, 3, {"a": ["conv1.*"]}])
def test_a_map_in_the_metadata_is_not_trusted(invoke, resnet, tmp_path, blocks):
    path = tmp_path / "hostile"
    save_file(load_file(resnet), path, metadata={"wsurgery": json.dumps({"blocks": blocks, "log": []})})
    refused = invoke("show", path, check=False)
    assert refused.exit_code in (1, 2)
    assert refused.stderr.count("\n") == 1
    placed = isinstance(blocks, dict) and blocks.get("a") == ["conv1.*"]
    assert ("in no block" if placed else "metadata entry that is not wsurgery's") in refused.stderr
    if placed:
        invoke("show", path, "--block-map", json.dumps({"a": ["*"]}))
