"""Blocks in the user's own words: from a file into the record, and back without the file."""

import json
import shlex

import pytest
from safetensors.numpy import load_file

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
