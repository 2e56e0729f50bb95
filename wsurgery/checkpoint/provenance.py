"""The history that every checkpoint carries in its `__metadata__`, under the key `wsurgery`.

`{"architecture": {"name", "num_classes", "in_chans", "args", "model"}, "blocks": {name: [globs]}, "freeze": [globs], "log":
[records]}`. `model` is what `--model` said, `blocks` what `--block-map` did, in order. One record is
`{"command", "arguments", "seed", "version", "inputs": [...]}`, and that of `train` says on which data, too: see
`wsurgery.checkpoint.trained`. An input without a history of its own is recorded by
name, size and digest, or, read at a URL, by the URL and the digest of its header; one with a history by the digest of its
header, which carries the chain. So a pipe and the same steps through files give the same bytes. Nothing depends on the
time, the host or an absolute path.
"""

import json
import shlex
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, zip_longest
from pathlib import Path
from typing import Any

from wsurgery import __version__
from wsurgery.checkpoint.digest import Digest, FilesDigest, bytes_digest, file_digest
from wsurgery.checkpoint.opening import STDIN
from wsurgery.checkpoint.reader import Checkpoint
from wsurgery.errors import WsurgeryError

KEY = "wsurgery"
Record = dict[str, Any]
# Commands whose records do not say with which options inputs are given, because their bytes were promised before records did.
WITHOUT_OPTIONS: Mapping[str, list[str]] = {"transfuse": ["--into", ""]}
_PIPE = " \\\n  | "
_NOT_RAW = "'\\!"  # what ends a quote, escapes, or recalls an earlier line


@dataclass(frozen=True)
class History:
    """What the `wsurgery` entry says, and the entries of other tools, which are kept."""

    architecture: dict[str, Any] | None = None
    freeze: tuple[str, ...] = ()
    log: tuple[Record, ...] = ()
    others: Mapping[str, str] = field(default_factory=dict)
    blocks: Mapping[str, Sequence[str]] | None = None  # a user's own: block name → globs of tensor names

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "History":
        """Read the history of an open checkpoint.

        Raises:
            WsurgeryError: the entry is not what wsurgery writes.
        """
        if isinstance(checkpoint, Unmade):
            return checkpoint.history
        metadata = dict(checkpoint.header.metadata)
        text = metadata.pop(KEY, None)
        if text is None:
            return cls(others=metadata)
        from wsurgery.checkpoint.records import parse_entry

        try:
            entry = parse_entry(text)
        except WsurgeryError:
            raise WsurgeryError(f"{checkpoint.label} has a {KEY!r} metadata entry that is not wsurgery's") from None
        freeze, log = tuple(entry.get("freeze", [])), tuple(entry.get("log", []))
        return cls(entry.get("architecture"), freeze, log, metadata, entry.get("blocks"))

    def metadata(self, *, draft: bool = False) -> dict[str, str]:
        """Return the whole `__metadata__`; `format` = `pt` is added for other tools where it is missing.

        Digests of inputs are waited for. A draft only starts them and has zeros in their place: it is as long.
        """
        entry: dict[str, Any] = {"log": list(self.log)}
        if self.architecture:
            entry["architecture"] = self.architecture
        if self.blocks:
            entry["blocks"] = self.blocks
        if self.freeze:
            entry["freeze"] = list(self.freeze)

        def digits(digest: Digest) -> str:
            digest.start()
            return "0" * 64 if draft else digest.result()

        def words(key: str) -> str:
            in_order = key == "blocks"  # in which data meets them
            value = json.dumps(entry[key], separators=(",", ":"), sort_keys=not in_order, default=digits)
            return f'"{key}":{value}'

        return {"format": "pt", **self.others, KEY: f"{{{','.join(map(words, sorted(entry)))}}}"}

    def aliases(self, tensors: Collection[str]) -> dict[str, str]:
        """Name the tied tensors: alias → the one of `tensors` that it is, as `safetensors.torch.save_model` records it."""
        pairs = self.others.items()
        return {name: kept for name, kept in pairs if kept in tensors and name not in tensors and name != "format"}

    def count(self, command: str) -> int:
        """How often `command` stands in the log: a second shuffle must not repeat the first one's draws."""
        return sum(record["command"] == command for record in self.log)

    def with_architecture(self, **changes: Any) -> "History":
        """Return the history with entries of the architecture changed, where it is known."""
        return replace(self, architecture={**self.architecture, **changes}) if self.architecture else self

    def then(self, record: Record) -> "History":
        """Return the history with one more record.

        Raises:
            WsurgeryError: it would be longer, or deeper, than a file's may be.
        """
        log = (*self.log, record)
        # Else there is nothing to bound, nor to import for.
        if self.log or any("log" in given for given in record["inputs"]):
            from wsurgery.checkpoint.records import require_bounded

            require_bounded(log)
        return replace(self, log=log)


class Unmade(Checkpoint):
    """A checkpoint that is still to be made, and knows what its file will say of itself.

    Attributes:
        history: its history.
    """

    history: History

    def header_digest(self) -> Digest:
        """Give BLAKE3 of its header, which is known when the digests of its inputs are."""
        raise NotImplementedError


def make_record(
    command: str,
    arguments: Sequence[str],
    *,
    seed: int | None,
    inputs: Sequence[Record],
    package: Mapping[str, str] | None = None,
) -> Record:
    """Describe one run of a command.

    Args:
        command: the subcommand's name.
        arguments: its arguments as typed in a shell, without input and output files, seed and threads.
        seed: the seed that it drew from, None where it drew nothing.
        inputs: what `describe_input` says of each input, the one that flows through first.
        package: name and version of the package that the command comes from, if that is not wsurgery.
    """
    record: Record = {"command": command, "arguments": list(arguments), "version": __version__, "inputs": list(inputs)}
    more = {"seed": seed, "package": package}
    return record | {key: value for key, value in more.items() if value is not None}


