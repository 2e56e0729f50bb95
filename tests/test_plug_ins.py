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

from wsurgery.plugin import Array, Edit, edit

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
WRONG = '''
import sys
from typing import Annotated

import numpy as np

from wsurgery.plugin import Array, Checkpoint, Option, Tensor, TensorEdit, edit


def helped(x):
    return x + np.ones(3)  # in the file, below the edit


@edit(elementwise=True)
def wrong(x: Array, *, how: Annotated[str, Option()]) -> Array:
    """Go wrong."""
    return {"add": lambda: helped(x), "short": lambda: x[:1], "none": lambda: None, "exit": sys.exit}[how]()


@edit
def wrong_whole(x: Array, tensor: Tensor, *, how: Annotated[str, Option()]) -> Array:
    """Go wrong with whole tensors."""
    if tensor.name != "fc.weight":
        return x
    return {"flat": lambda: x.reshape(-1), "words": lambda: x.astype(str), "zero": lambda: 1 // 0}[how]()


@edit
def untyped(x: Array, *, how: list[list[int]]) -> Array:
    """Has a parameter that nobody knows."""
    return x


@edit()
def wrong_list(checkpoint: Checkpoint, *, how: Annotated[str, Option()]):
    """Go wrong with checkpoints."""
    def compute(x, run):
        return x[None] if how == "wider" else x[(10**9,) * x.ndim] if x.ndim else x

    edits = [TensorEdit(each, checkpoint, each, compute) for each in checkpoint.tensors.values()]
    return {"key": lambda: checkpoint.tensors["nothing"], "twice": lambda: edits * 2, "array": lambda: [np.ones(3)],
            "nothing": lambda: None}.get(how, lambda: edits)()
'''
WORDS = '''
from typing import Annotated

from wsurgery.plugin import Array, Option, edit


@edit(elementwise=True)
def own_words(
    x: Array,
    *,
    twice: Annotated[bool, Option()] = True,
    mode: Annotated[bool, Option("-f/-s", "--fast/--slow")] = False,
    plain: Annotated[bool, Option("--plain")] = True,
    maybe: bool | None = None,
    k: Annotated[int, Option("-k")] = 0,
    lambda_: float = 0.0,
    limit: float | None = 90.0,
    names: Annotated[list[str], Option("--name", "-n")] = ["a"],
) -> Array:
    """Add what its options say."""
    number = twice + 2 * mode + 4 * plain + 8 * (2 if maybe is None else maybe) + 32 * k + 1000 * lambda_
    return (x * 0 + number + 500 * len(names)).clip(None, limit)
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
    entries = "\n".join(
        f"{name} = wrong:{name.replace('-', '_')}" for name in ("wrong", "untyped", "wrong-whole", "wrong-list")
    )
    install(folder, "words", "words", WORDS, "own_words = words:own_words")
    install(folder, "wrong-edits", "wrong", WRONG, entries)
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


def test_help_has_its_sentence_below_its_package_and_does_not_import_it(run, site):
    (site / "imported").unlink(missing_ok=True)
    shown = done(run("wsurgery --help"))
    listed = {
        "broken-clip": {"broken": ""},
        "wrong-edits": {
            "untyped": "Has a parameter that nobody knows.",
            "wrong": "Go wrong.",
            "wrong-list": "Go wrong with checkpoints.",
            "wrong-whole": "Go wrong with whole tensors.",
        },
        "words": {"own_words": "Add what its options say."},
        "wsurgery-clip": {"clip": "Clip floating-point tensors to a range."},
        "wsurgery-onto": {"onto": "Take all tensors from another."},
    }
    found: dict[str, dict[str, str]] = {}
    for part in shown.split("Plug-ins of ")[1:]:
        package, *lines = part.strip().splitlines()
        found[package.removesuffix(" 1.2:")] = {
            name: text.strip() for name, _, text in (x.strip().partition(" ") for x in lines)
        }
    assert found == listed
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


def test_any_value_of_an_option_is_recorded_as_it_is_typed(run):
    given = {
        "": "--twice --plain -k 0 --lambda- 0.0 --limit 90.0 --name a",
        "twice=False": "--no-twice --plain -k 0 --lambda- 0.0 --limit 90.0 --name a",
        "mode=1": "--twice --fast --plain -k 0 --lambda- 0.0 --limit 90.0 --name a",
        "maybe=False": "--twice --plain --no-maybe -k 0 --lambda- 0.0 --limit 90.0 --name a",
        "maybe=True, k=-3": "--twice --plain --maybe -k -3 --lambda- 0.0 --limit 90.0 --name a",
        "lambda_=.5, limit=7e3": "--twice --plain -k 0 --lambda- 0.5 --limit 7000.0 --name a",
        "names=['b', 'c']": "--twice --plain -k 0 --lambda- 0.0 --limit 90.0 --name b --name c",
    }
    calls = "".join(f".own_words({words})" for words in given)
    python = f"import wsurgery; wsurgery.open('resnet.safetensors'){calls}.write('called')"
    done(run(f'{sys.executable} -c "{python}"'))
    log = done(run("wsurgery log called"))
    stages = [line.removesuffix(" \\") for line in log.replace(" resnet.safetensors", "").splitlines()[1:]]
    assert [stage.partition("own_words ")[2] for stage in stages] == list(given.values())
    done(run(f"{log.rstrip()} > typed; cmp called typed"))
    assert done(run("wsurgery replay called")) == "identical\n"


def test_what_a_history_could_not_say_is_refused(run):
    said = {
        "limit=None": "--limit None: no command line says so",
        "plain=False": "--plain False: no command line says so",
        "names=[]": "--name []: no command line says so",
        "twice=None": "--twice None: no command line says so",
        "mode=2": "--fast 2: True or False is needed",
    }
    tries = "".join(f"\ntry: a.own_words({given})\nexcept UsageError as error: print(error)" for given in said)
    code = f"import wsurgery\nfrom wsurgery.errors import UsageError\na = wsurgery.open('resnet.safetensors'){tries}"
    lines = done(run(f'{sys.executable} -c "{code}"')).splitlines()
    assert [line.partition(",")[0] for line in lines] == list(said.values())


def test_a_replay_with_another_version_of_the_package_says_so(run, resnet):
    done(run("wsurgery clip resnet.safetensors --limit 0.1 -o y.safetensors"))
    content = (resnet.parent / "y.safetensors").read_bytes()
    assert content.count(b'\\"version\\":\\"1.2') == 1
    (resnet.parent / "y.safetensors").write_bytes(content.replace(b'\\"version\\":\\"1.2', b'\\"version\\":\\"1.1'))
    assert run("wsurgery replay y.safetensors").stdout == (
        "different: every tensor is identical, the header is not: it was made by wsurgery-clip 1.1, this is wsurgery-clip 1.2\n"
    )


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
        "wsurgery: the plug-in broken of broken-clip 1.2 cannot be imported: broken.py, line 1: "
        "ModuleNotFoundError: No module named 'nothing_like_it'\n"
    )
    assert done(run("wsurgery digest resnet.safetensors"))


ADD, WHOLE = WRONG[: WRONG.index("# in the file")].count("\n") + 1, WRONG[: WRONG.index("1 // 0")].count("\n") + 1
LIST = WRONG[: WRONG.index("x[(10")].count("\n") + 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "wrong --how add",
            "the plug-in wrong of wrong-edits 1.2 failed on bn1.bias, float32 (16,): "
            f"wrong.py, line {ADD}: ValueError: operands could not be broadcast together with shapes (16,) (3,)",
        ),
        (
            "wrong --how sideways",
            "failed on bn1.bias, float32 (16,): wrong.py, line {how}: KeyError: 'sideways'",
        ),
        ("wrong --how exit", "failed on bn1.bias, float32 (16,): wrong.py, line {how}: SystemExit"),
        ("wrong --how short", "bn1.bias was to become numbers (16,), and the edit made float32 (1,) of it"),
        ("wrong --how none", "bn1.bias was to become numbers (16,), and the edit made object () of it"),
        (
            "wrong-whole --how zero",
            f"failed on fc.weight, float32 (10, 32): wrong.py, line {WHOLE}: ZeroDivisionError: integer division",
        ),
        ("wrong-whole --how flat", "fc.weight was to become numbers (10, 32), and the edit made float32 (320,) of it"),
        ("wrong-whole --how words", "fc.weight was to become numbers (10, 32), and the edit made <U32 (10, 32) of it"),
        (
            "wrong-list --how index",
            f"failed on bn1.bias, float32 (16,): wrong.py, line {LIST}: IndexError: index 1000000000 is out of bounds",
        ),
        (
            "wrong-list --how wider",
            "bn1.num_batches_tracked was to become int64 (), and the edit made int64 (1,) of it",
        ),
        (
            "wrong-list --how key",
            "the plug-in wrong-list of wrong-edits 1.2 failed: wrong.py, line {key}: KeyError: 'nothing'",
        ),
        (
            "wrong-list --how twice",
            "wrong-list made bn1.num_batches_tracked twice: an edit of checkpoints returns a list of TensorEdit",
        ),
        ("wrong-list --how array", "wrong-list returned a list with a ndarray in it: an edit of checkpoints returns"),
        (
            "wrong-list --how nothing",
            "wrong-list returned a NoneType: an edit of checkpoints returns a list of TensorEdit",
        ),
    ],
)
def test_what_it_raises_is_one_line_that_names_it_the_tensor_and_the_line(line, said, run, resnet):
    how, key = (WRONG[: WRONG.index(text)].count("\n") + 1 for text in ("sys.exit}", '["nothing"]'))
    refused = run(f"wsurgery {line} -o {(target := 'never.safetensors')} resnet.safetensors")
    assert refused.returncode == 1
    assert said.replace("{how}", str(how)).replace("{key}", str(key)) in refused.stderr
    assert refused.stderr.startswith(f"wsurgery {line.split()[0]}: ")
    assert refused.stderr.count("\n") == 1
    assert (".py" in said) == refused.stderr.endswith("; --debug shows the traceback\n")
    assert not [path for path in resnet.parent.iterdir() if target in path.name]


def test_debug_shows_where_it_was_raised(run):
    refused = run("wsurgery wrong --how add resnet.safetensors -o never.safetensors --debug")
    assert refused.returncode == 1
    assert f'wrong.py", line {ADD}, in helped' in refused.stderr
    assert "Traceback" in refused.stderr


def test_in_python_the_error_is_its_own(run):
    python = 'import wsurgery; wsurgery.open("resnet.safetensors").wrong(how="sideways").write("never.safetensors")'
    assert run(f"{sys.executable} -c '{python}'").stderr.endswith("KeyError: 'sideways'\n")


def test_the_decorator_has_parentheses_or_none():
    def halve(x: Array) -> Array:
        """Halve."""
        return x / 2

    def f(x):
        return x

    bare, called = edit(halve), edit()(halve)
    assert isinstance(bare, Edit)
    assert (bare.name, list(bare.parameters), bare.of_tensors) == (
        called.name,
        list(called.parameters),
        called.of_tensors,
    )
    with pytest.raises(TypeError, match="the edit f has a parameter x without a type of its own"):
        edit(f)


def test_a_type_of_which_no_option_can_be_made_is_one_line(run):
    refused = run("wsurgery untyped resnet.safetensors --how 1 -o never.safetensors")
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        "wsurgery: the plug-in untyped of wrong-edits 1.2 has parameters of which no options can be made: "
    )
    assert refused.stderr.count("\n") == 1
