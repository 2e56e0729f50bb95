"""Running a checkpoint's history again, and telling whether the bytes agree.

A history is untrusted input: only edits run, as one pipeline; their arguments name no file, and the files they read are
those of a folder that the user chose, checked against the digests that were recorded. What was read at a URL, or fetched,
is read there again only if the user says so. An edit of another package runs only where that is installed. They run in a
process of their own, which has so much time, memory and room: nothing else ends a regular expression.
"""

import faulthandler
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsurgery import __version__
from wsurgery.checkpoint.digest import FilesDigest, bytes_digest, file_digest, tensor_digests
from wsurgery.checkpoint.header import format_header
from wsurgery.checkpoint.opening import STDIN, open_checkpoint
from wsurgery.checkpoint.provenance import History, Record, with_files
from wsurgery.commands._edits import parsed
from wsurgery.ending import temporary_folder
from wsurgery.entry_points import fault
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.operations.declaration import Parameter
from wsurgery.operations.planning import Planned, plan
from wsurgery.operations.rewrite import rewrite
from wsurgery.progress import be_quiet, is_quiet
from wsurgery.registry import edits, find_edit, plug_ins

_MAX_STAGES = 64
_ROOM = 10  # times the size of the file, for all that is written
_LEAST_ROOM = 10**9  # bytes
_MEMORY = 2 << 30  # bytes, beside the room
# Isolated, so that no file of the working folder is imported; the path is this process's own.
_CHILD = "import sys; sys.path[:] = sys.argv[1:]; from wsurgery.replay import run_stages; run_stages()"
_OPTIONS_OF_FILES = ("-o", "--output", "--force")


@dataclass(frozen=True)
class Parent:
    """An input that is made again from a history of its own: `given` describes it, `stages` make it."""

    given: Record
    stages: "list[Stage]"


@dataclass(frozen=True)
class Stage:
    """One command of the pipeline. An input is a file, a URL, a parent, or None for what is piped in."""

    record: Record
    inputs: list[Path | str | Parent | None]


class _Room:
    """How many bytes may still be written."""

    def __init__(self, left: int) -> None:
        self._left = left

    def write(self, planned: Planned, path: Path) -> None:
        """Write a checkpoint, if there is room for it.

        Raises:
            WsurgeryError: there is none.
        """
        header = format_header(planned.tensors.values(), planned.history.metadata(draft=True))
        size = len(header) + sum(tensor.nbytes for tensor in planned.tensors.values())
        if size > self._left:
            raise WsurgeryError(
                f"its history writes {size:,} bytes more where {self._left:,} are left: add --room SIZE"
            )
        self._left -= size
        rewrite(planned, path)


def replay(
    path: Path,
    inputs: Sequence[Path],
    *,
    remote: bool,
    say: Callable[[str], None],
    timeout: int,
    room: int | None = None,
) -> str | None:
    """Run the history of a checkpoint again in a temporary folder.

    Args:
        path: the checkpoint.
        inputs: the folders in which the files that the history names are looked up: of several, the one with the digest.
        remote: whether URLs that the history names are read.
        say: gets what was taken as it is instead of being made again.
        timeout: seconds that the commands may take, all together.
        room: bytes that they may write. Default: ten times the size of the checkpoint, at least 1 GB.

    Returns:
        None if the bytes of the whole file agree, else where they do not.

    Raises:
        WsurgeryError: an input is missing or is another file, a command fails, or the time or the room is too little.
        UsageError: the history is one that cannot be run again.
    """
    if not path.is_file():
        raise UsageError(f"{printable(str(path))} is not a file: replay works on one file")
    with open_checkpoint(path) as checkpoint:
        log, label = History.of(checkpoint).log, checkpoint.label
    if not log:
        raise UsageError(f"{label} has no history: wsurgery did not make it")
    if _count(log) > _MAX_STAGES:
        raise UsageError(f"{label} has a history of {_count(log)} commands: replay runs at most {_MAX_STAGES}")
    stages = plan_stages(log, inputs, remote=remote, say=say)
    room = max(_LEAST_ROOM, _ROOM * path.stat().st_size) if room is None else room
    with temporary_folder("wsurgery-replay-") as folder:
        outcome = folder / "outcome"
        work = pickle.dumps((stages, path.absolute(), folder, log, room, timeout, is_quiet()))
        command = [sys.executable, "-I", "-c", _CHILD, *sys.path]
        try:
            done = subprocess.run(
                command, input=work, timeout=timeout, stdout=subprocess.DEVNULL, start_new_session=True
            )
        except subprocess.TimeoutExpired:
            raise WsurgeryError(f"{label} was not made again in {timeout} s: add --timeout SECONDS") from None
        if not outcome.exists():
            raise WsurgeryError(f"{label} was not made again: the process ended with status {done.returncode}")
        found: dict[str, Any] = json.loads(outcome.read_bytes())
    if "error" in found:
        raise (UsageError if found["usage"] else WsurgeryError)(found["error"])
    difference: str | None = found["difference"]
    return difference


