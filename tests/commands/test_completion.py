import json
import os
import subprocess
import sys

import pytest
import timm
import timm.optim

from wsurgery.commands._completion import architecture, metric_list, optimizer
from wsurgery.similarity.metrics import METRICS

SHOWN = """
import json, runpy, sys
sys.argv = ["wsurgery"]
try:
    runpy.run_module("wsurgery", run_name="__main__")
except SystemExit:
    pass
print(json.dumps(sorted({"torch", "timm", "matplotlib"} & sys.modules.keys())), file=sys.stderr)
"""


@pytest.fixture
def complete(tmp_path):
    """What bash is offered at the end of a line, in a process that must import nothing heavy for it."""

    def run(line: str) -> list[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        done = subprocess.run(
            [sys.executable, "-c", SHOWN], cwd=tmp_path, capture_output=True, text=True, check=True,
            env={**os.environ, "_WSURGERY_COMPLETE": "complete_bash", **words},
        )  # fmt: skip
        assert json.loads(done.stderr) == []
        return done.stdout.split()

    return run


def test_blocks_are_those_of_the_checkpoint_on_the_line(complete, resnet, tmp_path):
    (tmp_path / "map.json").write_text('{"low": ["*"]}')
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 20)
    assert complete(f"wsurgery meanvar {resnet} --upto b") == ["block1", "block2"]
    assert complete(f"wsurgery meanvar {resnet} --blocks block1,b") == ["block1,block2"]
    assert complete(f"wsurgery histogram {resnet} --block-map map.json --upto ") == ["low"]
    for nothing in ("", "missing.safetensors", "broken.safetensors", "https://example.invalid/x.safetensors"):
        assert complete(f"wsurgery meanvar {nothing} --upto ") == []


def test_the_other_names_are_offered_without_torch(complete):
    assert complete("wsurgery cca a b --metric mean_cca,linear") == ["mean_cca,linear_cka"]
    assert complete("wsurgery curves run --metric ") == ["auc", "loss"]  # a choice of its own
    assert "adamw" in complete("wsurgery train x --optimizer adam")
    for line in ("eval x --arch cbr_s", "cca a b --arch cbr_s", "train x --arch cbr_s", "init cbr_s"):
        assert complete(f"wsurgery {line}") == ["cbr_small"]


def test_they_are_the_names_that_torch_and_timm_know():
    import wsurgery.models  # registers its own

    assert wsurgery.models
    assert architecture("") == sorted(timm.list_models())
    assert sorted(optimizer("")) == timm.optim.list_optimizers()
    assert metric_list("") == list(METRICS)
