"""What the shell offers for an option's value after Tab: without torch and timm, whose import takes seconds."""

import re
import typing
from collections.abc import Iterable
from contextlib import suppress
from copy import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from wsurgery.anatomy import MAX_BLOCK_MAP, Selection, parse_block_map
from wsurgery.errors import WsurgeryError
from wsurgery.similarity.metric_names import METRICS
from wsurgery.untrusted import read_regular

_MODEL = r"^@register_model\n(?:@.*\n)*def (\w+)\("
_OPTIMISER = r"(?:OptimInfo\([^()']*|register_alias\()'(\w+)'"


def offered(name: str, annotation: Any) -> Any:
    """Return a parameter's annotation with what the shell offers for its value, if it is text of one of these names."""
    hint, *infos = typing.get_args(annotation) if typing.get_origin(annotation) is Annotated else (annotation,)
    if name not in _OFFERS or hint not in (str, str | None) or not infos:
        return annotation
    info = copy(infos[0])
    info.autocompletion = _OFFERS[name]
    return Annotated[hint, info]


def block(ctx: typer.Context, incomplete: str) -> list[str]:
    """Offer the blocks of the checkpoint that is on the line."""
    return _beginning(incomplete, _blocks(ctx))


def block_list(ctx: typer.Context, incomplete: str) -> list[str]:
    """Offer lists of those blocks, an entry after the last comma."""
    return _one_more(incomplete, _blocks(ctx))


def metric_list(incomplete: str) -> list[str]:
    """Offer lists of similarities."""
    return _one_more(incomplete, METRICS)


def optimizer(incomplete: str) -> list[str]:
    """Offer the names of timm's optimisers."""
    return _beginning(incomplete, _in_timm("optim/_optim_factory.py", _OPTIMISER))


def architecture(incomplete: str) -> list[str]:
    """Offer the networks of timm and of wsurgery."""
    from wsurgery.operations.architectures import CBR_FAMILY, RESNETS

    return _beginning(incomplete, sorted({*CBR_FAMILY, *RESNETS, *_in_timm("models/*.py", _MODEL)}))


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _one_more(incomplete: str, names: Iterable[str]) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    taken = before.split(",")
    return [f"{before}{comma}{name}" for name in _beginning(last, names) if name not in taken]


def _in_timm(files: str, pattern: str) -> list[str]:
    """Read names where timm's source registers them."""
    timm = find_spec("timm")
    folder = Path(timm.origin).parent if timm and timm.origin else Path()
    sources = folder.glob(files) if timm else ()
    return [name for file in sources for name in re.findall(pattern, file.read_text("utf-8"), re.MULTILINE)]


def _blocks(ctx: typer.Context) -> list[str]:
    """Read the blocks of the first checkpoint on the line that is a local file or folder; none where none can be read."""
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History

    own = ctx.params.get("block_map")
    words = [*ctx.params.values(), ctx.args]  # args: before an option without a value
    for word in filter(_is_local, _words(words)):
        # What is wrong the command itself says.
        with suppress(WsurgeryError, OSError), open_checkpoint(word) as checkpoint:
            map_ = parse_block_map(read_regular(own, MAX_BLOCK_MAP)) if own else History.of(checkpoint).blocks
            return list(dict.fromkeys(Selection(block_map=map_).place(checkpoint.tensors).values()))
    return []


def _words(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        yield from value if isinstance(value, (list, tuple)) else [value]


def _is_local(word: object) -> bool:
    return isinstance(word, str) and "://" not in word and (Path(word).is_file() or Path(word).is_dir())


_OFFERS = {"upto": block, "blocks": block_list, "metric": metric_list, "optimizer": optimizer, "arch": architecture}
