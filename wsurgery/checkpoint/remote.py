"""Checkpoints at a URL, read by ranges: the header, and of the tensors those that are asked for.

`https://` and `http://` need the standard library alone, `hf://org/repo[@revision][/path]` huggingface_hub and `s3://`
s3fs, which find the credentials. What a URL has of secrets, its query and a password, is neither shown nor recorded. What
goes wrong between here and there is an OSError, as it is for a local file.
"""

import base64
import errno
import http.client
import io
import re
import ssl
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, Protocol, cast
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from wsurgery.checkpoint.hub_api import split_url
from wsurgery.checkpoint.reader import Checkpoint
from wsurgery.checkpoint.shards import INDEX, MAX_INDEX, WHOLE, ShardedCheckpoint, parse_index
from wsurgery.checkpoint.upload import ATTEMPTS, call, connect, place_of, require_no_version
from wsurgery.errors import UsageError, printable, redacted

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_LEAST = 16 << 10  # bytes of the first range: most headers are shorter, or not much longer
_MOST = 16 << 20  # bytes of one range; two more are on their way while it is used
_UNASKED = 4 << 20  # bytes fetched beyond what is asked for, at most
_CHUNK = 256 << 10  # bytes between two looks at whether anyone still wants the rest
_ATTEMPTS = 4  # in a row that bring less than _FEWEST
_TIMEOUT = 30  # seconds without a byte
_PATIENCE = 30.0  # seconds of waiting in which a server sends at least as many bytes:
_FEWEST = 30 << 10
# Bytes of an answer that are none of the object's, beside as many as of the object: headers, and marks of chunks.
_BESIDE = 1 << 20
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that may be gone a second later
_REPLACED = "it was replaced by another file while it was read: run the command again"


class RemoteObject(Protocol):
    """An object in a store, or a folder of them.

    Attributes:
        label: its URL without secrets, as it is shown: cut where it is long.
        pinned: the whole URL without secrets, to find it again; where a store keeps versions, of the version that was read.
        name: the last part of its name.
        is_folder: whether it is one.
        size: in bytes, known when it is open.
        first: its first bytes, as far as opening it brought them.
    """

    label: str
    name: str
    is_folder: bool
    size: int
    first: bytes

    @property
    def pinned(self) -> str:
        """The URL for the record."""

    def open(self) -> None:
        """Find out the size."""

    def chunks(self, start: int, end: int) -> Iterator[bytes]:
        """Give the bytes from `start` to `end` or the object's end, whichever comes first.

        Raises:
            OSError: they cannot be had, or the object was replaced since it was opened.
        """

    def beside(self, name: str) -> "RemoteObject":
        """Give the object `name` in this folder, or in the folder of this object."""


