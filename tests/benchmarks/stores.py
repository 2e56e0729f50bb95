"""What it costs to edit a checkpoint from one place of a store to another, beside s3fs's own download and upload.

Both speak to the same small server in a process of its own, which keeps objects in memory: not moto, which copies an object
for each range of it. The edit reads ranges, computes and writes parts at the same time, in the memory of a few; the library's
way is a download of all to a memory file system and then an upload, without an edit.
"""

import argparse
import hashlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

from surgery import WSURGERY, Report, machine, median_costs, run

MAKE = """
import sys, numpy as np, s3fs
from safetensors.numpy import save_file
file, count = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(0)
save_file({f"l{i}.weight": rng.standard_normal((2500, 4000), np.float32) for i in range(count)}, file)
s3fs.S3FileSystem().put(file, "bucket/a")
"""
# Download all of an object, and upload it, by s3fs's own means.
BY_THE_LIBRARY = """
import sys, s3fs
store, (source, file, target) = s3fs.S3FileSystem(), sys.argv[1:]
store.get(source, file)
store.put(file, target)
"""


class Store(BaseHTTPRequestHandler):
    """As much of S3 as s3fs and wsurgery ask for, of one bucket; nothing is checked."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}
    parts: ClassVar[dict[int, bytes]] = {}

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Give an object, or a range of it."""
        content = self.objects.get(urlsplit(self.path).path)
        if content is None:
            return self.answer(404)
        view, headers = memoryview(content), {"ETag": '"e"', "Accept-Ranges": "bytes"}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(found[1]), min(int(found[2] or len(view)) + 1, len(view))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(view)}"
            return self.answer(206, view[start:end], headers)
        self.answer(200, view, headers)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        """Take an object or a part."""
        body, url = self.body(), urlsplit(self.path)
        if part := parse_qs(url.query).get("partNumber"):
            self.parts[int(part[0])] = body
        else:
            self.objects[url.path] = body
        self.answer(200, headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def do_POST(self) -> None:
        """Begin a multipart upload, or complete it."""
        url = urlsplit(self.path)
        self.body()
        if "uploads" in url.query:
            return self.answer(200, b"<R><UploadId>1</UploadId></R>")
        self.objects[url.path] = b"".join(self.parts[number] for number in sorted(self.parts))
        self.parts.clear()
        self.answer(200, b'<R><ETag>"e"</ETag></R>')

    def body(self) -> bytes:
        """Read what a request brings, as botocore sends it: signed chunks, or plain."""
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return content
        found, at = [], 0
        while size := int(content[at : (end := content.index(b"\r\n", at))].split(b";")[0], 16):
            found.append(content[end + 2 : end + 2 + size])
            at = end + 4 + size
        return b"".join(found)

    def answer(self, status: int, content: "bytes | memoryview" = b"", headers: dict[str, str] | None = None) -> None:
        """Send an answer."""
        self.send_response_only(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(OSError):  # who asked has enough
                self.wfile.write(content)


def serve() -> "subprocess.Popen[bytes]":
    """Start a server, and say so in the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, __file__, "--serve", str(port)])
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.1)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "mine",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    return server


def main() -> None:
    """Put a file in a store, run both ways in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="a memory file system")
    parser.add_argument(
        "--size", type=float, default=2.0, help="gigabytes; the server keeps three times as much in memory"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        ThreadingHTTPServer(("127.0.0.1", options.serve), Store).serve_forever()
    print(f"{machine()}; medians of {options.repeats}\n")
    server = serve()
    try:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            file, count = Path(name) / "a", max(1, round(options.size * 1e9 / 40e6))
            subprocess.run([sys.executable, "-c", MAKE, file, str(count)], check=True)
            edit = [*WSURGERY, "scale", "s3://bucket/a", "--by", "2", "-o", "s3://bucket/b", "--force"]
            copy = [sys.executable, "-c", BY_THE_LIBRARY, "bucket/a", file, "bucket/c"]
            costs = median_costs(options.repeats, ours=lambda: run(edit), theirs=lambda: run(copy))
            what = f"scale, S3 to S3, {file.stat().st_size / 1e9:.2g} GB"
            Report().against(what, costs["ours"], costs["theirs"], "s3fs's get and put", 1 / 0.9)
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
