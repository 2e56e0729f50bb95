"""A local server that speaks as much of the Hugging Face hub's API as downloads and commits need."""

import base64
import hashlib
import json
import re
import threading
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from tests.faults import read_body

LICENCES = ("apache-2.0", "mit", "other")  # some that the hub lists


class HubServer(ThreadingHTTPServer):
    """Models in memory.

    Attributes:
        models: name → branch, tag or commit → the commit's files, name → bytes.
        gated: names of models whose files are refused.
        damages: whether a byte of each large file is another one.
        asked: (method, path) of each request.
        large: SHA-256 → bytes that were sent, and belong to no commit yet.
        token: that who writes has to have; None: anybody may.
        refuses: a pattern of a path → the status and the words with which what is posted there is refused.
        commits: (model, branch, names) of each commit that came from outside.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, dict[str, tuple[str, dict[str, bytes]]]] = {}
        self.gated: set[str] = set()
        self.damages = False
        self.asked: list[tuple[str, str]] = []
        self.large: dict[str, bytes] = {}
        self.token: str | None = None
        self.refuses: dict[str, tuple[int, str]] = {}
        self.commits: list[tuple[str, str, list[str]]] = []
        self.lock = threading.Lock()
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

    def commit(self, model: str, branch: str, lines: list[dict]) -> str | None:
        """Add files to a branch, as the hub's API says it; return the commit, or None where its parent is not the head."""
        versions = self.models[model]
        head, files = versions[branch]
        if lines[0]["value"].get("parentCommit", head) != head:
            return None
        added, removed = {}, set()
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                removed.add(value["path"])
                continue
            small = line["key"] == "file"
            added[value["path"]] = base64.b64decode(value["content"]) if small else self.large[value["oid"]]
        self.commits.append((model, branch, sorted(added)))
        commit = hashlib.sha1(f"{head} {sorted(added)} {len(versions)}".encode()).hexdigest()
        kept = {name: data for name, data in files.items() if name not in removed}
        assert len(kept) == len(files) - len(removed)  # the hub refuses to delete what is not there
        versions[branch] = versions[commit] = commit, {**kept, **added}
        return commit

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = about or file
        if match is None:
            return self.answer(404)
        versions = self.server.models.get(match[1])
        if versions is None:
            return self.answer(401, {"X-Error-Code": "RepoNotFound"})
        revision = match[2] or "main"
        if revision not in versions:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        commit, files = versions[revision]
        if about:
            siblings = [{"rfilename": name} for name in files]
            info = {"id": match[1], "modelId": match[1], "sha": commit, "siblings": siblings, "tags": []}
            if b"license: " in files.get("README.md", b""):
                info["cardData"] = {"license": re.search(rb"license: (\S+)", files["README.md"])[1].decode()}
            return self.say(info)
        if match[1] in self.server.gated:
            return self.answer(403, {"X-Error-Code": "GatedRepo"})
        if match[3] not in files:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        data = files[match[3]]
        if _is_small(match[3]):
            etag = _git_name(data)
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

    def do_PUT(self):
        body = read_body(self)
        self.server.asked.append((self.command, self.path))
        with self.server.lock:
            self.server.large[hashlib.sha256(body).hexdigest()] = body
        self.answer(200)

    def do_POST(self):
        body, path = read_body(self), unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        if path == "/api/validate-yaml":
            licence = re.search(r"^license: (.*)$", json.loads(body)["content"], re.MULTILINE)
            known = licence is None or licence[1] in LICENCES
            errors = [] if known else [{"message": '"license" must be one of [apache-2.0, mit, ...]'}]
            return self.say({"warnings": [], "errors": errors}, 200 if known else 400)
        for pattern, (status, words) in self.server.refuses.items():
            if re.search(pattern, path):
                return self.say({"error": words}, status)
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(paths-info|preupload|commit)/(.+)", path)
        if re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self.say(
                {"transfer": "basic", "objects": [self.place(each) for each in json.loads(body)["objects"]]}
            )
        if about is None or about[1] not in self.server.models:
            return self.answer(401, {"X-Error-Code": "RepoNotFound"})
        model, what, branch = about.groups()
        if branch not in self.server.models[model]:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if what == "paths-info":
            files = self.server.models[model][branch][1]
            names = parse_qs(body.decode())["paths"]
            return self.say([_about(name, files[name]) for name in names if name in files])
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.answer(403)
        if what == "preupload":
            ignored = self.server.models[model][branch][1].get(".gitignore", b"").decode().split()
            modes = [
                {
                    "path": x["path"],
                    "uploadMode": "regular" if _is_small(x["path"]) else "lfs",
                    "shouldIgnore": any(fnmatch(x["path"], pattern) for pattern in ignored),
                }
                for x in json.loads(body)["files"]
            ]
            return self.say({"files": modes})
        with self.server.lock:
            commit = self.server.commit(model, branch, [json.loads(line) for line in body.splitlines()])
        if commit is None:
            return self.answer(412)
        self.say({"commitUrl": f"{self.server.url}/{model}/commit/{commit}", "commitOid": commit})

    def place(self, asked):
        """Say where a large file goes; nowhere, if it is there."""
        if asked["oid"] in self.server.large:
            return asked
        host = self.headers["Host"]  # of whoever stands between
        return {**asked, "actions": {"upload": {"href": f"http://{host}/lfs/{asked['oid']}"}}}

    def say(self, content, status=200):
        self.answer(status, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def answer(self, status, headers=None, body=b""):
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _is_small(name):
    """Whether git has it, and not LFS."""
    return name.endswith((".json", ".md")) or "." not in name


def _git_name(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _about(name, data):
    info = {"type": "file", "path": name, "size": len(data), "oid": _git_name(data)}
    if not _is_small(name):
        info["lfs"] = {"size": len(data), "oid": hashlib.sha256(data).hexdigest(), "pointerSize": 100}
    return info
