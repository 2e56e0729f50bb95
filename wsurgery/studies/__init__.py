"""What `train`, `eval`, `cca`, `path` and `compare` do, in Python: `wsurgery.train("a.safetensors", data="manifest.csv",
output="run")`.

The options have the commands' names and defaults, and the results are the commands' JSON, and the bytes of their files.
What the commands say on standard error comes as warnings; bad input raises a `WsurgeryError`, bad usage a `UsageError`.

A checkpoint is what the commands take (a file, a folder of shards or of a run, a URL), a `wsurgery.Pipeline`, which is then made,
or a network, which is copied, with the weights that it has: its mode, its device and its memory format stay as they are.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsurgery.studies._cca import NOT_FOR_ACTIVATIONS, cca, cca_text, require_for_activations
    from wsurgery.studies._compare import Comparison, compare, compare_runs
    from wsurgery.studies._evaluate import evaluate
    from wsurgery.studies._given import Say, Source, warn
    from wsurgery.studies._images import Images, load_images
    from wsurgery.studies._path import path
    from wsurgery.studies._train import Trained, silent, train

# Each is imported when it is asked for: activations of files are compared without torch.
_MODULES = {
    "_cca": ("NOT_FOR_ACTIVATIONS", "cca", "cca_text", "require_for_activations"),
    "_compare": ("Comparison", "compare", "compare_runs"),
    "_evaluate": ("evaluate",),
    "_given": ("Say", "Source", "warn"),
    "_images": ("Images", "load_images"),
    "_path": ("path",),
    "_train": ("Trained", "silent", "train"),
}

__all__ = [
    "NOT_FOR_ACTIVATIONS",
    "Comparison",
    "Images",
    "Say",
    "Source",
    "Trained",
    "cca",
    "cca_text",
    "compare",
    "compare_runs",
    "evaluate",
    "load_images",
    "path",
    "require_for_activations",
    "silent",
    "train",
    "warn",
]


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"wsurgery.studies has no {name!r}")
