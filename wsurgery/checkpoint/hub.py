"""Checkpoints of the Hugging Face hub, downloaded whole into its own cache.

The cache also notes which files a commit does not have. So what is taken from the cache is what would be downloaded.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsurgery.checkpoint.digest import FilesDigest, file_sha256
from wsurgery.checkpoint.hub_api import asked, hush
from wsurgery.checkpoint.provenance import Record
from wsurgery.checkpoint.shards import INDEX, WHOLE, read_shard_names
from wsurgery.errors import WsurgeryError, printable

# The first that there is, is taken; an index before a whole file, as in a folder here and at a URL.
_WEIGHTS = (INDEX, WHOLE, "pytorch_model.bin", "pytorch_model.bin.index.json")
_CONFIGS = ("config.json", "preprocessor_config.json")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Download:
    """A model of the hub in the cache.

    Attributes:
        repo: its name.
        commit: the commit that it is of.
        path: the file with its weights, or the folder with its shards; the configs are beside it.
        files: the file, or the shards.
    """

    repo: str
    commit: str
    path: Path
    files: tuple[Path, ...]

    def describe(self) -> Record:
        """Describe it for a record; the digest is computed in the background."""
        name = self.path.name if self.path in self.files else self.repo.rpartition("/")[2]
        size = sum(file.stat().st_size for file in self.files)
        url = f"hf://{self.repo}@{self.commit}"
        digest = FilesDigest(dict.fromkeys(self.files))
        return {"name": name, "size": size, "blake3": digest, "url": url, "revision": self.commit}


def download(repo: str, revision: str | None = None, *, offline: bool = False, progress: bool = False) -> Download:
    """Bring a model's weights and configs into the cache of huggingface_hub, as far as they are not there.

    Args:
        repo: `org/name`.
        revision: a branch, a tag or a commit. Default: main.
        offline: whether only the cache is read; also with HF_HUB_OFFLINE=1.
        progress: whether huggingface_hub draws its bars on standard error.

    Raises:
        WsurgeryError: it cannot be had, holds no weights, or came damaged.
        UsageError: `repo` is no name.
    """
    hush(progress=progress)
    model = _Model(repo, revision or "main", offline)
    weights = next((path for name in _WEIGHTS if (path := model.get(name, guess=True))), None)
    if weights is None:
        model.get(WHOLE)  # offline it may be unknown
        raise WsurgeryError(f"{model.label} has none of {', '.join(_WEIGHTS)}: it is not a model that can be read here")
    sharded = weights.suffix == ".json"
    files = [weights]
    if sharded:
        index = f"{model.label}: {weights.name}"
        names = read_shard_names(weights, index, lambda name: f"{index} names {name}: a shard is a file beside it")
        files = [model.need(name) for name in names]
    for file in files:
        _verify(file, model.label)
    for name in _CONFIGS:
        model.get(name)
    return Download(repo, weights.parent.name, weights.parent if sharded else weights, tuple(files))


class _Model:
    """A model at a revision: in the cache, and on the hub if it is asked."""

    def __init__(self, repo: str, revision: str, offline: bool) -> None:
        from huggingface_hub import constants

        self.repo, self.revision = repo, revision
        self.offline = offline or constants.HF_HUB_OFFLINE
        self.label = printable(repo if revision == "main" else f"{repo}@{revision}")
        self.asked = False
        if not self.offline and not _COMMIT.fullmatch(revision):
            self._ask()

    def get(self, name: str, *, guess: bool = False) -> Path | None:
        """Return a file of the model in the cache, downloaded if need be; None if the model does not have it.

        Offline, what the cache does not know is an error, or by `guess` is taken for missing: others fill the cache, too.
        """
        from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import RemoteEntryNotFoundError

        found = self._call(try_to_load_from_cache, name, revision=self.revision)
        if found is None and self.offline and not guess:
            where = printable(constants.HF_HUB_CACHE)
            raise WsurgeryError(f"{self.label}: {name} is not in the cache {where}: fetch it once while online")
        if found is None and not self.offline:
            if not self.asked:
                self._ask()
            try:
                found = self._call(hf_hub_download, name, revision=self.revision)
            except RemoteEntryNotFoundError:
                return None
        return Path(found) if isinstance(found, str) else None

    def need(self, name: str) -> Path:
        """Return a file that the model must have."""
        path = self.get(name)
        if path is None:
            raise WsurgeryError(f"{self.label} lacks {printable(name)}, which its index names")
        return path

    def _ask(self) -> None:
        """Ask the hub once for the commit: it says at once what hf_hub_download says after five attempts."""
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        commit = self._call(HfApi().model_info, revision=self.revision, timeout=30).sha
        if commit != self.revision:
            with suppress(RemoteEntryNotFoundError):  # the cache learns for --offline which commit the branch or tag is
                self._call(hf_hub_download, _CONFIGS[0], revision=self.revision)
        self.revision, self.asked = commit, True

    def _call(self, function: Callable[..., Any], *arguments: object, **options: Any) -> Any:
        return asked(self.label, function, self.repo, *arguments, **options)


def _verify(file: Path, label: str) -> None:
    """Check the SHA-256 that the hub keeps of a large file; in the cache it is the name of the blob."""
    blob = file.resolve()
    if _SHA256.fullmatch(blob.name) and file_sha256(blob) != blob.name:
        raise WsurgeryError(
            f"{label}: {file.name} is damaged, its SHA-256 is not the hub's: delete {printable(str(blob))}, then fetch again"
        )