def describe_input(checkpoint: Checkpoint, history: History, *, flows: bool, option: str = "") -> Record:
    """Describe an input for a record.

    Args:
        checkpoint: the open input.
        history: its history.
        flows: whether its log goes on in the output. If it does not, its log is kept inside the description, so that
            every parent can be traced.
        option: that it is given with: `--into`.
    """
    described = _described(checkpoint, history, flows=flows)
    return {**described, "option": option} if option else described


def _described(checkpoint: Checkpoint, history: History, *, flows: bool) -> Record:
    in_memory = checkpoint.path is None and checkpoint.url is None
    if flows and (history.log or in_memory or not checkpoint.seekable):
        return {"name": STDIN, "header": _header_digest(checkpoint)}
    if checkpoint.url is not None:  # read in parts: it has no digest without downloading all of it
        size = len(checkpoint.header_bytes) + sum(tensor.nbytes for tensor in checkpoint.tensors.values())
        header = _header_digest(checkpoint)
        remote: Record = {"name": checkpoint.name, "size": size, "header": header, "url": checkpoint.url}
        return {**remote, "log": list(history.log)} if history.log and not flows else remote
    if checkpoint.path is None or not checkpoint.seekable:
        return {"name": STDIN, "header": _header_digest(checkpoint), "log": list(history.log)}
    described: Record = {
        "name": checkpoint.name,
        "size": sum(file.stat().st_size for file in checkpoint.files),
        "blake3": FilesDigest(checkpoint.files),
    }
    return {**described, "log": list(history.log)} if history.log and not flows else described


def _header_digest(checkpoint: Checkpoint) -> str | Digest:
    return checkpoint.header_digest() if isinstance(checkpoint, Unmade) else bytes_digest(checkpoint.header_bytes)


def describe_file(path: Path) -> Record:
    """Describe an input that is one file of any format, for a record."""
    return {"name": path.name, "size": path.stat().st_size, "blake3": file_digest(path)}


def as_pipeline(log: Sequence[Record], runs: Iterator[int] | None = None) -> str:
    """Write a log as the bash pipeline that it records.

    A file that was made by wsurgery is shown as `<(its pipeline)`. Training reads a file and writes a folder, so it ends
    one pipeline and begins another: `INIT1.safetensors` and `RUN1` stand for files that the log does not name.

    Args:
        log: the records.
        runs: numbers for the training runs in it; nested logs share them.
    """
    runs = count(1) if runs is None else runs
    lines: list[str] = []
    stages: list[str] = []
    for record in log:
        words = ["wsurgery", record["command"]]
        files = [_input_word(given, runs) for given in record.get("inputs", [])]
        words += map(_word, record.get("arguments", []))
        if "seed" in record:
            words += ["--seed", str(record["seed"])]
        if record["command"] == "train":
            run = next(runs)
            if stages:
                files = [f"INIT{run}.safetensors"]
                lines.append(f"{_PIPE.join(stages)} > {files[0]}")
            lines.append(" ".join([*with_files({"command": "train"}, words, files), "-o", f"RUN{run}"]))
            stages = [f"cat RUN{run}/{_word(record.get('output', 'last.safetensors'))}"]
        else:
            stages.append(" ".join(with_files(record, words, files)))
    return "\n".join([*lines, _PIPE.join(stages)])


def packages(log: Sequence[Record]) -> dict[str, str]:
    """Return the commands in a log, and in the logs of its inputs, that other packages bring: name → package and version."""
    found: dict[str, str] = {}
    waiting = deque(log)
    while waiting:
        record = waiting.popleft()
        if package := record.get("package"):
            found[record["command"]] = f"{package['name']} {package['version']}"
        waiting += [each for given in record.get("inputs", []) for each in given.get("log", [])]
    return found


def _input_word(given: Record, runs: Iterator[int]) -> str:
    if given.get("log"):
        return f"<({as_pipeline(given['log'], runs)})"
    return _word(given.get("url") or given["name"])


def _word(text: str) -> str:
    """Quote a word for bash; of characters that drive a terminal, in $'...', each byte by its number."""
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(c if c.isprintable() and c not in _NOT_RAW else _escaped(c) for c in text)}'"


def _escaped(character: str) -> str:
    try:
        content = character.encode(errors="surrogateescape")  # of a file's name that is not UTF-8
    except UnicodeEncodeError:
        content = character.encode(errors="surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in content)


def with_files(record: Record, words: list[str], files: list[str]) -> list[str]:
    """Put the input files of a record where its command takes them among its `words` (program, command, arguments)."""
    command, options = record["command"], [given.get("option", "") for given in record.get("inputs", [])]
    if command == "fetch":  # its name is an argument; its input is what was downloaded
        return words
    if command in WITHOUT_OPTIONS:
        options = WITHOUT_OPTIONS[command][-len(files) :]
    by_place = [file for file, option in zip_longest(files, options) if not option]
    by_option = [word for option, file in zip(options, files, strict=False) if option for word in (option, file)]
    if len(files) == 1:
        by_place = [name for name in by_place if name != STDIN]
    if command == "rename":  # whose patterns stand before it
        return [*words, *by_place]
    end = words.index("--") if "--" in words else len(words)
    return [*words[:2], *by_place, *words[2:end], *by_option, *words[end:]]
