"""Composable checkpoint surgery on safetensors files.

`wsurgery.open("a.safetensors")` and the edits that are its methods are `wsurgery.pipeline`; `train`, `evaluate`, `cca`, `path`
and `compare` are `wsurgery.studies`. Both are imported when they are asked for.
"""

from importlib import import_module

__version__ = "0.1.0"

_STUDIES = ("cca", "compare", "evaluate", "path", "train")


def __getattr__(name: str) -> object:
    from importlib.util import find_spec  # takes longer to import than all else here

    if name.startswith("_") or find_spec(f"{__name__}.{name}"):  # a module, which import finds by itself
        raise AttributeError(f"wsurgery has no {name!r}")
    if name in _STUDIES:
        return _of_studies(name)
    pipeline = import_module("wsurgery.pipeline")
    if name in ("open", "Pipeline"):
        return getattr(pipeline, name)
    found = pipeline.function(name)
    if found is None:
        raise AttributeError(f"wsurgery has no {name!r}")
    return found


def _of_studies(name: str) -> object:
    try:
        return getattr(import_module("wsurgery.studies"), name)
    except ModuleNotFoundError as error:
        from wsurgery.extras import remedy

        if said := remedy(error):
            error.msg = f"wsurgery.{name} {said}"
        raise


def __dir__() -> list[str]:
    return sorted(["__version__", "Pipeline", "open", *_STUDIES, *import_module("wsurgery.pipeline").functions()])
