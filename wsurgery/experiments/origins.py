"""Where an arm's weights are from: the history of the checkpoint that its training began with, in words, and its sources."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from wsurgery.checkpoint import open_checkpoint
from wsurgery.checkpoint.provenance import History, Record
from wsurgery.errors import printable

_MOST = 400  # characters
_UNSAID = {"init": ("--num-classes",), "train": ("--data",)}  # options without which a record is understood


def origin(run: Path) -> str:
    """Say what was done to the weights that a run began with; empty where nobody knows.

    Raises:
        WsurgeryError: the checkpoint is broken.
    """
    return printable(in_words(_log(run)), _MOST)


def source_units(arms: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """Tell which seeds share a source network: seed → the first seed that shares it; seeds without any are left out.

    A source network is a trained one, or a file that wsurgery did not make. Seeds share theirs where any arm says so.

    Args:
        arms: the folders of the runs of each arm, named by their seeds.

    Raises:
        WsurgeryError: a checkpoint is broken.
    """
    first: dict[tuple[str, str], str] = {}
    units: dict[str, str] = {}
    for arm, seeds in arms.items():
        for run in seeds:
            for source in _sources(_log(run)):
                unit = units.setdefault(run.name, run.name)
                other = units[first.setdefault((arm, source), run.name)]
                units = {seed: other if of == unit else of for seed, of in units.items()}
    return units


def _log(run: Path) -> Sequence[Record]:
    path = run / "init.safetensors"
    if not path.is_file():
        return ()
    with open_checkpoint(path) as checkpoint:
        return History.of(checkpoint).log


def _sources(log: Sequence[Record]) -> Iterator[str]:
    for record in log:
        if record["command"] == "train":
            yield json.dumps(record, sort_keys=True)
        for given in record.get("inputs", []):
            if given.get("log"):
                yield from _sources(given["log"])
            elif "blake3" in given:
                yield given["blake3"]


def in_words(log: Sequence[Record]) -> str:
    """Write a history as `init resnet18, then transfuse --upto 100% of (init resnet18, then train on m.csv)`."""
    said = []
    for i, record in enumerate(log):
        inputs = record.get("inputs", [])
        others = inputs[1:] if i else inputs  # the first is what the record before left
        sources = [
            f"({in_words(each['log'])})" if each.get("log") else str(each.get("name", each.get("url")))
            for each in others
        ]
        words = [record["command"], *_options(record)]
        if record["command"] == "train":
            words += ["on", _value(record.get("arguments", []), "--data")]
        said.append(" ".join([*words, *(["of", ", ".join(sources)] if sources else [])]))
    return ", then ".join(said)


def _options(record: Record) -> list[str]:
    arguments, skipped = list(record.get("arguments", [])), _UNSAID.get(record["command"], ())
    if record["command"] == "train":
        return []
    kept, i = [], 0
    while i < len(arguments):
        if arguments[i] in skipped:
            i += 2
            continue
        kept.append(arguments[i])
        i += 1
    return kept


def _value(arguments: Sequence[str], option: str) -> str:
    return arguments[arguments.index(option) + 1] if option in arguments[:-1] else ""
