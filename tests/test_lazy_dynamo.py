"""torch's compiler front end is imported by who compiles, and then it is torch's own."""

import subprocess
import sys

import pytest

NEVER = "sympy", "torch._dynamo.convert_frame", "torch.distributed.tensor._api", "pyarrow"

# What makes torch import it in a training that compiles nothing: torchvision, timm, an optimiser's first step.
BEFORE = """
import sys
from wsurgery.lazy_dynamo import put_off, without_dtensor
put_off()
import torch, torchvision, timm
with without_dtensor():
    import timm.optim
weights = torch.ones(3, requires_grad=True)
optimiser = timm.optim.create_optimizer_v2([weights], "adam", lr=0.1)
def step():
    optimiser.zero_grad()
    (weights * torch.arange(3.0)).sum().backward()
    optimiser.step()
step()
assert "torch._dynamo.convert_frame" not in sys.modules and "sympy" not in sys.modules
"""
# Each of them makes the stand-in leave.
MAKES_WAY = {
    "compile": "double = torch.compile(lambda x: x * 2 + 1, backend='eager')\nassert double(torch.ones(2)).tolist() == [3, 3]",
    "attribute": "torch._dynamo.reset()",
    "from-import": "from torch._dynamo import reset",
    "submodule": "import torch._dynamo.eval_frame as m\nassert m.innermost_fn",
    "from-submodule": "from torch._dynamo.utils import counters",
    "is-supported": "from torch._dynamo.utils import is_compile_supported\nassert is_compile_supported('cpu') in (True, False)",
    "config": "assert torch._dynamo.config.recompile_limit > 0",
    "class": "torch._dynamo.disable(torch.nn.Linear(2, 2))",
}
AFTER = """
from types import ModuleType
import torch._dynamo, torch._dynamo.config, torch._dynamo.utils, torch._dynamo.eval_frame
for name, module in list(sys.modules.items()):
    if name.startswith("torch._dynamo"):
        assert "lazy_dynamo" not in type(module).__module__, (name, type(module))
assert sys.modules["torch._dynamo"] is torch._dynamo and torch._dynamo.eval_frame is sys.modules["torch._dynamo.eval_frame"]
assert torch._dynamo.config.cache_size_limit == 1_000_000  # as timm's kron set it while it was a stand-in's
assert not any("lazy_dynamo" in type(finder).__module__ for finder in sys.meta_path)
step()
assert torch.allclose(weights.detach(), torch.tensor([1, 0.8, 0.8]))
tripled = torch.compile(lambda x: x * 3, backend="eager", fullgraph=True)
assert tripled(torch.ones(2)).tolist() == [3, 3]
"""


@pytest.mark.slow
@pytest.mark.parametrize("asked", MAKES_WAY)
def test_the_stand_in_makes_way_whatever_is_asked_for(asked):
    found = subprocess.run([sys.executable, "-c", BEFORE + MAKES_WAY[asked] + AFTER], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_a_process_that_compiles_imports_torch_s_own():
    found = subprocess.run(
        [sys.executable, "-c", BEFORE + MAKES_WAY["compile"] + AFTER], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.slow
def test_nothing_is_put_off_that_is_there():
    script = "import torch._dynamo, sys; from wsurgery.lazy_dynamo import put_off; put_off(); import torchvision, timm.optim; "
    script += "assert type(sys.modules['torch._dynamo']).__name__ == 'module' and torch._dynamo.reset() is None"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_train_and_eval_import_nothing_that_they_do_not_use(tmp_path, invoke):
    checkpoint, run, data = tmp_path / "net.safetensors", tmp_path / "run", "synthetic:fundus?n=40&size=32"
    invoke("init", "cbr_tiny", "--width", "0.125", "--num-classes", "5", "-o", checkpoint)
    for arguments in (
        ["train", checkpoint, "--data", data, "--steps", "2", "--batch-size", "8", "-o", run],
        ["eval", run, "--data", data],
    ):
        typed = [sys.executable, "-X", "importtime", "-m", "wsurgery", *map(str, arguments)]
        told = subprocess.run(typed, capture_output=True, text=True, check=True).stderr
        names = {line.rpartition("|")[2].strip() for line in told.splitlines() if line.startswith("import time:")}
        assert {"torch", "timm"} <= names
        assert not names.intersection(NEVER), names.intersection(NEVER)