def run_stages() -> None:
    """Run what `replay` planned, in a process of its own: from standard input, into a file of the folder."""
    try:
        stages, path, folder, log, room, timeout, quiet = pickle.load(sys.stdin.buffer)
    except (EOFError, pickle.UnpicklingError):  # whoever started this was ended before it had said all
        return
    be_quiet(quiet)
    _limit_memory(_MEMORY + room)
    with open(os.devnull, "w") as nowhere:  # also where whoever started this was killed, and while no Python code runs
        faulthandler.dump_traceback_later(timeout + 1, exit=True, file=nowhere)
        found: dict[str, Any]
        try:
            found = {"difference": _difference(stages, path, folder, log, _Room(room))}
        except WsurgeryError as error:
            found = {"error": str(error), "usage": isinstance(error, UsageError)}
        except OSError as error:
            found = {"error": f"{printable(str(error.filename or 'input/output'))}: {error.strerror}", "usage": False}
        except MemoryError:
            found = {"error": "out of memory", "usage": False}
        except Exception as error:  # whatever another package's code raises
            theirs = fault(error, "replay")
            if theirs is None:
                raise
            found = {"error": theirs, "usage": False}
        (folder / "outcome").write_text(json.dumps(found))
        faulthandler.cancel_dump_traceback_later()


def _limit_memory(size: int) -> None:
    if sys.platform != "win32":  # has no such limit
        import resource

        most = resource.getrlimit(resource.RLIMIT_DATA)[1]
        with suppress(ValueError, OverflowError):  # a system that takes none, or none as large
            if most == resource.RLIM_INFINITY or most > size:
                resource.setrlimit(resource.RLIMIT_DATA, (size, most))


def _difference(stages: Sequence[Stage], path: Path, folder: Path, log: Sequence[Record], room: _Room) -> str | None:
    again = folder / "again"
    with ExitStack() as stack:
        room.write(_made(stages, folder, stack, room), again)
    if again.stat().st_size == path.stat().st_size and file_digest(again) == file_digest(path):
        return None
    return _first_difference(path, again, log)


def plan_stages(
    log: Sequence[Record], inputs: Sequence[Path], *, remote: bool, say: Callable[[str], None]
) -> list[Stage]:
    """Check a history and find its files, before anything runs."""
    reason = _obstacle(log, remote)
    if reason:
        by_hand = "" if "--remote" in reason else "; wsurgery log FILE prints the commands, to be run by hand"
        raise UsageError(f"{reason}{by_hand}")
    stages: list[Stage] = []
    for record in log:
        given = record.get("inputs", []) if record["command"] != "fetch" else []  # it downloads its input
        flows: list[Path | str | Parent | None] = [None] if stages and given and given[0]["name"] == STDIN else []
        stages.append(Stage(record, flows + [_resolve(entry, inputs, remote, say) for entry in given[len(flows) :]]))
    return stages