class Http:
    """An object of a web server that gives ranges."""

    remedy = "a signed address may have expired, or it wants a password (https://USER:PASSWORD@…)"

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        login, _, host = parts.netloc.rpartition("@")
        token = base64.b64encode(unquote(login).encode()).decode()
        self._secrets = {"Authorization": f"Basic {token}"} if login else {}
        self._typed = url
        path, query = (quote(part, safe="/%:@!$&'()*+,;=?~") for part in (parts.path or "/", parts.query))
        self._url = urlunsplit((parts.scheme, host, path, query, ""))
        self.label = printable(without_secrets(url))
        self.name = unquote(parts.path).rstrip("/").rpartition("/")[2] or host
        self.is_folder = parts.path.endswith("/")
        self.size, self.first = -1, b""
        self._location: str | None = None  # where a redirection led; it may expire
        self._etag: str | None = None
        self._redirections = _Redirections(self._url, self._secrets)
        self._opener = urllib.request.build_opener(self._redirections, _HttpHandler, _HttpsHandler)

    @property
    def pinned(self) -> str:
        """The URL without secrets: the web keeps no versions."""
        return without_secrets(self._typed)

    def beside(self, name: str) -> RemoteObject:
        """Give the object `name` in the folder of this one; the query, which may hold the permission, is kept."""
        parts = urlsplit(self._typed)
        folder = parts.path.rpartition("/")[0]
        return Http(urlunsplit(parts._replace(path=f"{folder}/{quote(name)}")))

    def open(self) -> None:
        """Find out the size, which comes with the first bytes."""
        self.first = b"".join(self.chunks(0, _LEAST))

    def chunks(self, start: int, end: int) -> Iterator[bytes]:
        """Give the bytes from `start` to `end`; a connection that drops is made again from where it did, if it brought some.

        Raises:
            OSError: no connection, no permission, no such object, no ranges, or the object was replaced.
        """
        failures = 0
        while True:
            began = start
            try:
                with self._get(start, end) as response:
                    end = min(end, self._check(response, start, end))
                    while start < end and (chunk := response.read1(min(_CHUNK, end - start))):
                        start += len(chunk)
                        yield chunk
                if start >= end:
                    return
                problem = "the connection dropped"
            except urllib.error.HTTPError as error:
                error.close()
                reason = "it redirects to where nobody is led" if 300 <= error.code < 400 else printable(error.reason)
                problem = f"the server answered {error.code} ({reason})"
                if error.code not in _PASSING and self._location is None:
                    self._refuse(error.code, problem)
            except (ValueError, OverflowError, http.client.InvalidURL):  # a host or a port that is none
                self._fail("it leads to an address that is none: check it, or download the file first")
            except _TooSlow:
                self._fail(
                    f"the server sent less than {_FEWEST >> 10} KiB in {_PATIENCE:g} s: try again later, or another"
                )
            except _TooMuch:
                self._fail("the server sent far more than it was asked for: download the file first")
            except urllib.error.URLError as error:
                problem = f"no connection ({printable(str(error.reason))})"
            except (ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException) as error:
                problem = f"the connection failed ({type(error).__name__})"
            self._location = None
            failures = 1 if start - began >= _FEWEST else failures + 1
            if failures == _ATTEMPTS:
                self._fail(f"{problem} at byte {start:,}, {_ATTEMPTS} times: try again, or download the file first")
            time.sleep(failures - 1)  # a connection that gave something is made again at once

    def _get(self, start: int, end: int) -> Any:
        wanted = {"Range": f"bytes={start}-{end - 1}"}
        request: Any = urllib.request.Request(self._location or self._url, headers=wanted)
        request.most = 2 * (end - start) + _BESIDE
        self._redirections.authorize(request)
        return self._opener.open(request, timeout=_TIMEOUT)

    def _check(self, response: Any, start: int, end: int) -> int:
        """Return the object's size, if this is the answer to what was asked."""
        given = re.fullmatch(
            r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", response.headers.get("Content-Range", "")
        )
        length = response.headers.get("Content-Length", "")
        if response.status == 206 and given and int(given[1]) == start:
            size = int(given[2])
        elif response.status == 200 and start == 0 and re.fullmatch("[0-9]{1,18}", length) and int(length) <= end:
            size = int(length)  # all of a small object instead of a range
        else:
            self._fail("the server gives whole files only, no ranges: download it, and name the file")
        etag = response.headers.get("ETag")
        if self.size >= 0 and (size, etag) != (self.size, self._etag):
            self._fail(_REPLACED)
        self.size, self._etag = size, etag
        self._location = response.url
        return size

    def _refuse(self, status: int, problem: str) -> NoReturn:
        if status in (404, 410):
            raise FileNotFoundError(errno.ENOENT, f"not found ({status}): check the address", self.label)
        if status in (401, 403):
            raise PermissionError(errno.EACCES, f"access refused ({status}): {self.remedy}", self.label)
        self._fail("it is empty" if status == 416 else problem)

    def _fail(self, problem: str) -> NoReturn:
        raise OSError(errno.EIO, problem, self.label)


