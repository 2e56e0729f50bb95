"""Files of a model on the Hugging Face hub, which appear together, in one commit.

The hub asks for a file's SHA-256 before its bytes, and a checkpoint's header, which stands first, is known last. So each file
waits in a temporary one until it is whole, and goes up then: the room that this takes is that of one shard.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile, gettempdir
from types import TracebackType
from typing import IO, Any

from wsurgery import __version__
from wsurgery.checkpoint.card import model_card, sources
from wsurgery.checkpoint.hub_api import HubError, asked, hush, split_url
from wsurgery.checkpoint.provenance import History
from wsurgery.checkpoint.reader import Checkpoint
from wsurgery.checkpoint.sink import RemoteOutput
from wsurgery.errors import UsageError, printable
from wsurgery.progress import is_quiet

_CARD = "README.md"
_DESCRIPTORS = "/proc/self/fd"
_ATTEMPTS = 8  # of a commit: when another came between, or the answer was lost; in a minute, at most
_LONGEST_WAIT = 16.0  # seconds
_PATIENCE = 60.0  # seconds after which an attempt is the last, where the hub keeps each waiting


class Commit:
    """What appears together: the files that are opened with it, when the last of them is left.

    Attributes:
        repo: the model.
        branch: of it.
        removed: the names of files that go in it, if they are there.
        optional: the names of its own files that stay away if somebody else's appear.
    """

    def __init__(self, repo: str, branch: str) -> None:
        self.repo, self.branch = repo, branch
        self.removed: list[str] = []
        self.optional: set[str] = set()
        self.opened = 0
        self.names: set[str] = set()
        self.failed = False
        self.files: dict[str, HubUpload] = {}  # that are whole, by name
        self.card: list[Any] | None = None  # from the first of the model's own weights


class HubUpload(RemoteOutput):
    """Context manager that writes a file of a model. It appears when it, and those of its commit, are left without an error.

    Attributes:
        label: its address.
        operation: huggingface_hub's, once the file is on its way.
    """

    def __init__(self, url: str, *, force: bool = False, commit: Commit | None = None) -> None:
        """Ask whether it exists.

        Args:
            url: `hf://org/repo[@branch]/path`.
            force: whether what is there is replaced.
            commit: of which it is a file. Default: one of its own.

        Raises:
            UsageError: it exists and `force` is off, or it is no address.
            WsurgeryError: the hub cannot be asked, or has no such model or branch.
        """
        self.label = printable(url)
        self.repo, self.branch, self.path = place_of(url)
        self.force = force
        hush(progress=sys.stderr.isatty() and not is_quiet())
        if _there(self.repo, self.branch, [self.path]) and not force:
            raise UsageError(f"{self.label} exists: add --force to overwrite it")
        self.operation: Any = None
        self._file: IO[bytes] | None = None
        self._commit = commit or Commit(self.repo, self.branch)

    def __enter__(self) -> "HubUpload":
        self._file, self._name = _temporary()
        self._commit.opened += 1
        self._commit.names.add(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        commit = self._commit
        commit.opened -= 1
        commit.files[self.path] = self
        commit.failed |= kind is not None
        try:
            if not commit.failed:
                self.settle()
                if not commit.opened:
                    _send(commit)
        except BaseException:
            commit.failed = True
            raise
        finally:
            if commit.failed or not commit.opened:
                for file in commit.files.values():
                    file.close()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take in bytes, and return how many: all.

        Raises:
            OSError: there is no room where temporary files are.
        """
        assert self._file is not None
        try:
            return self._file.write(data)
        except OSError as error:
            error.filename = (
                error.filename or f"{gettempdir()} (where {self.label} waits until it is whole; TMPDIR moves it)"
            )
            raise

    def write_again(self, data: bytes) -> None:
        """Replace what was written first by as many other bytes."""
        assert self._file is not None
        self._file.seek(0)
        self.write(data)
        self._file.seek(0, 2)

    def settle(self) -> None:
        """Send all bytes, unless they are few; they are seen by nobody before the commit.

        Raises:
            WsurgeryError: they cannot be sent.
        """
        if self.operation is not None or self._file is None:
            return
        from huggingface_hub import CommitOperationAdd, HfApi

        self.operation = CommitOperationAdd(path_in_repo=self.path, path_or_fileobj=self._name)
        if self._commit.card is None and self.path.endswith(".safetensors") and "/" not in self.path:
            self._file.seek(0)  # and before the bytes, which may be many, are sent
            described = Checkpoint(self._file, None, label=self.label)  # type: ignore[arg-type]
            self._commit.card = _card(self._commit, described, self.copied)
        send = HfApi().preupload_lfs_files
        asked(self.label, send, self.repo, [self.operation], revision=self.branch, writing=True)  # tries by itself
        if self.operation._should_ignore:  # huggingface_hub leaves it out of the commit, and says nothing
            raise HubError(
                f"{self.label}: .gitignore of this model leaves it out: mend that, or name the file otherwise"
            )
        if self.operation.path_or_fileobj == b"":  # as huggingface_hub leaves what it has sent
            self.close()

    def close(self) -> None:
        """Forget the bytes that are here."""
        if self._file is not None:
            self._file.close()
            self._file = None


