"""What it costs to edit a checkpoint from one place of a store to another, beside s3fs's own download and upload.

Both speak to one moto server on this machine, which is slower than a network: it is the ratio that says something. The edit
reads ranges, computes and writes parts at the same time, in the memory of a few; the library's way is a download of all to a
memory file system and then an upload, without an edit.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from surgery import WSURGERY, Report, machine, median_costs, run

# Download all of an object, and upload it, by s3fs's own means.
BY_THE_LIBRARY = """
import sys, s3fs
store, (source, file, target) = s3fs.S3FileSystem(), sys.argv[1:]
store.get(source, file)
store.put(file, target)
"""


def serve() -> "subprocess.Popen[bytes]":
    """Start a server, and say so in the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
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
    options = parser.parse_args()
    print(f"{machine()}; medians of {options.repeats}\n")
    server = serve()
    try:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            import s3fs

            file, store = Path(name) / "a", s3fs.S3FileSystem()
            rng, count = np.random.default_rng(0), max(1, round(options.size * 1e9 / 40e6))
            save_file({f"l{i}.weight": rng.standard_normal((2500, 4000), np.float32) for i in range(count)}, file)
            store.mkdir("bucket")
            store.put(str(file), "bucket/a")
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
