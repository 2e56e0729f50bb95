"""What stands beside the weights in a folder of the Hugging Face hub, and goes along into an output folder."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from wsurgery.checkpoint.reader import Checkpoint
from wsurgery.checkpoint.shards import WHOLE
from wsurgery.errors import WsurgeryError, printable
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


class Companions(NamedTuple):
    """Files to write beside the weights, by name, and what is to be said of others."""

    files: dict[str, bytes]
    said: list[str]


def model_folder(path: Path | None, *, renamed: bool = False) -> ModelFolder | None:
    """Return the folder of a whole model: one of shards, or that of a `model.safetensors`; None for any other file."""
    if path is None or not (path.is_dir() or path.name == WHOLE):
        return None
    return ModelFolder(path if path.is_dir() else path.parent, renamed)


def companions(model: ModelFolder, there: Callable[[str], bool], *, more: Sequence[str] = ()) -> Companions:
    """Return the settings and the licence to write beside the weights.

    Args:
        model: the folder of the input.
        there: says of a name whether the output folder has it already, and it is to be left alone.
        more: names of other files that go along.
    """
    patterns = (*more, *_OTHERS) if model.renamed else (*more, *_MODEL, *_OTHERS)
    files: dict[str, bytes] = {}
    said = []
    for path in sorted(model.path.iterdir()):
        wanted = any(fnmatchcase(path.name, pattern) for pattern in patterns) and path.is_file()
        if not wanted or there(path.name):
            continue
        if (own := _inside(path, model.path)) is None:
            said.append(f"{printable(str(path))} leads out of its folder, and does not go along: copy the file there")
            continue
        try:
            files[path.name] = read_regular(own, _LARGEST)
        except WsurgeryError as error:  # too large to be what its name says
            said.append(f"{error}: it does not go along")
    return Companions(files, said)


def _inside(path: Path, folder: Path) -> Path | None:
    """Return the file that a name in a folder stands for, if it lies there, or where huggingface_hub's cache keeps contents.

    Whoever made the folder may have made a link to what only its user can read.
    """
    real, home = path.resolve(), folder.resolve()
    blobs = [each.parent.parent / "blobs" for each in (home, *home.parents) if each.parent.name == "snapshots"]
    return real if real.is_relative_to(home) or real.parent in blobs else None


def left_behind(source: Checkpoint | None) -> list[str]:
    """Say of a whole model at an address what does not go along with its weights: there are as many ways to list as stores."""
    if source is None or source.url is None or not source.url.endswith(("/", f"/{WHOLE}")):
        return []
    return [f"{source.label}: settings and a licence that may lie there do not go along: copy them yourself"]
