"""Damage files of every kind, have every command read them, and see that a stranger's file can do nothing but be refused.

    python tests/mutations/attack.py --minutes 60 [--seed 0] [--kind 'run: config.json'] [--case N]

Each case runs in a process of its own, forked from one that has imported everything, among honest files. It must end within a
time, with status 0, 1 or 2, without a traceback, a raw control character or another process, with at most 200 MB more memory
than with the honest file, and must not have touched anything outside of its outputs. A case is its number: the same number
and seed give the same damage.
"""

import argparse
import contextlib
import gc
import importlib
import os
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from mutations.honest import KINDS, make

SECONDS = 20.0  # in which a case must end
MEMORY = 200 << 10  # KiB above what the honest file takes
_OUTPUTS = ("out", "cache", "tmp", "said", "runs/a/0", "runs/c/0")
_app: Callable[[], None]  # made once
_SPAWNING = {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.spawn", "pty.spawn"}


class Outcome(NamedTuple):
    """How a command ended: its status, what it printed, peak memory in KiB, and what it must not have done."""

    status: int
    said: str
    memory: int
    faults: list[str]


def _child(words: list[str], sandbox: Path, known: set[str] | None = None) -> None:
    """Run a command and end; anything forbidden is written down, and modules that were not `known` before."""
    os.setsid()
    os.chdir(sandbox)
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    null = os.open(os.devnull, os.O_RDONLY)
    for descriptor, target in ((null, 0), (said, 1), (said, 2)):
        os.dup2(descriptor, target)
    os.environ.update(WSURGERY_CACHE=str(sandbox / "cache"), TMPDIR=str(sandbox / "tmp"), HOME=str(sandbox / "tmp"))
    tempfile.tempdir = None
    forbidden = os.open("tmp/forbidden", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event in _SPAWNING and not (words[0] == "replay" and arguments[0] == sys.executable):
            os.write(forbidden, f"{event} {arguments!r:.200}\n".encode())

    sys.addaudithook(audit)
    sys.argv = ["wsurgery", *words]
    status = 99
    try:
        _app()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if known is not None:
            Path("tmp/modules").write_text("\n".join(sys.modules.keys() - known))
        os._exit(status)


def _state(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if not any(name == own or name.startswith(f"{own}/") for own in (f"here/{each}" for each in _OUTPUTS)):
            about = path.lstat()
            found[name] = (about.st_size, about.st_mtime_ns if not path.is_dir() else 0, about.st_mode)
    return found


def _copy_anew(sandbox: Path, honest: Path, names: Iterable[str]) -> None:
    """Replace what a case may write or damage by what the honest files have there."""
    if not sandbox.exists():
        shutil.copytree(honest, sandbox)
    for name in names:
        own, kept = sandbox / name, honest / name
        if own.is_dir() and not own.is_symlink():
            shutil.rmtree(own)
        else:
            own.unlink(missing_ok=True)
        if kept.exists():
            (shutil.copytree if kept.is_dir() else shutil.copyfile)(kept, own)


def run(line: str, honest: Path, damage: dict[str, bytes]) -> Outcome:
    """Run a command line in a copy of the honest files, some of which have other content.

    What it imports of its own, this process imports after it where nothing was damaged, so that the next need not.
    """
    root = honest.parent / "attacked"
    sandbox = root / "here"
    _copy_anew(sandbox, honest, _OUTPUTS)
    (root / "bystander").write_text("untouched")
    for name in ("out", "tmp"):
        (sandbox / name).mkdir()
    for name, content in damage.items():
        (sandbox / name).write_bytes(content)
    before = _state(root)
    child = os.fork()
    if not child:
        _child(shlex.split(line), sandbox, None if damage else set(sys.modules))
    deadline = time.monotonic() + SECONDS
    faults: list[str] = []
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            faults.append("hang")
            os.killpg(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            break
        time.sleep(0.002)
    said = (sandbox / "said").read_bytes().decode(errors="replace") if (sandbox / "said").exists() else ""
    code = os.waitstatus_to_exitcode(status)
    if "Traceback" in said:
        faults.append("traceback")
    elif code not in (0, 1, 2) and not faults:
        faults.append(f"status {code}")
    if any(not (c.isprintable() or c in "\n�") for c in said):
        faults.append("raw characters")
    if (forbidden := sandbox / "tmp" / "forbidden").exists() and forbidden.read_text():
        faults.append("another process")
    for module in (sandbox / "tmp" / "modules").read_text().splitlines() if not damage else ():
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    if _state(root) != before:
        faults.append("touched")
        shutil.rmtree(sandbox)
    else:
        _copy_anew(sandbox, honest, damage)
    if code == 1 and "Traceback" not in said and not said.strip():
        faults.append("no message")
    return Outcome(code, said, usage.ru_maxrss, faults)


def honest_files(folder: Path) -> None:
    """Make the honest files, with the machinery that will run the cases."""
    folder.mkdir(parents=True)
    here = Path.cwd()
    os.chdir(folder)
    os.environ["WSURGERY_CACHE"] = str(folder / "cache")

    def wsurgery(line: str, until: Path | None = None) -> None:
        child = os.fork()
        if not child:
            (folder / "tmp").mkdir(exist_ok=True)
            _child(shlex.split(line), folder)
        if until:
            while not until.exists():
                time.sleep(0.005)
            os.kill(child, signal.SIGTERM)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status and not until:
            raise RuntimeError(f"{line}: {status}\n{(folder / 'said').read_text()}")
        (folder / "said").unlink()
        shutil.rmtree(folder / "tmp")

    try:
        make(folder, wsurgery)
    finally:
        os.chdir(here)


def files_of(kind: str, honest: Path) -> list[str]:
    """Name the files of a kind: those in a folder, if it names one."""
    return [
        str(file.relative_to(honest))
        for name in KINDS[kind].files
        for file in ([honest / name] if (honest / name).is_file() else sorted((honest / name).rglob("*")))
        if file.is_file() and not file.name.endswith(".lock")
    ]


class Attack:
    """Cases by number, and what came of them."""

    def __init__(self, honest: Path, seed: int, kinds: list[str]) -> None:
        self.honest, self.seed, self.kinds = honest, seed, kinds
        self.usual: dict[str, int] = {}  # command → KiB with the honest file
        self.runs: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[tuple[str, str]] = Counter()
        self.found: list[str] = []

    def case(self, number: int) -> Outcome:
        """Run a case."""
        rng = Random(f"{self.seed} {number}")
        name = self.kinds[number % len(self.kinds)]
        kind = KINDS[name]
        files = files_of(name, self.honest)
        file = rng.choice(files)
        line = kind.commands[number // len(self.kinds) % len(kind.commands)].replace("{}", file)
        if line not in self.usual:
            honest = run(line, self.honest, {})
            self.usual[line] = honest.memory
            if honest.faults or (honest.status and "replay" not in line):
                self.found.append(f"honest: {line}: {honest.status} {honest.faults} {honest.said[-300:]}")
        content = kind.mutate((self.honest / file).read_bytes(), rng)
        outcome = run(line, self.honest, {file: content})
        if outcome.memory > self.usual[line] + MEMORY + len(content) // 1024:
            outcome.faults.append(f"memory {outcome.memory >> 10} MB")
        command = line.split()[0]
        self.runs[name, command] += 1
        self.refused[name, command] += outcome.status != 0
        if outcome.faults:
            last = outcome.said.strip().splitlines()[-1:] or [""]
            self.found.append(f"case {number} {', '.join(outcome.faults)}: {name}: {line}: {last[0][-200:]}")
        return outcome

    def table(self) -> str:
        """Say how many cases of each kind and command there were, and how many were refused."""
        lines = ["| file | command | cases | refused |", "|---|---|---:|---:|"]
        lines += [
            f"| {kind} | {command} | {n} | {self.refused[kind, command]} |"
            for (kind, command), n in sorted(self.runs.items())
        ]
        return "\n".join([*lines, f"| all | | {self.runs.total()} | {self.refused.total()} |"])


def import_all() -> None:
    """Import what the commands do, so that a case is a fork."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot
    import torch

    import wsurgery.experiments.comparison
    import wsurgery.figures.page
    import wsurgery.studies._networks
    import wsurgery.training.loop  # noqa: F401
    from wsurgery.command_line import build_app
    from wsurgery.studies import cca, compare, evaluate, path, train  # noqa: F401 - each imports its own

    global _app
    _app = build_app()
    torch.set_num_threads(1)
    gc.freeze()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> int:
    """Attack for some time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append")
    parser.add_argument("--case", type=int)
    given = parser.parse_args()
    import_all()
    with tempfile.TemporaryDirectory(prefix="honest") as folder:
        honest_files(Path(folder) / "files")
        attack = Attack(Path(folder) / "files", given.seed, given.kind or list(KINDS))
        if given.case is not None:
            outcome = attack.case(given.case)
            print(outcome.said, outcome.status, outcome.faults, outcome.memory >> 10, "MB")
            return bool(outcome.faults)
        end, number = time.monotonic() + 60 * given.minutes, 0
        while time.monotonic() < end:
            known = len(attack.found)
            attack.case(number)
            print(*attack.found[known:], sep="\n", end="\n" if len(attack.found) > known else "", flush=True)
            number += 1
    print(attack.table())
    return bool(attack.found)


if __name__ == "__main__":
    sys.exit(main())
