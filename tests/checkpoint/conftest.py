"""A local S3."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.faults import Proxy
from wsurgery.checkpoint import upload

SECRET = "AKIA_SECRET"


@pytest.fixture(scope="session")
def moto() -> Iterator[int]:
    """An S3 server that others wrote, which checks no signatures: its port."""
    pytest.importorskip("moto.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    alone = {"PATH": os.environ["PATH"]}  # no AWS_ENDPOINT_URL: it would ask another server
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=alone)
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def proxy(moto):
    with Proxy(moto) as proxy:
        yield proxy


@pytest.fixture
def speaks_s3(monkeypatch):
    """Makes a server of this machine, by its port, the one that S3 is."""
    s3fs = pytest.importorskip("s3fs")

    def at(port: int) -> None:
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}"),
            ("AWS_ACCESS_KEY_ID", "me"),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()

    return at


@pytest.fixture
def bucket(proxy, speaks_s3):
    """A bucket of this test's own, `s3://NAME/`, and s3fs's view of it."""
    import s3fs

    proxy.set(None, "", 0)
    speaks_s3(proxy.server_port)
    store = s3fs.S3FileSystem()
    name = f"b{time.monotonic_ns()}"
    store.mkdir(name)
    store.own = name
    return store


def stored(bucket, key: str) -> bytes | None:
    bucket.invalidate_cache()
    return bucket.cat(f"{bucket.own}/{key}") if bucket.exists(f"{bucket.own}/{key}") else None


def left(bucket) -> list[upload.Unfinished]:
    return upload.unfinished(f"s3://{bucket.own}/nets/")
