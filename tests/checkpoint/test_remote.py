"""Checkpoints at URLs: surgery on them is surgery on a local copy, few bytes are read, and secrets stay secret."""

import base64
import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import small_resnet, watching_imports
from tests.faults import Proxy
from wsurgery.checkpoint import open_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = "hf_SECRET"
MB = 1_000_000


class Server(ThreadingHTTPServer):
    """A web server of the files in a folder that counts what it sends.

    Attributes:
        quirk: what it does wrong: `no-ranges`, `forgets` (it knows the range that begins the file alone), `drops` (each
            answer after 300 kB), `crumbs` (each answer after a byte),
            `dead` (each answer at once), `busy` (the first two answers are 503), `replaces` (another ETag with each
            answer), `drips` (a byte every hundredth of a second), or a header that is sent as it is (`Name: value`).
        token: the Authorization header that it wants.
        cdn: where /org/repo/resolve/REVISION/FILE leads to, as on the Hugging Face hub.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.quirk, self.token, self.cdn = root, "", None, None
        self.sent, self.asked = 0, []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that has seen enough is no error."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        server, path = self.server, unquote(urlsplit(self.path).path)
        server.asked.append((self.path, self.headers.get("Authorization"), self.headers.get("Range")))
        if server.token and self.headers.get("Authorization") != server.token:
            return self.answer(401 if "/resolve/" in path else 403)
        on_hub = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path)
        if server.cdn and on_hub:
            if on_hub[2] not in ("main", "v1", COMMIT) or not (server.root / on_hub[1] / on_hub[3]).is_file():
                return self.answer(404)
            signed = f"{server.cdn}/{on_hub[1]}/{on_hub[3]}?X-Amz-Signature={SECRET}"
            return self.answer(302, {"Location": signed, "X-Repo-Commit": COMMIT})
        file = server.root / path.lstrip("/")
        if not file.is_file():
            return self.answer(404)
        if server.quirk == "busy" and len(server.asked) <= 2:
            return self.answer(503)
        size = file.stat().st_size
        start, end, status, headers = 0, size, 200, {"ETag": '"x"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and server.quirk != "no-ranges" and not (server.quirk == "forgets" and int(asked[1])):
            start, end, status = int(asked[1]), min(int(asked[2]) + 1, size), 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            if start >= size:
                return self.answer(416)
        if server.quirk == "replaces":
            headers["ETag"] = f'"{len(server.asked)}"'
        if ": " in server.quirk:
            name, value = server.quirk.split(": ", 1)
            return self.answer(302 if name == "Location" else status, {**headers, name: value})
        if server.quirk == "drips":
            return self.drip(status, headers)
        left = {"drops": 300_000, "crumbs": 1, "dead": 0}.get(server.quirk, size)
        self.answer(status, {**headers, "Content-Length": str(end - start)})
        with file.open("rb") as stream:
            stream.seek(start)
            while body and start < end and left and (piece := stream.read(min(65536, end - start, left))):
                self.wfile.write(piece)
                start, left = start + len(piece), left - len(piece)
                server.sent += len(piece)

    def drip(self, status, headers):
        self.answer(status, {**headers, "Content-Length": str(10**6)})
        for _ in range(10**5):
            self.wfile.write(b"x")
            time.sleep(0.01)

    def answer(self, status, headers=None):
        self.send_response(status)
        for key, value in (headers or {"Content-Length": "0"}).items():
            self.send_header(key, value)
        self.end_headers()


@pytest.fixture
def serve():
    """Serve a folder."""
    servers = []

    def start(root: Path) -> Server:
        servers.append(Server(root))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def web(tmp_path, serve, monkeypatch):
    """A server of the folder `web`, as a web server, as S3 and as the Hugging Face hub with its store elsewhere."""
    root = tmp_path / "web"
    root.mkdir()
    server = serve(root)
    server.cdn = serve(root).url
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return server


def put(path: Path, source: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, path)


def without_inputs(path: Path) -> tuple[object, bytes]:
    """A checkpoint's header without what its last record says of its inputs, and the tensors' bytes."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    history = json.loads(header["__metadata__"]["wsurgery"])
    history["log"][-1].pop("inputs")
    header["__metadata__"]["wsurgery"] = history
    return header, content[8 + length :]


