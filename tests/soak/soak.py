"""Run random pipelines on random small checkpoints, and hold each edit against a numpy model of it.

    python tests/soak/soak.py --minutes 60 [--seed 0] [--case N [--keep FOLDER]]

Each edit runs by itself, through files, and its result is what the model says; then all together in one pass, which gives the
same bytes; and often in one way more: real pipes, standard input, shards, a web server, replay. What has to be refused is, in
every way, by one line and with nothing written. A case is its number: the same number and seed give the same pipeline, and
`--keep` leaves its files in a folder.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

import wsurgery
from soak.checkpoints import State, means_something_else, random_state, read, write, write_shards
from soak.edits import Edit, random_edit
from soak.model import differences, expected
from soak.selection import Refused, Undecided
from tests.checkpoint.test_remote import Server
from wsurgery.errors import WsurgeryError

WAYS = {"": 63, "shards": 15, "web": 15, "pipe": 2, "pipe to -o": 2, "stdin": 2, "replay": 1}  # how many in a hundred


class Fault(Exception):
    """Something is not as it has to be."""


def _without_inputs(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "inputs"} for record in log]


class Case:
    """A checkpoint, a pipeline, and what came of it; its files lie in the current folder."""

    def __init__(self, rng: Random, server: Server) -> None:
        self.rng, self.server = rng, server
        self.edits: list[Edit] = []
        self.is_folder = self.refused = False
        self.way = self.said = ""

    @property
    def line(self) -> str:
        """The pipeline as it is typed."""
        return " | ".join(edit.words(None if i else "in") for i, edit in enumerate(self.edits))

    def run(self) -> None:
        """Run it.

        Raises:
            Fault: something is wrong.
        """
        state = random_state(self.rng)
        while means_something_else(state):
            state = random_state(self.rng)
        self.is_folder = self.rng.random() < 0.2
        (write_shards if self.is_folder else write)(state, Path("in"), self.rng)
        last = "in"
        for number in range(self.rng.randint(1, 5)):
            drawn = self._drawn(state)
            if drawn is None:
                break
            edit, known = drawn
            self.edits.append(edit)
            made = self._attempt(lambda edit=edit, last=last: edit(wsurgery.open(last)), f"step{number}")
            if made is None:
                if known is not None and not known.may_refuse:
                    raise Fault(f"refused: {self.said}")
                self.refused = True
                break
            if known is None:
                raise Fault("not refused")
            last, state = made, read(Path(made))
            if wrong := differences(known, state, edit):
                raise Fault("; ".join(wrong))
        if self.edits:
            self._together(Path(last), state)

    def _drawn(self, state: State) -> tuple[Edit, Any] | None:
        """Draw an edit that the model knows, and what it has to give; None for what has to be refused."""
        for _ in range(30):
            there = set(os.listdir())
            edit = random_edit(state, self.rng, Path())
            try:
                known = expected(state, edit)
                if not any(map(means_something_else, [State({**known.tensors}), *edit.others.values()])):
                    return edit, known
            except Undecided:
                pass
            except Refused:
                if self.rng.random() < 0.07:
                    return edit, None
            for name in set(os.listdir()) - there:
                os.unlink(name)
        return None

    def _attempt(self, make: Any, path: str, **how: Any) -> str | None:
        """Write what is made; None if it is refused, in one line and with nothing written."""
        there = set(os.listdir())
        try:
            make().write(path, **how)
            return path
        except WsurgeryError as error:
            self.said = str(error)
            if not self.said.isprintable():
                raise Fault(f"a message that is not one line: {self.said!r}") from None
            if left := set(os.listdir()) - there:
                raise Fault(f"refused, and wrote {left}") from None
            return None

    def _chain(self, source: str) -> Any:
        pipeline = wsurgery.open(source)
        for edit in self.edits:
            pipeline = edit(pipeline)
        return pipeline

    def _together(self, last: Path, state: State) -> None:
        if self.refused and self.rng.random() < 0.5:
            self.edits.append(Edit("set_metadata", {"set_": ["x=y"]}))
        made = self._attempt(lambda: self._chain("in"), "chain", threads=self.rng.choice([1, 8]))
        if (made is None) != self.refused:
            raise Fault(f"in one pass it is {'refused: ' + self.said if made is None else 'not refused'}")
        if made and Path(made).read_bytes() != last.read_bytes():
            raise Fault("one pass and step by step give other bytes")
        self.way = self.rng.choices(list(WAYS), list(WAYS.values()))[0]
        if self.way == "shards":
            self._as_shards(state)
        elif self.way == "web":
            url = f"{self.server.url}/in{'/' if self.is_folder else ''}"
            self._alike(self._attempt(lambda: self._chain(url), "from the web"), state)
        elif self.way == "replay":
            if not self.refused and "/" not in self.line and " -o" not in self.line:  # replay takes neither for safe
                self._shell("wsurgery replay chain")
        elif self.way:
            self._in_shell(state)

    def _as_shards(self, state: State) -> None:
        size = self.rng.choice([1, 100, 1000, "1kB", "1MB"])
        os.mkdir("out")
        made = self._attempt(lambda: self._chain("in"), "out/", shard_size=size)
        if made is None and os.listdir("out"):
            raise Fault(f"refused, and wrote {os.listdir('out')}")
        self._alike(made, state)

    def _alike(self, made: str | None, state: State) -> None:
        """Require what the steps gave, but for what is recorded of the first input."""
        if (made is None) != self.refused:
            raise Fault(f"{self.way}: {'refused: ' + self.said if made is None else 'not refused'}")
        if made is None:
            return
        got = read(Path(made))
        if got.tensors != state.tensors or got.metadata != state.metadata or got.frozen != state.frozen:
            raise Fault(f"{self.way}: another checkpoint")
        if _without_inputs(got.log) != _without_inputs(state.log):
            raise Fault(f"{self.way}: another history")

    def _in_shell(self, state: State) -> None:
        stages = [edit.words(None) for edit in self.edits[1:]]
        from_stdin = self.way == "stdin" and not self.is_folder
        line = f"{self.edits[0].words(None if from_stdin else 'in')}{' < in' if from_stdin else ''}"
        line = " | ".join([line, *stages]) + (
            " -o piped" if self.way == "pipe to -o" and "--" not in self.line else " > piped"
        )
        status = self._shell(line, fails=self.refused)
        if status:
            if "-o piped" in line and Path("piped").exists():
                raise Fault("refused in a pipe, and wrote a file")
            return
        if not from_stdin and Path("piped").read_bytes() != Path("chain").read_bytes():
            raise Fault("a pipe and a chain give other bytes")
        self._alike("piped", state)

    def _shell(self, line: str, *, fails: bool = False) -> int:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            timeout=120,
        )
        said = done.stderr.decode(errors="replace")
        if done.returncode not in ((1, 2) if fails else (0,)) or "Traceback" in said or "RuntimeWarning" in said:
            raise Fault(f"{line}: status {done.returncode}: {said[-500:]}{done.stdout[-200:] if not fails else ''}")
        return done.returncode


class Soak:
    """Cases by number, and what came of them."""

    def __init__(self, seed: int) -> None:
        self.seed, self.server = seed, Server(Path())
        self.ran: Counter[str] = Counter()
        self.found: list[str] = []

    def case(self, number: int, folder: Path) -> None:
        """Run a case in a folder that is empty."""
        here = Path.cwd()
        os.chdir(folder)
        self.server.root = folder
        case = Case(Random(f"{self.seed} {number}"), self.server)
        fault = ""
        try:
            case.run()
        except Fault as error:
            fault = str(error)
        except Exception:
            fault = traceback.format_exc()
        finally:
            os.chdir(here)
        self.ran.update(["pipelines", "refused"] if case.refused else ["pipelines"])
        self.ran.update(edit.name for edit in case.edits)
        self.ran.update([f"also: {case.way}"] if case.way else [])
        if fault:
            self.found.append(fault)
            print(f"python tests/soak/soak.py --seed {self.seed} --case {number}  # {case.line}\n{fault}\n", flush=True)


def main() -> int:
    """Soak for some time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # of overflows
    warnings.simplefilter("error", RuntimeWarning)  # numpy's
    os.environ["no_proxy"] = "127.0.0.1"
    soak = Soak(given.seed)
    if given.case is not None and given.keep:
        given.keep.mkdir(parents=True)
        soak.case(given.case, given.keep.resolve())
        return bool(soak.found)
    end, number = time.monotonic() + 60 * given.minutes, given.case or 0
    while number == given.case or (given.case is None and time.monotonic() < end):
        with tempfile.TemporaryDirectory(prefix="soak") as folder:
            soak.case(number, Path(folder).resolve())
        number += 1
    print(", ".join(f"{name} {n:,}" for name, n in sorted(soak.ran.items())))
    return bool(soak.found)


if __name__ == "__main__":
    sys.exit(main())