def _resolve(given: Record, inputs: Sequence[Path], remote: bool, say: Callable[[str], None]) -> Path | str | Parent:
    if "url" in given:
        return _resolve_url(given, remote)
    name, log = given["name"], given.get("log")
    if name != Path(name).name or name == ".." or "\0" in name:
        raise UsageError(f"its history names an input {printable(name)}: an input is a file in the folder of --inputs")
    paths: list[Path] = [folder / name for folder in inputs]
    reason = _obstacle(log, remote) if log else None
    if any(path.is_dir() for path in paths) and name != STDIN:
        reason = reason or "it is a folder of shards"
    if log and not reason:
        return Parent(given, plan_stages(log, inputs, remote=remote, say=say))
    if name == STDIN:
        raise UsageError(reason or "one of its inputs came through a pipe without a history: replay cannot know it")
    there = [path for path in paths if path.is_file() or path.is_dir()]
    if not there:
        because = f", and is not made again ({reason})" if reason else ""
        raise WsurgeryError(
            f"{printable(str(paths[0]))}, an input, is missing{because}: name its folder with --inputs DIR"
        )
    recorded = given.get("blake3")
    if recorded is None:
        if len(there) > 1:
            places = " and ".join(printable(str(path)) for path in there)
            raise UsageError(f"which input is it, {places}? --no-digest left out its digest: leave out an --inputs DIR")
        path = there[0]
        say(f"{printable(name)} is taken on trust: --no-digest left out its digest")
    else:
        path = _with_digest(recorded, there)
    if log and reason:
        say(f"{printable(name)} is taken as it is: {reason}")
    return path.absolute()


def _with_digest(recorded: str, paths: Sequence[Path]) -> Path:
    found: list[str] = []
    for path in paths:
        if (digest := _digest(path)) == recorded:
            return path
        found.append(f"{printable(str(path))} has the digest {digest}")
    raise WsurgeryError(
        f"{', '.join(found)}, but {printable(recorded, 64)} was read then: "
        "add the folder of the file that was with --inputs DIR, which may be given several times"
    )


def _resolve_url(given: Record, remote: bool) -> str:
    from wsurgery.checkpoint.remote import open_remote

    url: str = given["url"]
    if not remote:
        raise UsageError(f"its history read {printable(url)}: add --remote to read it again")
    with open_remote(url) as checkpoint:
        if bytes_digest(checkpoint.header_bytes) != given.get("header"):
            raise WsurgeryError(f"{checkpoint.label} has another header now: replay needs the file that was read then")
    return url


def _digest(path: Path) -> str:
    if path.is_file():
        return file_digest(path)
    with open_checkpoint(path) as checkpoint:
        return FilesDigest(checkpoint.files).result()


def _obstacle(log: Sequence[Record], remote: bool) -> str | None:
    """Say why a log cannot be run again; None if it can, as far as this log itself tells."""
    for record in log:
        command, arguments = record["command"], record.get("arguments", [])
        if missing := _missing_package(record):
            return missing
        if not (command in edits() or record.get("package")):
            why = "it needs data and time" if command == "train" else "it is not a command that makes a checkpoint"
            return f"its history has the command {command}, which is not run again: {why}"
        if command == "fetch" and not remote:
            return f"its history fetched {printable(' '.join(arguments), 120)}: add --remote to fetch it again"
        if any(word.partition("=")[0] == "--data" for word in arguments):
            return f"its history has the command {command}, which is not run again: it needs data"
        if any(word.partition("=")[0] == "--model" for word in arguments):
            return f"its history has {printable(' '.join((command, *arguments)))}, and replay imports nobody's code"
        for word in arguments:
            in_a_folder = "/" in word and command != "fetch"  # whose name has no place on this machine
            if word.startswith(_OPTIONS_OF_FILES) or in_a_folder or "\0" in word:
                return f"its history gives {command} the argument {printable(word, 80)}, which could name a file"
            if command == "init" and ("pretrained" in word or "checkpoint" in word):
                return f"its history gives init the argument {printable(word, 80)}, which fetches weights"
    return None


def _count(log: Sequence[Record]) -> int:
    """Count the commands of a log and of all logs inside it."""
    inside = (given.get("log", []) for record in log for given in record.get("inputs", []))
    return len(log) + sum(map(_count, inside))