def recorded(path: Path) -> dict:
    with open_checkpoint(path) as checkpoint:
        return json.loads(checkpoint.header.metadata["wsurgery"])["log"][-1]["inputs"][-1]


def shard(tensors: dict[str, np.ndarray], folder: Path, n: int) -> None:
    folder.mkdir(parents=True)
    weight_map = {}
    for i in range(n):
        group = {name: tensors[name] for name in sorted(tensors)[i::n]}
        save_file(group, folder / f"model-{i + 1:05d}-of-{n:05d}.safetensors")
        weight_map |= dict.fromkeys(group, f"model-{i + 1:05d}-of-{n:05d}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def sparse(path: Path, megabytes: int) -> int:
    """Write 40 tensors of zeros in 8 blocks that take no room on the disk; return the header's length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    each = megabytes * MB // 40 // 4 * 4
    header = {
        f"layer{i // 10 + 1}.{i % 10}.conv1.weight": {
            "dtype": "F32", "shape": [each // 4, 1, 1, 1], "data_offsets": [i * each, (i + 1) * each],
        }
        for i in range(40)
    }  # fmt: skip
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + 40 * each)
    return 8 + len(text)


ADDRESSES = {
    "https": "{url}/org/repo/model.safetensors",
    "s3": "s3://org/repo/model.safetensors",
    "hf": "hf://org/repo@v1/model.safetensors",
    "hf-repo": "hf://org/repo",
    "web-folder": "{url}/org/repo/",
    "s3-folder": "s3://org/repo/",
}


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES)
def test_surgery_on_a_url_is_surgery_on_a_local_copy(address, web, resnet, wsurgery, tmp_path):
    put(web.root / "org/repo/model.safetensors", resnet)
    address = address.format(url=web.url)
    for out, source in (("local", resnet), ("remote", address)):
        wsurgery("shuffle", source, "--blocks", "block2", "--seed", 3, "-o", tmp_path / out)
    assert without_inputs(tmp_path / "remote") == without_inputs(tmp_path / "local")
    given = recorded(tmp_path / "remote")
    assert given["size"] == resnet.stat().st_size
    assert given["url"].partition("@")[0].startswith(address.partition("@")[0].rstrip("/"))
    assert (f"@{COMMIT}" in given["url"]) == address.startswith("hf://")
    log = wsurgery("log", tmp_path / "remote").stdout.decode()
    assert f"shuffle {given['url']} " in log
    # The address of the record is as good as the one that was typed.
    wsurgery("shuffle", given["url"], "--blocks", "block2", "--seed", 3, "-o", tmp_path / "again")
    assert without_inputs(tmp_path / "again") == without_inputs(tmp_path / "local")


@pytest.mark.parametrize("address", ["hf://org/sharded", "s3://org/sharded/", "{url}/org/sharded/"])
def test_shards_at_a_url_are_one_checkpoint(address, web, wsurgery, tmp_path):
    shard(small_resnet(), web.root / "org/sharded", 4)
    wsurgery("meanvar", web.root / "org/sharded", "-o", f"{tmp_path}/local/")
    wsurgery("meanvar", address.format(url=web.url), "-o", f"{tmp_path}/remote/")
    names = sorted(path.name for path in (tmp_path / "local").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "remote").iterdir())
    for name in (name for name in names if name.endswith(".safetensors")):
        assert without_inputs(tmp_path / "local" / name) == without_inputs(tmp_path / "remote" / name)
    assert recorded(tmp_path / "remote" / names[0])["size"] == sum(
        path.stat().st_size for path in (web.root / "org/sharded").glob("*.safetensors")
    )


def test_with_a_history_a_url_gives_the_same_bytes_as_a_file(web, resnet, wsurgery, tmp_path):
    wsurgery("meanvar", resnet, "-o", web.root / "edited.safetensors")
    wsurgery("shuffle", web.root / "edited.safetensors", "-o", tmp_path / "local")
    wsurgery("shuffle", f"{web.url}/edited.safetensors", "-o", tmp_path / "remote")
    assert (tmp_path / "local").read_bytes() == (tmp_path / "remote").read_bytes()


def test_every_reading_command_takes_a_url(web, resnet, wsurgery, tmp_path):
    put(web.root / "a.safetensors", resnet)
    url = f"{web.url}/a.safetensors"
    assert wsurgery("digest", url).stdout == wsurgery("digest", resnet).stdout
    shown, local = (wsurgery("show", source, "--stats").stdout.decode().splitlines() for source in (url, resnet))
    assert shown[0].startswith(url)
    assert shown[1:] == local[1:]
    assert json.loads(wsurgery("diff", url, resnet, "--json").stdout)["identical"]
    for out, source in (("local", resnet), ("remote", url)):
        wsurgery("average", source, source, "-o", tmp_path / f"{out}-average")
        wsurgery("transfuse", source, "--upto", "block1", "--into", source, "-o", tmp_path / f"{out}-transfuse")
    for command in ("average", "transfuse"):
        assert without_inputs(tmp_path / f"remote-{command}") == without_inputs(tmp_path / f"local-{command}")


@pytest.mark.parametrize("address", [ADDRESSES[key] for key in ("https", "s3", "hf-repo")])
def test_show_reads_the_header_and_no_more(address, web, wsurgery, serve):
    store = serve(web.root)
    web.cdn = store.url
    header = sparse(web.root / "org/repo/model.safetensors", 200)
    wsurgery("show", address.format(url=web.url))
    assert header <= web.sent + store.sent <= header + 20_000


def test_a_part_costs_about_its_bytes(web, wsurgery, tmp_path):
    header = sparse(web.root / "model.safetensors", 200)
    wsurgery("keep", f"{web.url}/model.safetensors", "--blocks", "block2", "-o", tmp_path / "out")
    part = (tmp_path / "out").stat().st_size
    assert part > 45 * MB
    assert part <= web.sent <= header + part + 5 * MB
    assert len(web.asked) < 30


def test_small_tensors_do_not_take_a_request_each(web, wsurgery, tmp_path):
    save_file({f"layer{i}.weight": np.full((10, 10), i, np.float32) for i in range(1000)}, web.root / "m.safetensors")
    wsurgery("digest", f"{web.url}/m.safetensors")
    assert len(web.asked) < 15


def test_any_tensor_in_any_order_is_what_the_file_holds(web):
    rng = np.random.default_rng(0)
    tensors = {f"t{i}": rng.integers(0, 256, int(n), np.uint8) for i, n in enumerate(10 ** rng.uniform(0, 6.8, 40))}
    save_file(tensors, web.root / "m.safetensors")
    web.quirk = "drops"
    with open_checkpoint(f"{web.url}/m.safetensors") as checkpoint:
        for name in [*rng.permutation(list(tensors)), *tensors]:
            assert np.array_equal(checkpoint.read_array(name), tensors[name])
        for name in rng.permutation(list(tensors))[:20]:
            pieces = checkpoint.pieces(checkpoint.tensors[name])
            assert b"".join(map(bytes, pieces)) == tensors[name].tobytes()


def test_a_server_without_ranges_is_refused_at_once(web, wsurgery, tmp_path):
    sparse(web.root / "model.safetensors", 200)
    web.quirk = "no-ranges"
    done = wsurgery("meanvar", f"{web.url}/model.safetensors", "-o", tmp_path / "out", check=False)
    assert done.returncode == 1
    assert b"whole files only" in done.stderr
    assert b"download it" in done.stderr
    time.sleep(0.1)
    assert web.sent < 20 * MB  # what lies in the buffers of sockets
    assert not (tmp_path / "out").exists()


def test_who_closes_it_leaves_no_thread_that_reads_ahead(web):
    save_file({f"w{i}": np.zeros(100_000, np.float32) for i in range(20)}, web.root / "model.safetensors")
    with open_checkpoint(f"{web.url}/model.safetensors") as checkpoint:
        assert checkpoint.read(checkpoint.tensors["w0"])
        pool = checkpoint.stream._pool
        assert pool._threads
    deadline = time.monotonic() + 30
    while any(thread.is_alive() for thread in pool._threads) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(thread.is_alive() for thread in pool._threads)


def test_a_small_file_of_a_server_without_ranges_is_read_whole(web, wsurgery, tmp_path):
    save_file({"w": np.arange(500, dtype=np.float32)}, web.root / "model.safetensors")
    web.quirk = "no-ranges"
    wsurgery("scale", f"{web.url}/model.safetensors", "--by", 2, "-o", tmp_path / "out")
    np.testing.assert_array_equal(load_file(tmp_path / "out")["w"], 2 * np.arange(500, dtype=np.float32))


def test_a_server_that_forgets_ranges_is_refused_and_not_read_from_the_beginning(web, wsurgery, tmp_path):
    save_file({"w": np.arange(5_000, dtype=np.float32)}, web.root / "model.safetensors")  # the second range ends it
    web.quirk = "forgets"
    done = wsurgery("scale", f"{web.url}/model.safetensors", "--by", 1, "-o", tmp_path / "out", check=False)
    assert done.returncode == 1
    assert b"whole files only" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("quirk", "message"),
    [
        ("dead", "the connection dropped at byte 0, 4 times"),
        ("crumbs", "the connection dropped at byte 4, 4 times"),
        ("replaces", "was replaced by another file"),
    ],
)
def test_a_connection_that_fails_is_one_line(quirk, message, web, resnet, wsurgery, tmp_path):
    put(web.root / "model.safetensors", resnet)
    web.quirk = quirk
    done = wsurgery("shuffle", f"{web.url}/model.safetensors?sig={SECRET}", "-o", tmp_path / "out", check=False)
    assert done.returncode == 1
    assert message in done.stderr.decode()
    assert f"{web.url}/model.safetensors: " in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert SECRET.encode() not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("quirk", ["drops", "busy"])
def test_a_failure_that_passes_is_not_noticed(quirk, web, resnet, wsurgery):
    put(web.root / "model.safetensors", resnet)
    web.quirk = quirk
    assert wsurgery("digest", f"{web.url}/model.safetensors").stdout == wsurgery("digest", resnet).stdout


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("{url}/none.safetensors", "{url}/none.safetensors: not found (404): check the address"),
        ("{url}/none/", "{url}/none/: a folder with neither model.safetensors.index.json nor model.safetensors"),
        ("hf://org/none", "hf://org/none: a folder with neither"),
        ("hf://org/repo@none", "hf://org/repo@none: a folder with neither"),
        ("s3://org/none", "s3://org/none: not found: check the address (a folder ends in /)"),
        ("hf://org", "write it as hf://org/repo"),
        ("gs://org/x", "gs:// is not read"),
        ("https://[x/y?sig", "https://[x/y is not a URL"),
        ("{url}/short.safetensors", "{url}/short.safetensors holds"),
        ("{url}/empty.safetensors", "{url}/empty.safetensors: it is empty"),
        ("http://127.0.0.1:{closed}/x.safetensors", "no connection"),
    ],
)
def test_what_is_not_there_is_one_line(address, message, web, resnet, wsurgery):
    put(web.root / "org/repo/model.safetensors", resnet)
    (web.root / "short.safetensors").write_bytes(resnet.read_bytes()[:-1000])
    (web.root / "empty.safetensors").write_bytes(b"")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        words = {"url": web.url, "closed": free.getsockname()[1]}
        done = wsurgery("show", address.format(**words), check=False)
    assert done.returncode in (1, 2)
    assert message.format(**words) in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_a_server_that_drips_is_given_up(web, resnet, monkeypatch):
    put(web.root / "model.safetensors", resnet)
    monkeypatch.setattr("wsurgery.checkpoint.remote._PATIENCE", 0.3)
    with open_checkpoint(f"{web.url}/model.safetensors") as checkpoint:
        web.quirk = "drips"
        with pytest.raises(OSError, match=r"less than 30 KiB in 0\.3 s: try again later") as slow:
            checkpoint.read_array("layer2.0.conv2.weight")
        assert slow.value.filename == f"{web.url}/model.safetensors"


ANSWER = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9999/10000\r\n"


@pytest.mark.parametrize(
    ("begin", "again"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (ANSWER + b"Transfer-Encoding: chunked\r\n\r\n", b"1;" + b"x" * 60000 + b"\r\ny\r\n"),
        (ANSWER + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 302 Found\r\nLocation: {url}/m.safetensors\r\n\r\n", bytes(60000)),
        (b"HTTP/1.1 302 Found\r\nLocation: {url}/m.safetensors\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", bytes(60000)),
    ],
    ids=["100", "extensions", "trailers", "redirection", "chunked redirection", "404"],
)
def test_an_answer_without_end_is_not_read_to_it(begin, again, web, resnet):
    """What an honest server answers after a redirection is read; of the rest, few bytes."""
    put(web.root / "m.safetensors", resnet)
    sent = 0

    def serve(server):
        nonlocal sent
        while server.fileno() != -1:
            with contextlib.suppress(OSError), server.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(begin.replace(b"{url}", web.url.encode()))
                while True:
                    sent += connection.send(again * max(1, 60000 // len(again)))

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        if b"302" in begin:
            with open_checkpoint(address) as checkpoint, open_checkpoint(resnet) as local:
                assert checkpoint.tensors == local.tensors
        else:
            with pytest.raises(OSError, match=r"far more than it was asked for|not found \(404\)|four times"):
                open_checkpoint(address)
    assert sent < 30 * MB  # what lies in the buffers of sockets, of each connection


def test_a_server_whose_header_drips_is_given_up(monkeypatch):
    monkeypatch.setattr("wsurgery.checkpoint.remote._PATIENCE", 0.3)

    def serve(server):
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            for byte in b"HTTP/1.1 200 OK\r\nX: " + bytes(b"y" * 10**5):
                connection.sendall(bytes([byte]))
                time.sleep(0.01)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        with pytest.raises(OSError, match="less than 30 KiB"):
            open_checkpoint(f"http://127.0.0.1:{server.getsockname()[1]}/x")


@pytest.mark.parametrize(
    "header",
    [
        f"Content-Range: bytes 0-9/{'9' * 5000}",
        f"Content-Range: bytes {'9' * 5000}-9/9",
        f"Content-Length: {'9' * 5000}",
        "Content-Length: -1",
        "Content-Length: ٣",
        "Location: https://[",
        "Location: http://a b/",
        "Location: http://ü..x/",
        f"Location: http://127.0.0.1:{'9' * 5000}/",
        f"Location: file:///etc/passwd?sig={SECRET}",
        f"Location: ftp://me:{SECRET}@127.0.0.1/",
        "Transfer-Encoding: chunked",
    ],
)
def test_headers_of_any_kind_are_one_line(header, web, resnet, monkeypatch, invoke):
    monkeypatch.setattr("wsurgery.checkpoint.remote.time.sleep", lambda seconds: None)
    put(web.root / "m.safetensors", resnet)
    web.quirk = header
    done = invoke("show", f"{web.url}/m.safetensors", check=False)
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert f"{web.url}/m.safetensors: " in done.stderr
    assert SECRET not in done.stderr


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"http:/me:{SECRET}@x/", "http:/x/ is no file and no URL: did you mean http://…?"),
        (f"HTTPS:me:{SECRET}@x/y", "HTTPS:x/y is no file and no URL: did you mean https://…?"),
        (f"https//me:{SECRET}@x/", "https//x/ is no file and no URL: did you mean https://…?"),
        (f"s3:/b/x?X-Amz-Signature={SECRET}", "did you mean s3://…?"),
        (f"s3://KEY:{SECRET}@b/x", "s3://b/x: no key stands in the address: set AWS_PROFILE or AWS_ACCESS_KEY_ID"),
        (f"hf://me:{SECRET}@org/repo", "hf://org/repo: write it as hf://org/repo"),
        (f"htp://me:{SECRET}@x/", "htp:// is not read"),
        (f"http://me:a/{SECRET}@127.0.0.1:1/x", "http://127.0.0.1:1/x: it leads to an address that is none"),
        (f"http://me:{SECRET}@[x/", "is not a URL"),
        ("http://a b/x", "it leads to an address that is none"),
        ("http://ü..x/y", "it leads to an address that is none"),
        (f"http://127.0.0.1:{'9' * 5000}/x", "http://127.0.0.1:999"),
        ("hf:org/repo", "hf:org/repo is no file and no URL: did you mean hf://…?"),
    ],
)
@pytest.mark.parametrize("command", ["show", "convert", "filters"])
def test_a_mistyped_url_shows_no_secret(address, shown, command, invoke, tmp_path):
    done = invoke(command, address, *(["-o", tmp_path / "x.png"] if command != "show" else []), check=False)
    assert done.exit_code in (1, 2)
    assert shown in done.stderr
    assert done.stderr.count("\n") == 1
    assert SECRET not in done.stderr


def test_the_parser_of_the_command_line_shows_no_secret_either(invoke):
    done = invoke("show", "a", f"http:/me:{SECRET}@x/", check=False)
    assert done.exit_code == 2
    assert SECRET not in done.stderr
    assert "http:/x/" in done.stderr


@pytest.mark.parametrize("address", [ADDRESSES[key] for key in ("https", "s3", "hf-repo")])
def test_who_is_not_let_in_reads_what_to_do(address, web, resnet, wsurgery):
    put(web.root / "org/repo/model.safetensors", resnet)
    web.token = "Bearer another"
    done = wsurgery("show", address.format(url=web.url), check=False)
    assert done.returncode == 1
    assert re.search(r"access refused.*(password|AWS_PROFILE|hf auth login)", done.stderr.decode())
    assert done.stderr.count(b"\n") == 1


def test_secrets_go_where_they_belong_and_nowhere_else(web, resnet, wsurgery, serve, tmp_path, monkeypatch):
    put(web.root / "org/repo/model.safetensors", resnet)
    store = serve(web.root)
    web.cdn = store.url
    monkeypatch.setenv("HF_TOKEN", SECRET)
    web.token = f"Bearer {SECRET}"
    wsurgery("shuffle", "hf://org/repo", "-o", tmp_path / "hf")
    assert store.asked
    assert {authorization for _, authorization, _ in store.asked} == {None}

    web.token = "Basic " + base64.b64encode(f"me:{SECRET}/#".encode()).decode()
    host = web.url.removeprefix("http://")
    address = f"http://me:{SECRET}%2F%23@{host}/org/repo/model.safetensors?X-Amz-Signature={SECRET}"
    done = wsurgery("shuffle", address, "-o", tmp_path / "http")
    assert f"X-Amz-Signature={SECRET}" in web.asked[-1][0]
    shown = wsurgery("show", address)
    web.token = "Basic another"
    refused = wsurgery("show", address, check=False)
    for words in (done.stderr, shown.stdout, shown.stderr, refused.stderr):
        assert SECRET.encode() not in words
    for out in ("hf", "http"):
        assert SECRET.encode() not in (tmp_path / out).read_bytes()
    assert recorded(tmp_path / "http")["url"] == f"{web.url}/org/repo/model.safetensors"


def test_replay_reads_a_url_again_if_asked(web, resnet, wsurgery, tmp_path):
    put(web.root / "model.safetensors", resnet)
    wsurgery("meanvar", f"{web.url}/model.safetensors", "-o", tmp_path / "1.safetensors")
    wsurgery("transfuse", f"{web.url}/model.safetensors", "--upto", "block1", "--into", tmp_path / "1.safetensors",
             "-o", tmp_path / "2.safetensors")  # fmt: skip
    before = len(web.asked)
    done = wsurgery("replay", tmp_path / "2.safetensors", check=False)
    assert done.returncode == 2
    assert b"--remote" in done.stderr
    assert len(web.asked) == before
    assert wsurgery("replay", tmp_path / "2.safetensors", "--remote").stdout == b"identical\n"
    save_file({"x": np.zeros(3)}, web.root / "model.safetensors")
    done = wsurgery("replay", tmp_path / "2.safetensors", "--remote", check=False)
    assert done.returncode == 1
    assert b"another header" in done.stderr


@pytest.mark.parametrize(
    "address", ["{url}/{long}/m.safetensors?sig=" + SECRET, "s3://{long}/m.safetensors", "hf://{long}"]
)
def test_a_long_address_is_recorded_whole(address, web, resnet, wsurgery, tmp_path):
    long = "org/repo" if address.startswith("hf") else "/".join(["d" * 100] * 3)
    name = "/".join(["e" * 100] * 3) + "/m.safetensors" if address.startswith("hf") else "m.safetensors"
    put(web.root / long / name, resnet)
    address = address.format(url=web.url, long=long) + (f"/{name}" if address.startswith("hf") else "")
    wsurgery("scale", address, "--by", 2, "-o", tmp_path / "out.safetensors")
    assert recorded(tmp_path / "out.safetensors")["url"].replace(f"@{COMMIT}", "") == address.partition("?")[0]
    assert wsurgery("replay", tmp_path / "out.safetensors", "--remote").stdout == b"identical\n"


def test_a_package_that_is_missing_is_named(shell, tmp_path):
    line = "import sys; sys.modules['s3fs'] = None; sys.argv[1:] = ['show', 's3://a/b']\n"
    (tmp_path / "run.py").write_text(line + "from wsurgery.__main__ import main\nmain()\n")
    done = shell(f"{sys.executable} run.py", tmp_path)
    assert (done.returncode, done.stderr) == (1, b"wsurgery show: needs s3fs: pip install 'wsurgery[remote]'\n")


def test_only_urls_import_what_urls_need(resnet, shell, tmp_path):
    run = watching_imports(tmp_path, ("http.client", "urllib.request", "fsspec", "huggingface_hub", "s3fs"))
    for words in ("--help", f"show {resnet}", f"shuffle {resnet} -o out"):
        done = shell(f"{run} {words}", tmp_path)
        assert done.returncode == 0, done.stderr.decode()


def test_s3_as_moto_has_it(moto, web, resnet, wsurgery, tmp_path, monkeypatch):
    """An S3 server that others wrote; an object that is written over while it is read is noticed."""
    endpoint = f"http://127.0.0.1:{moto}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    send(f"{endpoint}/bucket")
    send(f"{endpoint}/bucket/some/net.safetensors", resnet.read_bytes())
    shard(small_resnet(), tmp_path / "sharded", 2)
    for path in (tmp_path / "sharded").iterdir():
        send(f"{endpoint}/bucket/sharded/{path.name}", path.read_bytes())
    wsurgery("shuffle", resnet, "-o", tmp_path / "local")
    wsurgery("shuffle", "s3://bucket/some/net.safetensors", "-o", tmp_path / "remote")
    assert without_inputs(tmp_path / "remote") == without_inputs(tmp_path / "local")
    local = wsurgery("digest", tmp_path / "sharded").stdout
    assert wsurgery("digest", "s3://bucket/sharded/").stdout == local
    assert b"not found" in wsurgery("show", "s3://bucket/some", check=False).stderr
    assert b"not found" in wsurgery("show", "s3://nothing/x", check=False).stderr
    script = (
        "from wsurgery.checkpoint import open_checkpoint\n"
        "checkpoint = open_checkpoint('s3://bucket/some/net.safetensors')\n"
        "print('open', flush=True)\ninput()\ncheckpoint.read(list(checkpoint.tensors.values())[-1])\n"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as reader:
        assert reader.stdout.readline() == b"open\n"
        content = bytearray(resnet.read_bytes())
        content[-1] ^= 1
        send(f"{endpoint}/bucket/some/net.safetensors", bytes(content))
        assert b"was replaced by another file" in reader.communicate(b"\n", timeout=60)[1]


class EvilStore(BaseHTTPRequestHandler):
    """One object of zeros after its header; each answer goes on without end, or comes byte by byte."""

    protocol_version = "HTTP/1.1"
    content, drips, sent = b"", False, 0

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        cls = type(self)
        start, end = (int(each) for each in self.headers["Range"].removeprefix("bytes=").split("-"))
        part = cls.content[start : end + 1]
        self.send_response(206)
        self.send_header("ETag", '"x"')
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(cls.content)}")
        self.send_header("Content-Length", str(len(part) if cls.drips else 1 << 40))
        self.end_headers()
        with contextlib.suppress(OSError):
            if cls.drips and start:
                for i in range(len(part)):
                    self.wfile.write(part[i : i + 1])
                    time.sleep(0.01)
                return
            self.wfile.write(part)
            cls.sent += len(part)
            while not cls.drips:
                self.wfile.write(bytes(1 << 16))
                cls.sent += 1 << 16
        self.close_connection = True


@pytest.fixture
def evil_store(speaks_s3):
    """An S3 that sends too much, or too little: `drips` says which; and its object `s3://bucket/x`."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [40 * MB], "data_offsets": [0, 40 * MB]}}).encode()
    EvilStore.content, EvilStore.sent = len(header).to_bytes(8, "little") + header + bytes(40 * MB), 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), EvilStore)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    speaks_s3(server.server_port)
    yield EvilStore
    server.shutdown()
    server.server_close()


