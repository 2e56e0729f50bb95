"""A local server that speaks as much of the Hugging Face hub's API as downloads need."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class HubServer(ThreadingHTTPServer):
    """Models in memory.

    Attributes:
        models: name → branch, tag or commit → the commit's files, name → bytes.
        gated: names of models whose files are refused.
        damages: whether a byte of each large file is another one.
        asked: (method, path) of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, dict[str, tuple[str, dict[str, bytes]]]] = {}
        self.gated: set[str] = set()
        self.damages = False
        self.asked: list[tuple[str, str]] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def push(self, model: str, files: dict[str, bytes], *, tag: str | None = None) -> str:
        """Commit files as the new head of main, and of a tag; return the commit."""
        versions = self.models.setdefault(model, {})
        content = "".join(f"{name} {hashlib.sha1(data).hexdigest()} " for name, data in files.items())
        commit = hashlib.sha1(f"{model} {len(versions)} {content}".encode()).hexdigest()
        for name in ("main", commit, tag):
            if name:
                versions[name] = commit, files
        return commit

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = about or file
        if match is None:
            return self.answer(404)
        versions = self.server.models.get(match[1])
        if versions is None:
            return self.answer(401, {"X-Error-Code": "RepoNotFound"})
        if match[2] not in versions:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        commit, files = versions[match[2]]
        if about:
            siblings = [{"rfilename": name} for name in files]
            info = {"id": match[1], "modelId": match[1], "sha": commit, "siblings": siblings, "tags": []}
            return self.answer(200, {"Content-Type": "application/json"}, json.dumps(info).encode())
        if match[1] in self.server.gated:
            return self.answer(403, {"X-Error-Code": "GatedRepo"})
        if match[3] not in files:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        data = files[match[3]]
        if match[3].endswith(".json"):
            etag = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # as git names it
        else:
            etag = hashlib.sha256(data).hexdigest()
            if self.server.damages:
                data = data[:-1] + bytes([data[-1] ^ 1])
        headers, status = {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            part = slice(int(asked[1]), min(int(asked[2]) + 1, len(data)))
            headers["Content-Range"], status = f"bytes {part.start}-{part.stop - 1}/{len(data)}", 206
            data = data[part]
        self.answer(status, headers, data)

    def answer(self, status, headers=None, body=b""):
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