def place_of(url: str) -> tuple[str, str, str]:
    """Return the model, the branch, and the file's name in it.

    Raises:
        UsageError: it is no address of a file.
    """
    repo, branch, path = split_url(url)
    if not path or path.endswith("/"):
        raise UsageError(f"{printable(url)}: write it as hf://org/repo/name")
    return repo, branch or "main", path


def exists(url: str) -> bool:
    """Whether there is a file.

    Raises:
        UsageError: it is no address of a file.
        WsurgeryError: the hub cannot be asked, or has no such model or branch.
    """
    repo, branch, path = place_of(url)
    return bool(_there(repo, branch, [path]))


def _temporary() -> tuple[IO[bytes], str]:
    """Open a temporary file, and return it with the name by which others in this process can open it."""
    if os.path.isdir(_DESCRIPTORS):  # one without a name, of which even `kill -9` leaves nothing behind
        file = TemporaryFile(buffering=0)  # noqa: SIM115 (close() does)
        return file, f"{_DESCRIPTORS}/{file.fileno()}"
    named = NamedTemporaryFile(buffering=0)  # noqa: SIM115
    return named, named.name


def _there(repo: str, branch: str, paths: Sequence[str]) -> dict[str, str]:
    """Return which of the files there are: name → SHA-256, or as git names what is small."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    label = f"hf://{repo}@{branch}"
    found = _ask(label, HfApi().get_paths_info, repo, list(paths), revision=branch)
    return {each.path: each.lfs.sha256 if each.lfs else each.blob_id for each in found if isinstance(each, RepoFile)}


def _ask(label: str, function: Callable[..., Any], repo: str, *arguments: object, **options: Any) -> Any:
    """Ask the hub, again and again if it fails as if it could do better."""
    for wait in _waits():
        try:
            return asked(label, function, repo, *arguments, writing=True, **options)
        except HubError as error:
            if not error.passes or wait is None:
                raise
            time.sleep(wait)


def _waits() -> Iterator[float | None]:
    """Give the seconds to wait after each attempt that failed; none after the last."""
    began = time.monotonic()
    for i in range(_ATTEMPTS - 1):
        if time.monotonic() - began > _PATIENCE:
            break
        yield min(0.5 * 2**i, _LONGEST_WAIT)
    yield None


def _licence(model: str) -> str | None:
    """Return the licence of a model as the hub has it; None where it says none, or no answer comes."""
    from huggingface_hub import HfApi

    with suppress(Exception):
        card = HfApi().model_info(model, timeout=10).card_data
        return str(card["license"]) if card and card.get("license") else None
    return None


def _card(commit: Commit, described: Checkpoint, copied: Path | None) -> list[Any]:
    """Write the model card that goes with a commit, if one does."""
    from huggingface_hub import CommitOperationAdd

    if _CARD in commit.names or _CARD in _there(commit.repo, commit.branch, [_CARD]):
        return []
    licences = {model: licence for model in sources(History.of(described)) if (licence := _licence(model))}
    card = model_card(described, commit.repo.rpartition("/")[2], licences, path=copied)
    return [CommitOperationAdd(path_in_repo=_CARD, path_or_fileobj=card.encode())]


def _send(commit: Commit) -> None:
    """Make the commit. It is made again when another came between, or when it is not there after its answer was lost."""
    from huggingface_hub import CommitOperationDelete, HfApi

    label, api = f"hf://{commit.repo}@{commit.branch}", HfApi()
    kept = [path for path, file in commit.files.items() if not file.force]
    again = False
    for wait in _waits():
        head = _ask(label, api.model_info, commit.repo, revision=commit.branch, timeout=30).sha
        there = _there(commit.repo, commit.branch, [*commit.files, *commit.removed, _CARD])
        needed = {path: file for path, file in commit.files.items() if path not in commit.optional}
        if again and all(there.get(path) == _digest(file.operation) for path, file in needed.items()):
            return
        appeared = [x for x in kept if there.get(x) not in (None, _digest(commit.files[x].operation))]
        if refused := next((x for x in appeared if x in needed), None):
            raise UsageError(f"{label}/{printable(refused)} appeared meanwhile: add --force to overwrite it")
        operations = [file.operation for path, file in commit.files.items() if path not in appeared]
        removals = [CommitOperationDelete(path_in_repo=path) for path in commit.removed if path in there]
        try:
            asked(
                label,
                api.create_commit,
                commit.repo,
                [*operations, *removals, *([] if _CARD in there else commit.card or [])],
                commit_message=f"Written by wsurgery {__version__}",
                revision=commit.branch,
                parent_commit=head,
                writing=True,
            )
            return
        except HubError as error:
            if not error.passes or wait is None:
                raise
            time.sleep(wait)
            again = True


def _digest(operation: Any) -> str:
    """Return the digest of a file that is to be committed, as `_there` has it."""
    if operation.path_or_fileobj == b"":
        return str(operation.upload_info.sha256.hex())
    with operation.as_file() as file:
        content = file.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