class Hub(Http):
    """A file of a model on the Hugging Face hub; what is read after the first answer is of the same commit."""

    remedy = "check the name, log in with `hf auth login` or HF_TOKEN, and accept the model's terms on its page"

    def __init__(self, repo: str, revision: str | None, path: str) -> None:
        from huggingface_hub import get_token, hf_hub_url

        super().__init__(hf_hub_url(repo, path, revision=revision))
        self.repo, self.revision, self.path = repo, revision, path
        self.label = printable(self._address(revision))
        self.name = (path.rstrip("/") or repo).rpartition("/")[2]
        self.is_folder = not path.endswith((".safetensors", ".json"))
        token = get_token()
        self._secrets |= {"Authorization": f"Bearer {token}"} if token else {}

    @property
    def pinned(self) -> str:
        """The URL with the commit that was read, if the server told it."""
        return self._address(self._redirections.commit or self.revision)

    def beside(self, name: str) -> RemoteObject:
        """Give the file `name` in this folder, or in the folder of this file, of the same commit."""
        folder = self.path.rstrip("/") if self.is_folder else self.path.rpartition("/")[0]
        return Hub(self.repo, self._redirections.commit or self.revision, f"{folder}/{name}" if folder else name)

    def _address(self, revision: str | None) -> str:
        return f"hf://{self.repo}" + (f"@{revision}" if revision else "") + (f"/{self.path}" if self.path else "")

    def _check(self, response: Any, start: int, end: int) -> int:
        from huggingface_hub import hf_hub_url

        size = super()._check(response, start, end)
        self._redirections.note(response.headers)
        self._url = hf_hub_url(self.repo, self.path, revision=self._redirections.commit or self.revision)
        return size


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Follows redirections; secrets go to the server that they are for and to no other."""

    def __init__(self, url: str, secrets: Mapping[str, str]) -> None:
        self.origin, self.secrets = urlsplit(url)[:2], secrets
        self.commit: str | None = None

    def note(self, headers: Any) -> None:
        """Note the commit: the hub tells it, the store that it leads to does not."""
        commit = headers.get("X-Repo-Commit", "")
        if self.commit is None and re.fullmatch("[0-9a-f]{40}", commit):
            self.commit = commit

    def authorize(self, request: urllib.request.Request) -> None:
        if urlsplit(request.full_url)[:2] == self.origin:
            for key, value in self.secrets.items():
                request.add_unredirected_header(key, value)

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """Go where it leads, if that is anywhere; urllib would read all that comes with the answer, and it may be endless."""
        fp.read = bytes
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except (ValueError, http.client.InvalidURL):
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        request: Any = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            self.note(headers)
            self.authorize(request)
            request.most = req.most
        return request


class _TooSlow(TimeoutError):
    """A server that sends, but next to nothing."""


class _TooMuch(OSError):
    """A server that sends what nobody asked for."""


class _Pace:
    """How fast bytes come from a server; the time that others take does not count."""

    def __init__(self) -> None:
        self._waited, self._received = 0.0, 0

    def took(self, seconds: float, n: int) -> None:
        """Count a wait for `n` bytes.

        Raises:
            _TooSlow: they come, and next to none.
        """
        self._waited += seconds
        self._received += n
        if self._waited > _PATIENCE:
            if self._received < _FEWEST and n:
                raise _TooSlow
            self._waited, self._received = 0.0, 0


class _Paced(io.RawIOBase):
    """What comes from a server: so many bytes, and as long as they come fast enough."""

    def __init__(self, stream: Any, most: int) -> None:
        self._stream, self._left = stream, most
        self._pace = _Pace()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int | None:
        """Read what is there.

        Raises:
            OSError: the connection failed.
            _TooSlow: it all but failed.
            _TooMuch: it brought more than it may.
        """
        began = time.monotonic()
        n: int | None = self._stream.readinto(buffer)
        self._left -= n or 0
        if self._left < 0:
            raise _TooMuch
        self._pace.took(time.monotonic() - began, n or 0)
        return n

    def close(self) -> None:
        """Close the connection's side of it."""
        super().close()
        self._stream.close()


class _Response(http.client.HTTPResponse):
    def __init__(self, *arguments: Any, most: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.fp = io.BufferedReader(_Paced(self.fp.detach(), most))


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_paced(http.client.HTTPConnection, req), req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_paced(http.client.HTTPSConnection, req), req)


def _paced(kind: Any, request: Any) -> Any:
    def connection(*arguments: Any, **options: Any) -> Any:
        made = kind(*arguments, **options)
        made.response_class = partial(_Response, most=request.most)
        return made

    return connection


