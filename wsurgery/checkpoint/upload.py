"""Objects in a store, written as their bytes come: whole or not at all, and in the memory of a few parts.

An S3 upload has parts, which may be sent in any order, and is no object before it is completed. So what a checkpoint begins with,
a header that holds digests which are known at its end, waits here, and is sent last.
"""

import errno
import io
import os
import shlex
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from hashlib import md5
from itertools import count
from types import TracebackType
from typing import Any, NamedTuple

from wsurgery.checkpoint.sink import AppearedError, RemoteOutput
from wsurgery.ending import half_done
from wsurgery.errors import UsageError, WsurgeryError, printable, redacted

# Bytes, at least. S3 wants 5 MiB, and some who speak it as many of all but the last; each part costs a request and a signature.
_PART = 16 << 20
_MOST_PARTS = 9_000  # of S3's 10,000
_AT_ONCE = 4  # parts on their way
_LAST_WORD = 5  # seconds to take all uploads back in
_SILENCE = 1.0  # seconds without an answer after which nobody waits for the next one when a signal ends the process
_LONGEST = 5000  # characters of an address: a key has 1,024 bytes
_PASSING = (429, 500, 502, 503, 504)  # HTTP statuses that may be others a moment later
_LONGEST_WAIT = 16.0  # seconds
ATTEMPTS = 8  # of a request that fails as if it could do better, with waits that double: a minute in all, at most


class Unfinished(NamedTuple):
    """An upload that nobody completed: its object's address, its number, and when it was begun."""

    url: str
    number: str
    begun: str


_open: "list[Upload]" = []  # in this process, with those that were left before the others


