"""The edit that docs/plug-ins.md shows, in a package of its own, installed beside wsurgery."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

PAGE = (Path(__file__).parents[1] / "docs" / "plug-ins.md").read_text()
CLIP = PAGE.partition("```python\n")[2].partition("```")[0]
IMPORTED = '\nimport pathlib\npathlib.Path(__file__).with_name("imported").touch()\n'
ONTO = '''
from typing import Annotated

from wsurgery.plugin import Checkpoint, Option, TensorEdit, edit


@edit()
def onto(checkpoint: Checkpoint, *, other: Annotated[Checkpoint, Option(metavar="FILE", help="Whose tensors it takes.")]):
    """Take all tensors from another.

    Example: wsurgery onto a.safetensors --other b.safetensors > c.safetensors
    """
    return [TensorEdit(each, other, each) for each in other.tensors.values()]
'''
ENTRY = PAGE.partition('[project.entry-points."wsurgery.commands"]\n')[2].partition("\n")[0].replace('"', "")


def install(folder, name: str, module: str, source: str, entry: str) -> None:
    """Make a wheel of one module and have pip install it in a folder."""
    wheel = folder.parent / f"{name.replace('-', '_')}-1.2-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-1.2.dist-info"
    files = {
        f"{module}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[wsurgery.commands]\n{entry}\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        archive.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-compile",
    ]
    subprocess.run([*pip, "--target", folder, wheel], check=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages") / "site"
    install(folder, "wsurgery-clip", "clip", CLIP + IMPORTED, ENTRY)
    install(folder, "wsurgery-onto", "onto", ONTO, "onto = onto:onto")
    install(folder, "broken-clip", "broken", "import nothing_like_it\n", "broken = broken:clip")
    return folder


@pytest.fixture
def run(site, resnet, monkeypatch):
    """Run a line of bash beside `resnet.safetensors`, with the packages installed or without."""

    def line(text: str, *, installed: bool = True) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(site) if installed else "", "COLUMNS": "200"}
        bash = ["bash", "-o", "pipefail", "-c", text]
        return subprocess.run(bash, cwd=resnet.parent, env=environment, capture_output=True, text=True, timeout=120)

    return line


def done(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_help_names_it_and_its_package_and_does_not_import_it(run, site):
    (site / "imported").unlink(missing_ok=True)
    shown = done(run("wsurgery --help"))
    listed = [["broken", "broken-clip"], ["clip", "wsurgery-clip"], ["onto", "wsurgery-onto"]]
    assert [line.split() for line in shown.partition("Plug-ins:")[2].strip().splitlines()] == [
        [*x, "1.2"] for x in listed
    ]
    assert not (site / "imported").exists()
    assert "clip" not in done(run("wsurgery --help", installed=False))
    shown = done(run("wsurgery clip --help"))
    assert "The largest magnitude." in shown
    assert all(option in shown for option in ("--upto", "--threads", "--dry-run", "--shard-size", "--quiet"))


def test_it_clips_the_selected_part_in_a_pipe(run, resnet):
    done(run("wsurgery clip resnet.safetensors --limit 0.25 --only 'layer1.*' | wsurgery scale --by 2 > y.safetensors"))
    before, after = load_file(resnet), load_file(resnet.parent / "y.safetensors")
    for name, x in before.items():
        running = name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
        expected = np.clip(x, -0.25, 0.25) if name.startswith("layer1.") and x.dtype == np.float32 else x
        np.testing.assert_array_equal(after[name], expected if running else expected * 2, err_msg=name)


def test_a_dry_run_says_what_would_change(run):
    shown = done(run("wsurgery clip resnet.safetensors --limit 0.1 --only 'fc.*' --dry-run"))
    assert shown.startswith("2 of 21 tensors would change, 330 of")


def test_threads_and_python_give_the_same_bytes(run, resnet):
    for threads in (1, 8):
        done(run(f"wsurgery clip resnet.safetensors --limit 0.25 --threads {threads} -o {threads}.safetensors"))
    python = 'import wsurgery; wsurgery.open("resnet.safetensors").clip(limit=0.25).write("method.safetensors")'
    done(run(f"{sys.executable} -c '{python}'"))
    assert len({(resnet.parent / f"{name}.safetensors").read_bytes() for name in ("1", "8", "method")}) == 1


def test_its_package_stands_in_the_history_and_replay_needs_it(run, resnet):
    done(run("wsurgery meanvar resnet.safetensors --seed 1 | wsurgery clip --limit 0.1 -o y.safetensors"))
    record = json.loads(done(run("wsurgery log y.safetensors --json")))[1]
    assert record["package"] == {"name": "wsurgery-clip", "version": "1.2"}
    assert done(run("wsurgery log y.safetensors")).splitlines() == [
        "# clip is of wsurgery-clip 1.2",
        "wsurgery meanvar resnet.safetensors --bn identity --seed 1 \\",
        "  | wsurgery clip --limit 0.1",
    ]
    assert done(run("wsurgery replay y.safetensors")) == "identical\n"
    refused = run("wsurgery replay y.safetensors", installed=False)
    assert refused.returncode == 2
    assert "clip of wsurgery-clip 1.2, which is not installed" in refused.stderr


def test_an_input_that_is_given_with_an_option_is_logged_and_replayed_so(run, resnet):
    done(run("wsurgery scale resnet.safetensors --by 2 | wsurgery onto --other resnet.safetensors > y.safetensors"))
    assert done(run("wsurgery log y.safetensors")).splitlines()[1:] == [
        "wsurgery scale resnet.safetensors --by 2.0 \\",
        "  | wsurgery onto - --other resnet.safetensors",
    ]
    assert done(run("wsurgery replay y.safetensors")) == "identical\n"


def test_its_bounds_hold_on_the_command_line_and_in_python(run):
    refused = run("wsurgery clip resnet.safetensors --limit -1 -o y.safetensors")
    assert refused.returncode == 2
    assert "--limit" in refused.stderr
    python = 'import wsurgery; wsurgery.open("resnet.safetensors").clip(limit=-1)'
    assert "--limit -1.0: at least 0" in run(f"{sys.executable} -c '{python}'").stderr


def test_a_broken_one_costs_a_line_and_no_other_command(run):
    refused = run("wsurgery broken resnet.safetensors")
    assert refused.returncode == 1
    assert refused.stderr == (
        "wsurgery: the plug-in broken of broken-clip 1.2 cannot be imported: "
        "ModuleNotFoundError: No module named 'nothing_like_it'\n"
    )
    assert done(run("wsurgery digest resnet.safetensors"))
