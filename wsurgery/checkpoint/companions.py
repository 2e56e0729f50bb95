"""What stands beside the weights in a folder of the Hugging Face hub, and goes along into an output folder."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from wsurgery.checkpoint.shards import WHOLE
from wsurgery.errors import WsurgeryError
from wsurgery.untrusted import read_regular

_MODEL = ("config.json", "generation_config.json")  # of a library that knows the tensors by their names
_OTHERS = (
    "preprocessor_config.json", "processor_config.json", "image_processor.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template*", "LICEN[SC]E*", "COPYING*", "NOTICE*",
)  # fmt: skip
_LARGEST = 100_000_000  # bytes; tokenizers have up to 30,000,000


class ModelFolder(NamedTuple):
    """The folder of a whole model, and whether its tensors have other names by now: config.json is of the old ones."""

    path: Path
    renamed: bool = False


def model_folder(path: Path | None, *, renamed: bool = False) -> ModelFolder | None:
    """Return the folder of a whole model: one of shards, or that of a `model.safetensors`; None for any other file."""
    if path is None or not (path.is_dir() or path.name == WHOLE):
        return None
    return ModelFolder(path if path.is_dir() else path.parent, renamed)


def companions(model: ModelFolder, there: Callable[[str], bool]) -> dict[str, bytes]:
    """Return the settings and the licence to write beside the weights, by name.

    Args:
        model: the folder of the input.
        there: says of a name whether the output folder has it already, and it is to be left alone.
    """
    patterns = _OTHERS if model.renamed else (*_MODEL, *_OTHERS)
    found = {}
    for path in sorted(model.path.iterdir()):
        wanted = any(fnmatchcase(path.name, pattern) for pattern in patterns) and path.is_file()
        if wanted and not there(path.name):
            try:
                found[path.name] = read_regular(path, _LARGEST)
            except WsurgeryError:  # too large to be what its name says
                continue
    return found
