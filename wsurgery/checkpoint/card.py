"""A model card for the Hugging Face hub, written from a checkpoint's history."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod

from wsurgery import __version__
from wsurgery.checkpoint.provenance import History, Record, as_pipeline, packages
from wsurgery.checkpoint.reader import Checkpoint
from wsurgery.errors import printable

_NOT_REPLAYED = ("train", "recalibrate-bn")  # they need images
LICENCES = ("license", "modelspec.license")  # entries of the metadata
_HUB = re.compile(r"hf://([^/@]+/[^/@]+)")
_WORD = re.compile(r"[\w.+-]{1,100}")  # what a licence is called on the hub


def sources(history: History) -> list[str]:
    """Return the models of the hub that a checkpoint comes from, `org/name`, in the order of their first use."""
    urls = (str(given.get("url", "")) for given in _inputs(history.log))
    return list(dict.fromkeys(match[1] for url in urls if (match := _HUB.match(url))))


def model_card(checkpoint: Checkpoint, name: str, licences: Mapping[str, str] | None = None) -> str:
    """Write what was done to what, with the pipeline, digests, and the licence where it is known, as Markdown.

    Args:
        checkpoint: the weights.
        name: of the model.
        licences: of models of the hub that `sources` names, as the hub has them.

    Raises:
        WsurgeryError: its history is not what wsurgery writes.
    """
    history, licences = History.of(checkpoint), licences or {}
    own = next((history.others[key] for key in LICENCES if key in history.others), None)
    models = sources(history)
    known = own or (licences.get(models[0]) if len(models) == 1 else None)
    front = [f"license: {known}"] if known and _WORD.fullmatch(known) else []
    if models:
        front += ["base_model:", *(f"- {json.dumps(model)}" for model in models)]
    parameters = sum(prod(tensor.shape) for tensor in checkpoint.tensors.values())
    architecture = (history.architecture or {}).get("name")
    about = [
        f"Architecture: {_code(str(architecture))}." if architecture else "",
        f"{len(checkpoint.tensors):,} tensors, {parameters:,} elements.",
        f"Frozen in training: {', '.join(map(_code, history.freeze))}." if history.freeze else "",
    ]
    lines = ["---", *front, "tags:", "- wsurgery", "---", "", f"# {_text(name)}", "", " ".join(filter(None, about))]
    if history.log:
        pipeline = "\n".join(
            [
                *(
                    f"# {printable(command)} is of {printable(package)}"
                    for command, package in packages(history.log).items()
                ),
                as_pipeline(history.log),
            ]
        )
        fence = "`" * (max(map(len, re.findall("`+", pipeline)), default=0) + 3)
        lines += ["", "## How it was made", "", f"{fence}sh", pipeline, fence]
        trained = any(record["command"] in _NOT_REPLAYED for record in history.log)
        own_code = (history.architecture or {}).get("model")
        again = "" if trained or own_code else ", `wsurgery replay FILE` runs it again"
        lines += ["", f"`wsurgery log FILE` prints this{again}; wsurgery {__version__}."]
    if rows := list(dict.fromkeys(_row(given, licences) for given in _inputs(history.log))):
        lines += ["", "| from | BLAKE3 | licence |", "|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _inputs(log: Sequence[Record]) -> Iterator[Record]:
    """Yield all that was read, in any of the logs, but what flowed through."""
    for record in log:
        for given in record.get("inputs", []):
            yield from _inputs(given.get("log", []))
            if given.get("url") or given.get("blake3") or given.get("log"):
                yield given


def _row(given: Record, licences: Mapping[str, str]) -> str:
    match = _HUB.match(str(given.get("url", "")))
    licence = licences.get(match[1], "") if match else ""
    whole = given.get("blake3")
    digest = f"`{whole}`" if whole else f"`{given.get('header', '')}` of the header"
    return f"| {_code(str(given.get('url') or given['name']))} | {digest} | {_text(licence)} |"


def _text(words: str) -> str:
    """Escape what Markdown, or a table in it, takes for more than text."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", printable(words))


def _code(words: str) -> str:
    shown = printable(words).replace("|", "\\|")
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    return f"{fence}{shown}{fence}" if "`" not in shown else f"{fence} {shown} {fence}"