class S3:
    """An object in a bucket."""

    def __init__(self, url: str) -> None:
        if "@" in url.removeprefix("s3://").partition("/")[0]:
            shown = printable(without_secrets(url))
            raise UsageError(f"{shown}: no key stands in the address: set AWS_PROFILE or AWS_ACCESS_KEY_ID")
        require_no_version(url)
        self._store = connect()
        self._url = url
        self.pinned = without_secrets(url)
        self.label = printable(self.pinned)
        self.name = url.rstrip("/").rpartition("/")[2]
        self.is_folder = url.endswith("/")
        self.size, self.first = -1, b""
        self._etag: str | None = None

    def beside(self, name: str) -> RemoteObject:
        """Give the object `name` in this folder, or in the folder of this object."""
        return S3(f"{self._url.rpartition('/')[0]}/{name}")

    def open(self) -> None:
        """Find out the size, which comes with the first bytes."""
        self.first = b"".join(self.chunks(0, _LEAST))

    def chunks(self, start: int, end: int) -> Iterator[bytes]:
        """Give the bytes from `start` to `end`, in pieces of what came in one answer.

        Raises:
            OSError: no connection, no permission, no such object, or the object was replaced.
        """
        import asyncio  # which s3fs has imported, and takes a while where nothing else does

        failures = 0
        while True:
            found = self._get(start, end)
            end = min(end, self.size)
            pieces: list[bytes] = []
            try:
                receiving = _receive(found["Body"], end - start, pieces)
                asyncio.run_coroutine_threadsafe(receiving, self._store.loop).result()
                problem = "the connection dropped"
            except _TooSlow:
                problem = f"the store sent less than {_FEWEST >> 10} KiB in {_PATIENCE:g} s"
                raise OSError(errno.EIO, f"{problem}: try again later", self.label) from None
            except Exception as error:  # botocore's own, which are of no common kind
                problem = f"the connection failed ({type(error).__name__})"
            data = b"".join(pieces)
            start += len(data)
            yield data
            if start >= end:
                return
            failures = 1 if len(data) >= _FEWEST else failures + 1
            if failures == ATTEMPTS:
                raise OSError(errno.EIO, f"{problem} at byte {start:,}, {ATTEMPTS} times: try again", self.label)
            time.sleep(min(2.0 ** (failures - 2), 16))

    def _get(self, start: int, end: int) -> Any:
        """Ask for bytes, and see that what is answered is of the object that was opened."""
        wanted = f"bytes={start}-{end - 1}"
        found = call(self._store, self.label, "get_object", writing=False, Range=wanted, **place_of(self._url))
        given = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", found.get("ContentRange") or "")
        size, etag = int(given[2]) if given else int(found["ContentLength"]), found.get("ETag")
        if self.size >= 0 and (size, etag) != (self.size, self._etag):
            problem = _REPLACED
        elif int(given[1]) != start if given else start or size > end:
            problem = "the store gives whole objects only, no ranges: download it, and name the file"
        else:
            self.size, self._etag = size, etag
            return found
        found["Body"].close()
        raise OSError(errno.EIO, problem, self.label)


async def _receive(body: Any, wanted: int, pieces: list[bytes]) -> None:
    """Append what comes to `pieces`, as long as it comes fast enough, and no more than is wanted."""
    pace = _Pace()
    try:
        while wanted:
            began = time.monotonic()
            piece = await body.read(min(_CHUNK, wanted))
            pace.took(time.monotonic() - began, len(piece))
            if not piece:
                return
            pieces.append(piece)
            wanted -= len(piece)
    finally:
        body.close()


