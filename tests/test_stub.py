"""`wsurgery/__init__.pyi`, from which editors and type checkers know the methods: written from the edits' own signatures.

`python tests/test_stub.py` writes it; the test demands that it is what would be written.
"""

import inspect
import os
import subprocess
import sys
import textwrap
import types
import typing
from pathlib import Path
from typing import Any, Literal

import pytest

from wsurgery.operations.declaration import Edit, Parameter
from wsurgery.pipeline import Pipeline, is_function, signature
from wsurgery.pipeline import open as open_pipeline
from wsurgery.registry import edits

ROOT = Path(__file__).parents[1]
STUB = ROOT / "wsurgery" / "__init__.pyi"
HEAD = '''"""Composable checkpoint surgery on safetensors files. Written by tests/test_stub.py: do not edit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from torch import nn

__version__: str

class _Module(Protocol):
    def state_dict(self) -> Any: ...

Source: TypeAlias = "str | Path | Pipeline | Mapping[str, Any] | _Module"  # a file or URL; edits; what is in memory
Model: TypeAlias = str | Callable[..., nn.Module]  # FILE.py:CALLABLE, package.module:CALLABLE, or the callable

# What wsurgery.studies has; the options are there.
def train(init: Source, *, data: str | Path, output: str | Path, **options: Any) -> tuple[Path, dict[str, Any]]: ...
def evaluate(checkpoint: Source, *, data: Any, **options: Any) -> dict[str, Any]: ...
def cca(a: Source, b: Source | None = None, **options: Any) -> dict[str, Any]: ...
def path(a: Source, b: Source, *, data: str | Path, **options: Any) -> dict[str, Any]: ...
def compare(a: str | Path, b: str | Path, **options: Any) -> dict[str, Any]: ...

'''
SELECTORS = {
    "upto": "str | None", "blocks": "str | Sequence[str] | None", "role": "str | Sequence[str] | None",
    "only": "str | Sequence[str] | None", "except_": "str | Sequence[str] | None",
    "block_map": "str | Path | Mapping[str, str | Sequence[str]] | None",
}  # fmt: skip


def written(hint: Any) -> str:
    """Write a type as source."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(written(kind) for kind in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return f"Literal[{', '.join(map(repr, typing.get_args(hint)))}]".replace("'", '"')
    if hint is types.NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def annotation(name: str, parameter: Parameter | None) -> str:
    if parameter is None:
        return SELECTORS.get(name, "int" if name == "seed" else "Source")
    if parameter.is_input:
        return "Source" if parameter.required or parameter.is_many else "Source | None"
    listed = (parameter.info.metavar or "").endswith(",...")
    also = ["Sequence[object]"] if listed else [written(kind) for kind in parameter.extra if isinstance(kind, type)]
    return " | ".join([*also, written(parameter.hint)])


def declared(edit: Edit, *, method: bool) -> str:
    """Write an edit as a function, with its help."""
    words = ["self"] if method else []
    for name, parameter in signature(edit, method=method).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            words.append(f"*{name}: Source")
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not any(word.startswith("*") for word in words):
            words.append("*")
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}".replace("'", '"')
        words.append(f"{name}: {annotation(name, edit.parameters.get(name))}{default}")
    arguments = "".join(f"    {word},\n" for word in words)
    quotes = 'r"""' if "\\" in edit.__doc__ else '"""'
    return f"def {edit.name.replace('-', '_')}(\n{arguments}) -> Pipeline:\n" + textwrap.indent(
        f'{quotes}{edit.__doc__}\n"""\n', "    "
    )


def own(function: Any) -> str:
    """Write a function or method of wsurgery.pipeline as it stands there."""
    lines = inspect.getsource(function).splitlines()
    start = next(i for i, line in enumerate(lines) if line.rstrip().endswith(":"))
    head = "\n".join(lines[: start + 1]).replace('"', "") + "\n"
    body = textwrap.indent(f'"""{inspect.getdoc(function)}\n"""\n', "    ")
    return textwrap.dedent(head) + body


def text() -> str:
    methods = [own(Pipeline.__dict__[name]) for name in ("write", "tensors", "state_dict", "load", "load_into")]
    methods += [declared(edit, method=True) for edit in edits().values() if edit.flows]
    functions = [declared(edit, method=False) for edit in edits().values() if is_function(edit)]
    names = f'@property\ndef names(self) -> list[str]:\n    """{Pipeline.names.__doc__}"""\n'
    pipeline = f'"""{inspect.getdoc(Pipeline)}"""\n\n{names}'
    body = "\n".join([pipeline, *methods])
    stub = (
        HEAD + "class Pipeline:\n" + textwrap.indent(body, "    ") + "\n" + "\n".join([own(open_pipeline), *functions])
    )
    formatted = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", "x.pyi", "-"],
        input=stub, capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    return formatted.stdout


def test_it_is_what_the_edits_say():
    assert STUB.read_text() == text(), "python tests/test_stub.py writes it anew"


def examples() -> list[str]:
    """The Python on the page about Python."""
    return [part.partition("```")[0] for part in (ROOT / "docs" / "python.md").read_text().split("```python\n")[1:]]


def test_a_type_checker_takes_the_page_of_examples_and_no_mistake(tmp_path):
    page, config = tmp_path / "page.py", tmp_path / "mypy.ini"
    config.write_text("[mypy]\n[mypy-torch.*]\nfollow_imports = skip\n")  # half a minute's reading
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file", config, "--cache-dir", tmp_path / "cache", page]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    page.write_text("\n".join(examples()))
    done = subprocess.run(mypy, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout
    page.write_text(
        'import wsurgery\nwsurgery.open("a").meanvar(bn="wrong")\nwsurgery.open("a").scale()\nwsurgery.open("a").nothing()\n'
    )
    done = subprocess.run(mypy, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert [line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line] == ["2", "3", "4"], (
        done.stdout
    )


@pytest.mark.parametrize("code", examples())
def test_the_examples_run(code, tmp_path, monkeypatch, resnet):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(resnet.read_bytes())
    exec(compile(code, "docs/python.md", "exec"), {})


if __name__ == "__main__":
    STUB.write_text(text())