class Upload(RemoteOutput):
    """Context manager that writes an object to S3, which appears when it is left without an error.

    Requests that fail as if they could do better are made again by botocore, a part whole, up to 8 times in a minute.

    Attributes:
        label: its address.
    """

    def __init__(self, url: str, *, size: int, force: bool = False) -> None:
        """Ask whether it exists.

        Args:
            url: `s3://bucket/key`.
            size: bytes that will be written, at most.
            force: whether what is there is replaced.

        Raises:
            UsageError: it exists and `force` is off, or it is no address.
            OSError: no connection, or no permission.
        """
        self.label, self.url = printable(url), url
        self._store, self._place = connect(), place_of(url)
        self._part = max(_PART, -(-size // _MOST_PARTS // (1 << 20)) * (1 << 20))
        self._new = {} if force else {"IfNoneMatch": "*"}
        self._buffer = io.BytesIO()  # as a request takes it, so that no part is in memory twice
        self._held: list[io.BytesIO] = []
        self._first = 0  # bytes that were written first, and may be written again
        self._numbers = count(1)
        self._number: str | None = None  # of the upload, as long as there is one
        self._left = False
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._sending: deque[Future[None]] = deque()
        self._etags: dict[int, str] = {}
        if not force and exists(url):
            raise UsageError(f"{self.label} exists: add --force to overwrite it")

    def __enter__(self) -> "Upload":
        _open.append(self)
        half_done[Upload] = _end
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self._number is not None or self._held:  # else one request brings all
                    self.settle()
                self._complete()
        except BaseException as own:
            kind, error = type(own), own
            raise
        finally:
            self._pool.shutdown(cancel_futures=kind is not None)
            self._left = True
            if all(upload._left for upload in _open):  # together, or each would wait for a store that does not answer
                _take_all_back()
                _name_lost(error)
                _open.clear()
                half_done.pop(Upload, None)
            self._store.invalidate_cache()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take in bytes, and return how many: all; wait while too many parts are on their way.

        Raises:
            OSError: an earlier part could not be sent.
        """
        view = memoryview(data).cast("B")
        size = len(view)
        self._first = self._first or size
        while view:
            view = view[self._buffer.write(view[: self._part - self._buffer.tell()]) :]
            if self._buffer.tell() == self._part:
                part, self._buffer = self._buffer, io.BytesIO()
                number = next(self._numbers)
                if (number - 1) * self._part < self._first:
                    self._held.append(part)
                else:
                    self._send(number, part)
        return size

    def write_again(self, data: bytes) -> None:
        """Replace what was written first by as many other bytes."""
        view = memoryview(data)
        for part in (*self._held, self._buffer):
            with part.getbuffer() as there:
                n = min(len(there), len(view))
                there[:n], view = view[:n], view[n:]

    def settle(self) -> None:
        """Send all that is still here.

        Raises:
            OSError: a part could not be sent.
        """
        held, self._held = self._held, []
        for number, part in enumerate(held, 1):
            self._send(number, part)
        if self._buffer.tell():
            part, self._buffer = self._buffer, io.BytesIO()
            self._send(next(self._numbers), part)
        while self._sending:
            self._sending.popleft().result()
        self._pool.shutdown()

    def _send(self, number: int, part: io.BytesIO) -> None:
        if self._number is None:
            self._number = self._call("create_multipart_upload")["UploadId"]
        while len(self._sending) >= _AT_ONCE:
            self._sending.popleft().result()
        self._sending.append(self._pool.submit(self._put, number, part))

    def _put(self, number: int, part: io.BytesIO) -> None:
        found = self._call("upload_part", PartNumber=number, UploadId=self._number, Body=part)
        self._etags[number] = found["ETag"]

    def _complete(self) -> None:
        if self._number is None:
            expected = md5(self._buffer.getvalue(), usedforsecurity=False).hexdigest()
            complete = partial(self._call, "put_object", Body=self._buffer, **self._new)
        else:
            parts = [{"PartNumber": number, "ETag": self._etags[number]} for number in sorted(self._etags)]
            sums = b"".join(bytes.fromhex(str(each["ETag"]).strip('"')) for each in parts) if self._plain else b""
            expected = f"{md5(sums, usedforsecurity=False).hexdigest()}-{len(parts)}"
            together = {"UploadId": self._number, "MultipartUpload": {"Parts": parts}}
            complete = partial(self._call, "complete_multipart_upload", **together, **self._new)
        try:
            complete()
        except OSError as error:
            # An answer that was lost: what was asked again is refused, because it was done. Or another writer did the same:
            # then there is an upload to be taken back.
            with suppress(OSError):
                if str(self._call("head_object")["ETag"]).strip('"') == expected:
                    return
            if error.errno == errno.EEXIST:
                raise AppearedError(self.label) from None
            raise
        self._number = None

    @property
    def _plain(self) -> bool:
        """Whether parts are known by their MD5, as they are where the store does not encrypt them by keys of its own."""
        return all(len(etag.strip('"')) == 32 for etag in self._etags.values())

    def _call(self, method: str, **given: Any) -> Any:
        return call(self._store, self.label, method, **self._place, **given)


def _take_all_back(silence: float = _LAST_WORD) -> None:
    """Abort all that was not completed, at once, and wait no longer than somebody waits who ends this process."""
    import asyncio  # which s3fs has imported, and takes a while where nothing else does

    begun = {}
    for upload in list(_open):
        if upload._number is not None:
            request = upload._store._call_s3("abort_multipart_upload", UploadId=upload._number, **upload._place)
            begun[asyncio.run_coroutine_threadsafe(request, upload._store.loop)] = upload
    deadline, waiting = time.monotonic() + _LAST_WORD, set(begun)
    while waiting and (left := deadline - time.monotonic()) > 0:
        answered, waiting = wait(waiting, min(silence, left), FIRST_COMPLETED)
        if not answered:
            return
        for answer in answered:
            if not answer.cancelled() and isinstance(answer.exception(), (type(None), FileNotFoundError)):  # it is gone
                begun[answer]._number = None


def _end() -> None:
    """Take all back when a signal ends the process, and the main thread waits for a store."""
    _take_all_back(_SILENCE)
    _name_lost(None)


def _name_lost(error: BaseException | None) -> None:
    """Have an error say how to remove the parts that lie in the store; where none is shown, it is said at once."""
    urls = [upload.url for upload in _open if upload._number is not None]
    if not urls:
        return
    place = urls[0] if len(urls) == 1 else urls[0].rpartition("/")[0] + "/"
    remedy = f"parts lie there, which `wsurgery push --clean {shlex.quote(printable(place, _LONGEST))}` removes"
    if isinstance(error, OSError):
        error.strerror = f"{error.strerror}; {remedy}"
    elif isinstance(error, WsurgeryError):
        error.args = (f"{error}; {remedy}",)
    else:
        with suppress(OSError):
            os.write(2, f"wsurgery: {printable(place)}: {remedy}\n".encode())


def exists(url: str) -> bool:
    """Whether there is an object, as far as this user may know.

    Raises:
        OSError: no connection.
    """
    try:
        call(connect(), printable(url), "head_object", **place_of(url))
    except (FileNotFoundError, PermissionError):  # as some answer for what is not there
        return False
    return True


def delete(url: str) -> None:
    """Delete an object.

    Raises:
        OSError: no connection, or no permission.
    """
    call(connect(), printable(url), "delete_object", **place_of(url))


def unfinished(url: str) -> list[Unfinished]:
    """Find the uploads to an object, or to what is in a folder (`s3://bucket/folder/`, `s3://bucket/`), that nobody completed.

    Raises:
        OSError: no connection, or no permission.
    """
    bucket, key = place_of(url, root=True).values()
    given: dict[str, Any] = {}
    found = []
    while True:
        page = call(connect(), printable(url), "list_multipart_uploads", Bucket=bucket, Prefix=key, **given)
        for each in page.get("Uploads", []):
            if not key or key.endswith("/") or each["Key"] == key:
                begun = f"{each['Initiated']:%Y-%m-%d %H:%M}"
                found.append(Unfinished(f"s3://{bucket}/{each['Key']}", each["UploadId"], begun))
        if not page.get("IsTruncated"):
            return found
        given = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def remove(upload: Unfinished) -> bool:
    """Remove the parts of an upload that nobody completed. Return whether it was still there.

    Raises:
        OSError: no connection, or no permission.
    """
    url = upload.url
    try:
        call(connect(), printable(url), "abort_multipart_upload", UploadId=upload.number, **place_of(url))
    except FileNotFoundError:
        return False
    return True


def place_of(url: str, *, root: bool = False) -> dict[str, Any]:
    """Return `Bucket` and `Key`.

    Args:
        url: `s3://bucket/key`.
        root: whether `s3://bucket/` is a folder, too.

    Raises:
        UsageError: it is no address of an object.
    """
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not (url.startswith("s3://") and bucket and (key or (root and url.endswith("/")))) or "@" in bucket:
        raise UsageError(f"{printable(url)}: write it as s3://bucket/name, with no key of yours in it")
    require_no_version(url)
    return {"Bucket": bucket, "Key": key}


def require_no_version(url: str) -> None:
    """Refuse `?versionId=`, which s3fs would leave out, and a store take for a part of the name.

    Raises:
        UsageError: it is there.
    """
    key, version, _ = url.partition("?versionId=")
    if version:
        raise UsageError(
            f"{printable(url)}: versions of an object have no address here: copy that one to a name of its own, or write "
            f"{printable(key)}"
        )


def connect() -> Any:
    """Return s3fs's file system, which finds the credentials."""
    import s3fs

    store = s3fs.S3FileSystem(config_kwargs={"retries": {"mode": "standard", "total_max_attempts": ATTEMPTS}})
    store.retries = 1  # or those would be made again, too
    return store


def call(store: Any, label: str, method: str, *, writing: bool = True, **given: Any) -> Any:
    """Make a request, again and again if it fails as if it could do better.

    Args:
        store: as `connect` gives it.
        label: what messages call the object.
        method: botocore's.
        writing: whether it is for an upload, which other remedies help.
        **given: its arguments.

    Raises:
        FileNotFoundError: there is no such object or bucket.
        PermissionError: no permission, or no longer.
        FileExistsError: the object exists, and was not to be replaced.
        OSError: another error.
    """
    pause, attempts = 0.5, 0
    while True:
        if "Body" in given:  # which an attempt has read
            given["Body"].seek(0)
        try:
            return store.call_s3(method, **given)
        except Exception as error:  # botocore's own, which are of no common kind
            said = _response(error).get("ResponseMetadata", {})
            attempts += 1 + said.get("RetryAttempts", 0)  # botocore's own are among them
            if said.get("HTTPStatusCode") != 429 or attempts >= ATTEMPTS:
                raise as_os_error(error, label, writing=writing) from None
        time.sleep(pause)  # "too many requests", which botocore takes for no reason to wait unless its code says more
        pause = min(2 * pause, _LONGEST_WAIT)


def as_os_error(error: Exception, label: str, *, writing: bool) -> OSError:
    """Say what went wrong between here and a store. Other remedies help a writer than a reader."""
    name = str(_response(error).get("Error", {}).get("Code", ""))
    if name == "NoSuchUpload":
        problem = "its upload was removed while it went on, by `push --clean` or a rule of the bucket: run it again"
        return FileNotFoundError(errno.ENOENT, problem, label)
    if name in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
        return FileExistsError(errno.EEXIST, "exists", label)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "not found: check the address (a folder ends in /)", label)
    if isinstance(error, PermissionError):
        expired = "your credentials have expired: renew them" if name == "ExpiredToken" else "access refused"
        return PermissionError(errno.EACCES, f"{expired}: check AWS_PROFILE or AWS_ACCESS_KEY_ID", label)
    if name == "InvalidRange":
        return OSError(errno.EIO, "it is empty, or was replaced while it was read", label)
    problem = getattr(error, "strerror", None) or str(error) or type(error).__name__
    hint = ""
    if "credentials" in problem:
        hint = ": set AWS_PROFILE or AWS_ACCESS_KEY_ID" if writing else "; for a public bucket set FSSPEC_S3_ANON=true"
    elif _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode") in _PASSING:
        hint = ": try again later"
    return OSError(errno.EIO, printable(redacted(problem)) + hint, label)


def _response(error: Exception) -> Mapping[str, Any]:
    """Return what the server said, as botocore has it."""
    return getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