class RemoteFile(io.RawIOBase):
    """A remote object as a file that is read at any place.

    What is asked for comes in ranges of up to 16 MiB, two of them ahead. Whoever reads on gets more than was asked for,
    as much as was read in a row before and at most 4 MiB, so that small tensors do not take a request each.
    """

    def __init__(self, remote: RemoteObject) -> None:
        self.remote = remote
        self._position = 0
        self._expected = 0  # everything before it will be read
        self._begin, self._end = 0, len(remote.first)  # of the bytes that were fetched in a row
        self._ranges: deque[tuple[int, int, Future[bytes]]] = deque()
        self._pool = ThreadPoolExecutor(3)
        if remote.first:
            self._ranges.append((0, self._end, self._pool.submit(bytes, remote.first)))

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be read at any place."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; nothing is fetched."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.remote.size}[whence]
        self._expected = 0
        return self._position

    def expect(self, end: int) -> None:
        """Learn that everything from here to `end` will be read."""
        self._expected = end

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read as much as is there of the range at hand; 0 bytes at the end of the object."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self.remote.size - self._position)
        if wanted <= 0:
            return 0
        self._fetch(wanted)
        start, _, data = self._ranges[0]
        piece = memoryview(data.result())[self._position - start :][:wanted]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _fetch(self, wanted: int) -> None:
        """Have the range with the next byte on its way as the first of `_ranges`, and those after it."""
        at = self._position
        while self._ranges and self._ranges[0][1] <= at:
            self._ranges.popleft()
        if not (self._ranges[0][0] if self._ranges else self._end) <= at <= self._end:
            self._forget()
            self._begin = self._end = at
        asked = max(self._expected, at + wanted)
        unasked = min(max(at - self._begin, _LEAST), _UNASKED)
        while len(self._ranges) < 3 and (self._end < asked or self._end - at < unasked // 2):
            start, end = self._end, min(max(asked, at + unasked), self._end + _MOST, self.remote.size)
            if start == end:
                break
            self._ranges.append((start, end, self._pool.submit(self._read, start, end)))
            self._end = end

    def _read(self, start: int, end: int) -> bytes:
        chunks = []
        for chunk in self.remote.chunks(start, end):
            if self.closed:
                break
            chunks.append(chunk)
        return b"".join(chunks)  # of one, as from S3, itself

    def _forget(self) -> None:
        for _, _, data in self._ranges:
            data.cancel()
        self._ranges.clear()

    def close(self) -> None:
        """Forget what was fetched, and wait for nothing."""
        if not self.closed:
            super().close()
            self._forget()
            self._pool.shutdown(wait=False)


class RemoteCheckpoint(Checkpoint):
    """A safetensors file at a URL. `place` is what the user named: the file, or a folder with this one file."""

    def __init__(self, remote: RemoteObject, place: RemoteObject) -> None:
        remote.open()
        self.remote = remote
        super().__init__(cast("BinaryIO", RemoteFile(remote)), None, label=place.label)
        self.name, self.url = place.name, remote.pinned

    def _rest(self) -> None:
        self.close()

    def _reopen(self) -> None:
        if self.stream.closed:
            self.stream = cast("BinaryIO", RemoteFile(self.remote))


class RemoteShards(ShardedCheckpoint):
    """The shards beside an index at a URL as one checkpoint."""

    def __init__(self, index: RemoteObject, shard_of: dict[str, str], folder: RemoteObject) -> None:
        self.index = index
        super().__init__(folder.label, shard_of)
        self.name, self.url = folder.name, index.pinned.removesuffix(INDEX)

    def _open_shards(self, names: list[str]) -> Iterator[Checkpoint]:
        shards = [self.index.beside(name) for name in names]
        with ThreadPoolExecutor(8) as pool:  # each header is an answer or two to wait for
            yield from pool.map(RemoteCheckpoint, shards, shards)


def without_secrets(url: str) -> str:
    """Return a URL, or a path, as it may be shown and recorded: without password, and of http(s) query and fragment."""
    shown = redacted(url)
    return re.sub(r"[?#].*", "", shown) if shown.startswith(("https:", "http:")) else shown


def open_remote(url: str) -> Checkpoint:
    """Open the checkpoint at a URL: a file, or a folder as `open_folder` does.

    Raises:
        UsageError: the URL is of a kind that is not read here.
        OSError: it cannot be reached.
        WsurgeryError: it is not a safetensors file, or broken.
    """
    checkpoint = _open(_place(url))
    checkpoint.address = url
    return checkpoint


def _open(place: RemoteObject) -> Checkpoint:
    if not place.is_folder:
        return RemoteCheckpoint(place, place)
    index = place.beside(INDEX)
    try:
        content = b"".join(index.chunks(0, MAX_INDEX + 1))
    except (FileNotFoundError, PermissionError):  # some stores refuse what is not there
        try:
            return RemoteCheckpoint(place.beside(WHOLE), place)
        except FileNotFoundError:
            problem = f"a folder with neither {INDEX} nor {WHOLE}: name a file in it"
            raise FileNotFoundError(errno.ENOENT, problem, place.label) from None
    return RemoteShards(index, parse_index(content, index.label), place)


def _place(url: str) -> RemoteObject:
    scheme = url.partition("://")[0]
    if scheme in ("https", "http"):
        try:
            return Http(url)
        except ValueError:  # brackets that do not match, or no text
            raise UsageError(f"{printable(without_secrets(url))} is not a URL") from None
    if scheme == "s3":
        return S3(url)
    if scheme != "hf":
        raise UsageError(f"{printable(scheme)}:// is not read: name a file, or an hf://, s3:// or https:// address")
    return Hub(*split_url(url))
