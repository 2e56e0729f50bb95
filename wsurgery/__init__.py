"""Composable checkpoint surgery on safetensors files.

`wsurgery.open("a.safetensors")` and the edits that are its methods are `wsurgery.pipeline`, imported when they are asked for.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("_") or find_spec(f"{__name__}.{name}"):  # a module, which import finds by itself
        raise AttributeError(f"wsurgery has no {name!r}")
    pipeline = import_module("wsurgery.pipeline")
    if name in ("open", "Pipeline"):
        return getattr(pipeline, name)
    found = pipeline.function(name)
    if found is None:
        raise AttributeError(f"wsurgery has no {name!r}")
    return found


def __dir__() -> list[str]:
    return sorted(["__version__", "Pipeline", "open", *import_module("wsurgery.pipeline").functions()])
