"""A model card for the Hugging Face hub, written from a checkpoint's history."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, TypedDict

from wsurgery import __version__
from wsurgery.buffers import BATCH_NORM_STATISTICS, is_buffer
from wsurgery.checkpoint.opening import is_run
from wsurgery.checkpoint.provenance import History, Record, as_pipeline, packages
from wsurgery.checkpoint.reader import Checkpoint
from wsurgery.checkpoint.trained import trained_on
from wsurgery.errors import printable
from wsurgery.untrusted import parse_json, read_regular

_NOT_REPLAYED = ("train", "recalibrate-bn")  # they need images
LICENCES = ("license", "modelspec.license")  # entries of the metadata
_HUB = re.compile(r"hf://([^/@]+/[^/@]+)")
_OF_RUN = ("best.safetensors", "last.safetensors")
_MAX_METRICS = 1 << 24  # bytes
# Which the hub takes for a licence in a card's front matter: https://huggingface.co/docs/hub/repositories-licenses
_LISTED = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
    cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
    fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research intel-research isc lgpl
    lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by
    ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""


def sources(history: History) -> list[str]:
    """Return the models of the hub that a checkpoint comes from, `org/name`, in the order of their first use."""
    urls = (str(given.get("url", "")) for given in _inputs(history.log))
    return list(dict.fromkeys(match[1] for url in urls if (match := _HUB.match(url))))


def model_card(
    checkpoint: Checkpoint, name: str, licences: Mapping[str, str] | None = None, *, path: Path | None = None
) -> str:
    """Write what was done to what, with the pipeline, digests, and the licence where it is known, as Markdown.

    Args:
        checkpoint: the weights.
        name: of the model.
        licences: of models of the hub that `sources` names, as the hub has them; it is one's own where nothing else was read.
        path: the file that it is a copy of; in the folder of a run, what the run says of itself is told. Default: its own.

    Raises:
        WsurgeryError: its history is not what wsurgery writes.
    """
    history, licences = History.of(checkpoint), licences or {}
    own = next((history.others[key] for key in LICENCES if key in history.others), None)
    models = sources(history)
    alone = len(models) == 1 and set(_origins(history.log)) == set(models)
    known = own or (licences.get(models[0]) if alone else None)
    listed = known.lower() if known and known.lower() in _LISTED.split() else "other"
    front = [f"license: {listed}"] if known else []
    if models:
        front += ["base_model:", *(f"- {json.dumps(model)}" for model in models)]
    parameters = sum(
        prod(tensor.shape)
        for part, tensor in ((name.rpartition(".")[2], tensor) for name, tensor in checkpoint.tensors.items())
        if tensor.dtype.startswith(("F", "BF", "C"))
        and part not in BATCH_NORM_STATISTICS
        and not is_buffer(part, tensor.shape)
    )
    architecture = (history.architecture or {}).get("name")
    about = [
        f"Architecture: {_code(str(architecture))}." if architecture else "",
        f"{len(checkpoint.tensors):,} tensors, {parameters:,} parameters.",
        f"Frozen in training: {', '.join(map(_code, history.freeze))}." if history.freeze else "",
        f"Licence: {_code(known)}." if known and known.lower() != listed else "",
    ]
    lines = ["---", *front, "tags:", "- wsurgery", "---", "", f"# {_text(name)}", "", " ".join(filter(None, about))]
    if training := list(_training(history, path or checkpoint.path)):
        lines += ["", "## How it was trained", "", *training]
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


def title_of(checkpoint: Checkpoint) -> str:
    """Return the name of a model: that of a run's folder (of one named by its seed, with its arm's), or else of the file."""
    path = checkpoint.path
    if path is None or path.name not in _OF_RUN or not is_run(path.parent):
        return Path(checkpoint.name or checkpoint.label).stem
    folder = path.resolve().parent
    return f"{folder.parent.name}-{folder.name}" if folder.name.isdigit() else folder.name


def _training(history: History, path: Path | None) -> Iterator[str]:
    """Say of the last training what its record says, and what stands in the folder of the run."""
    if found := trained_on(history.log):
        digest = f", digest of their rows `{found.digest}`" if found.digest else ""
        yield f"- images: {found.image_size} pixels a side, of the split {_code(found.split)}{digest}"
        if found.labels:
            yield f"- labels: {', '.join(map(_code, found.labels))}"
    if path is None or path.name not in _OF_RUN or not is_run(path.parent):
        return
    which = path.name.partition(".")[0]
    scored = _read(path.parent / "metrics.json", _Metrics).get(which, {})  # of init there is none
    if (auc := scored.get("macro_auc")) is not None:
        yield f"- macro AUC on {_code(found.eval_split if found else 'valid')}: {auc:.4f}, at step {scored.get('step', 0):,}"
    if which == "best" and (tested := _read(path.parent / "eval.json", _Eval)).get("macro_auc") is not None:
        interval = "{:.4f} to {:.4f}".format(*ci) if (ci := tested.get("macro_delong_ci")) else "no interval"
        yield (
            f"- macro AUC on {_code(tested.get('split', 'test'))}: {tested['macro_auc']:.4f} (95 %, DeLong: {interval}; "
            f"{tested.get('n', 0):,} images, {tested.get('units', 0):,} independent {_text(tested.get('independent', 'images'))})"
        )


class _Scored(TypedDict, total=False):
    step: int
    macro_auc: float | None


class _Metrics(TypedDict, total=False):
    best: _Scored
    last: _Scored


class _Eval(TypedDict, total=False):
    macro_auc: float | None
    macro_delong_ci: tuple[float, float] | None
    split: str
    n: int
    units: int
    independent: str


def _read(path: Path, kind: type[Any]) -> Any:
    return parse_json(read_regular(path, _MAX_METRICS), kind, printable(str(path))) if path.is_file() else {}


def _inputs(log: Sequence[Record]) -> Iterator[Record]:
    """Yield all that was read, in any of the logs, but what flowed through."""
    for record in log:
        for given in record.get("inputs", []):
            yield from _inputs(given.get("log", []))
            if given.get("url") or given.get("blake3") or given.get("log"):
                yield given


def _origins(log: Sequence[Record]) -> Iterator[str | None]:
    """Yield of each input that no log explains the model of the hub that it is of; None of one from elsewhere."""
    for i, record in enumerate(log):
        for given in record.get("inputs", []):
            # The records before say what flowed.
            flowed = i > 0 and not (given.get("url") or given.get("blake3") or "log" in given)
            if given.get("log"):
                yield from _origins(given["log"])
            elif not flowed:
                match = _HUB.match(str(given.get("url", "")))
                yield match[1] if match else None


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
