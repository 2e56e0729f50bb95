"""Addresses on the Hugging Face hub, and what huggingface_hub's errors say to a user."""

import errno
import json
import logging
import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from wsurgery.errors import UsageError, WsurgeryError, printable, redacted

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_URL = re.compile(r"hf://([^/@]+/[^/@]+)(?:@(refs/[^/]+/[^/]+|[^/]+))?(?:/(.*))?")
_NO_MODELS = ("datasets/", "spaces/", "buckets/")  # what huggingface_hub's own addresses begin with
_PASSING = (408, 409, 412, 429, 500, 502, 503, 504)  # HTTP statuses that may be others a moment later
_QUOTA = re.compile(r"storage|quota|limit|exceed", re.IGNORECASE)  # in what the hub says of a 403

_SILENCE = 60.0  # seconds for which the hub may say nothing


class HubError(WsurgeryError):
    """What the hub answered, or that it did not.

    Attributes:
        passes: whether the same request may be answered otherwise a moment later.
    """

    def __init__(self, message: str, *, passes: bool = False) -> None:
        super().__init__(message)
        self.passes = passes


def split_url(url: str) -> tuple[str, str | None, str]:
    """Return the model, the revision and the path of `hf://org/repo[@revision][/path]`.

    Raises:
        UsageError: it is no such address.
    """
    match = _URL.fullmatch(url)
    if match is not None and match[1].startswith(_NO_MODELS):
        raise UsageError(
            f"{printable(redacted(url))}: data sets, spaces and buckets hold no models: name one as hf://org/repo"
        )
    if match is None:
        raise UsageError(
            f"{printable(redacted(url))}: write it as hf://org/repo, hf://org/repo@revision or hf://org/repo/path"
        )
    return match[1], match[2], match[3] or ""


def is_repo(url: str) -> bool:
    """Whether it is the address of a whole model, without a path: what is written there is a folder."""
    match = _URL.fullmatch(url)
    return match is not None and match[3] is None


def hush(*, progress: bool) -> None:
    """Have huggingface_hub draw its bars only if that is wanted, and tell of no retry or missing log-in."""
    from huggingface_hub import utils

    if not progress:
        utils.disable_progress_bars()  # type: ignore[attr-defined]
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


@cache
def _limit_silence() -> None:
    """Have no request to the hub wait for ever, whatever connection it is made on; a limit that somebody has set stays."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    make = _http._GLOBAL_CLIENT_FACTORY  # there is no other way to keep what the user has set there

    def limited() -> Any:
        client = make()
        if client.timeout.read is None:
            client.timeout = _SILENCE
        return client

    set_client_factory(limited)


def asked(
    label: str, function: Callable[..., Any], repo: str, *arguments: object, writing: bool = False, **options: object
) -> Any:
    """Call a function of huggingface_hub, `function(repo, *arguments, **options)`.

    Args:
        label: what messages call the model or the file.
        writing: whether it is for an upload, which other remedies help.

    Raises:
        HubError: the hub refuses, or cannot be reached.
        UsageError: `repo` is no name.
        OSError: the cache, or a temporary file, cannot be read or written.
        huggingface_hub.errors.RemoteEntryNotFoundError: the model has no such file.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    _limit_silence()
    where, passes = printable(constants.ENDPOINT), False
    try:
        return function(repo, *arguments, **options)
    except RemoteEntryNotFoundError:
        raise
    except GatedRepoError:
        page = printable(f"{constants.ENDPOINT}/{repo}")
        problem = f"it is gated: accept its terms on {page}, then log in with `hf auth login` or HF_TOKEN"
    except RepositoryNotFoundError:
        create = f"make it on {printable(constants.ENDPOINT)}/new" if writing else "check the name"
        problem = f"the hub has no such model: {create}, or log in with `hf auth login` if it is private"
    except RevisionNotFoundError:
        call = f"HfApi().create_branch({printable(repo)!r}, branch={printable(str(options.get('revision')))!r})"
        problem = (
            f"the model has no such branch: {call} of huggingface_hub makes it"
            if writing
            else ("the model has no such revision: name a branch, a tag or a commit with --revision")
        )
    except HFValidationError:
        raise UsageError(f"{label} is not a name on the hub: write org/name") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC):
            raise
        answered = isinstance(error, HfHubHTTPError)
        cause = error.__cause__ if writing and error.__cause__ is not None and not answered else error
        if isinstance(cause, HfHubHTTPError):
            passes, problem = cause.response.status_code in _PASSING, _refusal(cause, writing=writing)
        else:
            # HTTPError is of the HTTP library, which is another one in each version of huggingface_hub. What is no JSON comes
            # from somebody who stands before the hub.
            passing = (HTTPError, ConnectionError, TimeoutError, json.JSONDecodeError)
            passes = isinstance(error, passing) or isinstance(cause, passing)
            passes = passes and not isinstance(cause, OfflineModeIsEnabled)
            reason = printable(redacted((str(cause) or type(cause).__name__).splitlines()[0]))
            again = "unset HF_HUB_OFFLINE" if isinstance(cause, OfflineModeIsEnabled) else "run it again"
            problem = (
                f"the upload to {where} failed ({reason}): {again}"
                if writing
                else (f"the download from {where} failed ({reason}): try again, or --offline for the cache")
            )
    raise HubError(f"{label}: {problem}", passes=passes) from None


def _refusal(error: "HfHubHTTPError", *, writing: bool) -> str:
    """Say what the hub answered, in its own words where it has any, and what helps."""
    status = error.response.status_code
    said = "" if status in _PASSING else printable(redacted(" ".join((error.server_message or "").split())))
    if status == 402 or (status == 403 and _QUOTA.search(said)):
        remedy = "make room there, or have the limit raised"
    elif status in (401, 403) and writing:
        remedy = "log in with `hf auth login` or HF_TOKEN, with a token that may write here"
    elif status == 413:
        remedy = "write smaller files (--shard-size)"
    elif status in (400, 422) and said:
        remedy = "mend what it names"
    else:
        remedy = "try again later" if status in _PASSING else "check the name, and HF_ENDPOINT"
    return f"the hub answered {status}{said and f' ({said})'}: {remedy}"
