"""Composable checkpoint surgery on safetensors files.

`wsurgery.open("a.safetensors")` and the edits that are its methods are `wsurgery.pipeline`, imported when they are asked for.
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    from wsurgery import pipeline

    if name in ("open", "Pipeline"):
        return getattr(pipeline, name)
    found = pipeline.function(name)
    if found is None:
        raise AttributeError(f"wsurgery has no {name!r}")
    return found


def __dir__() -> list[str]:
    from wsurgery.pipeline import is_function
    from wsurgery.registry import edits

    functions = [name.replace("-", "_") for name, edit in edits().items() if is_function(edit)]
    return sorted(["__version__", "Pipeline", "open", *functions])