def test_of_an_answer_of_s3_without_end_no_more_is_read_than_was_asked_for(evil_store, monkeypatch):
    monkeypatch.setattr(evil_store, "drips", False)
    with open_checkpoint("s3://bucket/x") as checkpoint:
        assert checkpoint.read(checkpoint.tensors["w"])[:] == bytes(40 * MB)
    assert evil_store.sent < 100 * MB  # what was asked for, and what lies in buffers


def test_an_s3_that_drips_is_given_up(evil_store, monkeypatch):
    monkeypatch.setattr(evil_store, "drips", True)
    monkeypatch.setattr("wsurgery.checkpoint.remote._PATIENCE", 0.3)
    with (
        open_checkpoint("s3://bucket/x") as checkpoint,
        pytest.raises(OSError, match=r"the store sent less than 30 KiB in 0\.3 s: try again later"),
    ):
        checkpoint.read(checkpoint.tensors["w"])


@pytest.mark.parametrize(
    ("fault", "times"), [(503, 3), ("lost", 3), *(pytest.param(each, 5, marks=pytest.mark.slow) for each in (429, 500))]
)
def test_what_a_store_fails_to_give_for_a_while_is_read_in_the_end(fault, times, moto, resnet, speaks_s3):
    with Proxy(moto) as proxy:
        speaks_s3(proxy.server_port)
        send(f"http://127.0.0.1:{moto}/reading")
        send(f"http://127.0.0.1:{moto}/reading/x", resnet.read_bytes())
        with open_checkpoint("s3://reading/x") as checkpoint:
            proxy.set(fault, "GET", times)
            (*_, last) = checkpoint.tensors.values()
            assert bytes(checkpoint.read(last)) == resnet.read_bytes()[-last.nbytes :]
        assert proxy.times <= 0


def send(url: str, content: bytes = b"") -> None:
    """Put an object in moto, which does not check signatures."""
    signed = "AWS4-HMAC-SHA256 Credential=me/20240101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    headers = {"Authorization": signed, "Content-Type": "application/octet-stream"}
    request = urllib.request.Request(url, content, headers, method="PUT")
    urllib.request.urlopen(request, timeout=30).close()
