"""The names of timm's pretrained weights."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
from timm.models import get_deprecated_models, get_pretrained_cfg, is_model_pretrained

from wsurgery.anatomy.architecture import Architecture, pretrained_settings
from wsurgery.anatomy.blocks import Shapes
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.models.load import state_shapes


@dataclass(frozen=True)
class Pretrained:
    """Weights that timm knows.

    Attributes:
        name: of the architecture and the weights, `resnet50.a1_in1k`.
        architecture: of the architecture alone.
        repo: where they are on the Hugging Face hub; empty if they are at `url` instead.
        url: the address of a .pth file, or empty.
        settings: timm's pretrained_cfg.
    """

    name: str
    architecture: str
    repo: str
    url: str
    settings: dict[str, Any]


def find_pretrained(name: str) -> Pretrained:
    """Look weights up in timm's registry; without a tag, or by an old name, those that timm takes itself.

    Raises:
        UsageError: timm does not know them (similar ones are listed).
    """
    current = get_deprecated_models().get(name) or name
    if not is_model_pretrained(current):
        known = timm.list_pretrained()
        architecture = current.partition(".")[0]
        similar = [entry for entry in known if entry.partition(".")[0] == architecture]
        similar = similar or get_close_matches(current, known, n=5, cutoff=0.5)
        hint = f"; similar: {', '.join(similar[:8])}" if similar else ""
        raise UsageError(f"timm has no pretrained {printable(name)!r}{hint}; for a model of the hub write org/name")
    cfg: Any = get_pretrained_cfg(current)
    full = f"{cfg.architecture}.{cfg.tag}" if cfg.tag else cfg.architecture
    return Pretrained(full, cfg.architecture, cfg.hf_hub_id or "", cfg.url or "", pretrained_settings(cfg.to_dict()))


def download_url(url: str, *, offline: bool, progress: bool) -> Path:
    """Bring a .pth file into torch's own cache, as timm does, and check the hash that is in its name.

    Raises:
        WsurgeryError: it cannot be had, or came damaged.
    """
    from huggingface_hub import constants
    from timm.models._hub import check_cached_file, download_cached_file, get_cache_dir

    path = Path(get_cache_dir()) / url.rpartition("/")[2]
    if (offline or constants.HF_HUB_OFFLINE) and not path.exists():
        raise WsurgeryError(f"{printable(str(path))} is not in the cache: fetch it once while online")
    try:
        download_cached_file(url, progress=progress)
    except (OSError, RuntimeError) as error:  # RuntimeError: the hash
        reason = printable(str(error).splitlines()[0])
        raise WsurgeryError(f"{url} could not be downloaded ({reason}): try again") from None
    if not check_cached_file(url):
        raise WsurgeryError(f"{printable(str(path))} is damaged: delete it, then fetch again")
    return path


def require_fit(shapes: Shapes, architecture: Architecture) -> None:
    """Check that tensors are those of timm's network.

    Raises:
        WsurgeryError: they are not: of a few weights timm changes names and shapes when it loads them.
    """
    own = state_shapes(architecture, shapes)
    for name in sorted(own.keys() | shapes.keys()):
        if own.get(name) != shapes.get(name) and not name.endswith("num_batches_tracked"):
            here, there = (f"is {known[name]}" if name in known else "is not" for known in (shapes, own))
            raise WsurgeryError(
                f"{printable(name)} {here} in the file and {there} in timm's {printable(architecture['name'])}: timm "
                "rewrites these weights; save the state_dict() of timm.create_model(..., pretrained=True), then convert"
            )