def _missing_package(record: Record) -> str | None:
    """Say that an edit of another package cannot be run, if that is so."""
    package = record.get("package")
    if package is None:
        return None
    plug_in = plug_ins().get(record["command"])
    if plug_in is None or plug_in.package != package["name"]:
        said = f"{printable(package['name'], 80)} {printable(package['version'], 40)}"
        return f"its history has the command {record['command']} of {said}, which is not installed here: pip install it"
    return None


def _made(stages: Sequence[Stage], folder: Path, stack: ExitStack, room: _Room) -> Planned:
    """Plan a pipeline again; what it reads stays open until the stack is left."""
    planned: Planned | None = None
    for stage in stages:
        sources: list[Any] = []
        for source in stage.inputs:
            if isinstance(source, Parent):
                through_a_pipe = source.given["name"] == STDIN
                sources.append(
                    _made(source.stages, folder, stack, room) if through_a_pipe else _remake(source, folder, room)
                )
            else:
                sources.append(planned if source is None else source)
        planned = _applied(stage.record, sources, stack)
    assert planned is not None
    return planned


def _applied(record: Record, sources: Sequence[Any], stack: ExitStack) -> Planned:
    """Apply the edit of a record to its inputs: plans, or files and URLs by name."""
    command = record["command"]
    edit = find_edit(command)
    assert edit is not None
    words = [*record.get("arguments", []), *(["--seed", str(record["seed"])] if "seed" in record else [])]
    places = [f"input {i}" for i in range(len(sources))]
    try:
        named, options, selection, seed = parsed(edit, with_files(record, ["wsurgery", command, *words], places)[2:])
        given: dict[str, Any] = {}
        for parameter in edit.inputs:
            place = named[parameter.name]
            several = isinstance(place, list)
            found = [
                _opened(sources[places.index(each)], parameter, stack)
                for each in (place if several else [place])
                if each
            ]
            given[parameter.name] = found if several else next(iter(found), None)
        digests = all({"blake3", "header"} & entry.keys() for entry in record.get("inputs", []))
        planned = plan(edit, given, options, selection=selection, seed=seed, digests=digests)
    except (WsurgeryError, ValueError) as error:
        raise WsurgeryError(f"{command} failed when it was run again: {printable(str(error), 1000)}") from None
    stack.callback(planned.close)
    return planned


def _opened(source: Any, parameter: Parameter, stack: ExitStack) -> Any:
    if isinstance(source, Planned) or not parameter.is_checkpoint:
        return source
    checkpoint = open_checkpoint(source)
    stack.callback(checkpoint.close)
    return checkpoint


def _remake(parent: Parent, folder: Path, room: _Room) -> Path:
    path: Path = Path(tempfile.mkdtemp(dir=folder)) / parent.given["name"]
    with ExitStack() as stack:
        room.write(_made(parent.stages, folder, stack, room), path)
    if parent.given.get("blake3") not in (None, file_digest(path)):
        raise WsurgeryError(f"{printable(path.name)}, an input, comes out otherwise when its own history is run again")
    return path


def _first_difference(path: Path, again: Path, log: Sequence[Record]) -> str:
    with open_checkpoint(path) as before, open_checkpoint(again) as after:
        digests, digests_again = tensor_digests(before), tensor_digests(after)
        for name, tensor in before.tensors.items():
            other = after.tensors.get(name)
            if other is None or (other.dtype, other.shape) != (tensor.dtype, tensor.shape):
                return f"{printable(name)} is {tensor.dtype} {tensor.shape} here and not there"
            if digests[name] != digests_again[name]:
                return f"{printable(name)} differs"
        more = [name for name in after.tensors if name not in before.tensors]
        if more:
            return f"{printable(more[0])} is there and not here"
    here = {"wsurgery": __version__, **{each.package: each.version for each in plug_ins().values()}}
    versions = {("wsurgery", record.get("version", "?")) for record in log}
    versions |= {(package["name"], package["version"]) for record in log if (package := record.get("package"))}
    others = sorted(versions - here.items())
    made_by, this = (", ".join(map(" ".join, some)) for some in (others, [(name, here[name]) for name in dict(others)]))
    why = f": it was made by {printable(made_by, 200)}, this is {printable(this, 200)}" if others else ""
    return f"every tensor is identical, the header is not{why}"
