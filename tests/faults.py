"""What goes wrong between here and a server."""

import http.client
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUSY = {500: "InternalError", 503: "SlowDown", 429: "TooManyRequests"}


def read_body(request: BaseHTTPRequestHandler) -> bytes:
    """Read what a request brings, in one piece or in chunks."""
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    body = b""
    while size := int(request.rfile.readline(), 16):
        body += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return body


class Proxy(ThreadingHTTPServer):
    """A server before the server, which does what `fault` says to the requests that it is for.

    Attributes:
        fault: what goes wrong, and a pattern of the requests (`PUT /bucket/…?partNumber=2`) that it goes wrong for:
            a status, or one and what the answer calls it; `reset` in the middle of the body; `lost`, the answer; `slow`;
            `silent`, until the client goes away; `together`: answered when as many are there as `times` says, or not at all.
        times: how often it goes wrong.
        seen: the requests.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Relay)
        self.port, self.lock = port, threading.Lock()
        self.set(None, "", 0)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def set(self, fault, pattern, times):
        self.fault, self.pattern, self.times, self.seen = fault, pattern, times, []
        self.barrier = threading.Barrier(max(times, 1))

    def handle_error(self, request, client_address):
        """A client that went away is no error."""


class Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def relay(self):
        server, line = self.server, f"{self.command} {self.path}"
        with server.lock:
            server.seen.append(line)
            wrong = server.times > 0 and re.search(server.pattern, line) is not None
            server.times -= wrong
        length = int(self.headers.get("Content-Length", 0))
        if wrong and server.fault == "reset":
            self.rfile.read(length // 2 or 1)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if self.headers.get("Expect") == "100-continue":
            pass  # the standard library has answered
        body = read_body(self)
        if wrong and isinstance(server.fault, (int, tuple)):
            status, code = (
                server.fault
                if isinstance(server.fault, tuple)
                else (server.fault, BUSY.get(server.fault, "ExpiredToken"))
            )
            return self.answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode(), [])
        if wrong and server.fault == "slow":
            time.sleep(2)
        if wrong and server.fault == "together":
            try:
                server.barrier.wait(4)
            except threading.BrokenBarrierError:
                self.close_connection = True
                return
        if wrong and server.fault == "silent":
            self.rfile.read(1)
            self.close_connection = True
            return
        upstream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        kept = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("expect", "connection", "transfer-encoding", "content-length")
        }
        upstream.request(self.command, self.path, body, kept)
        found = upstream.getresponse()
        content = found.read()
        upstream.close()
        if wrong and server.fault == "lost":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.answer(found.status, content, found.getheaders())

    def answer(self, status, content, headers):
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        size = dict((name.lower(), value) for name, value in headers).get("content-length", len(content))
        self.send_header("Content-Length", str(size if self.command == "HEAD" else len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = relay
