"""Downloads of named sets: from a server on the loopback that sends what it should not, or nothing at all."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torchvision

from pyro_vae import data
from pyro_vae.data import named

Answer = Callable[[http.server.BaseHTTPRequestHandler, bytes, int], None]


def idx(*shape: int) -> bytes:
    content = bytes(i % 251 for i in range(torch.Size(shape).numel()))
    return gzip.compress(struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + content, mtime=0)


FILES = {
    "train-images-idx3-ubyte.gz": idx(30, 28, 28),
    "train-labels-idx1-ubyte.gz": idx(30),
    "t10k-images-idx3-ubyte.gz": idx(12, 28, 28),
    "t10k-labels-idx1-ubyte.gz": idx(12),
}


def whole(request: http.server.BaseHTTPRequestHandler, content: bytes, _: int) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


class Server:
    """A server of the four files of MNIST.

    Attributes:
        answer: how requests for the training images are answered; others are answered well.
        asked: how often a file was asked for.
    """

    def __init__(self) -> None:
        self.answer: Answer = whole
        self.asked: Counter[str] = Counter()
        self.over = threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.end_headers()

            def do_GET(self) -> None:
                name = self.path.strip("/")
                server.asked[name] += 1
                answer = server.answer if name.startswith("train-images") else whole
                answer(self, FILES[name], server.asked[name])

            def log_message(self, *_: object) -> None: ...

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    started = Server()
    monkeypatch.setenv("no_proxy", "*")
    resources = [(name, hashlib.md5(content).hexdigest()) for name, content in FILES.items()]
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [started.url])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    monkeypatch.setattr(named, "_STALL_SECONDS", 0.3)
    yield started
    started.over.set()
    started.http.shutdown()
    started.http.server_close()


def other(request: http.server.BaseHTTPRequestHandler, content: bytes, count: int) -> None:
    whole(request, b"x" + content[1:], count)


def half(request: http.server.BaseHTTPRequestHandler, content: bytes, _: int) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content[:50])


def error(request: http.server.BaseHTTPRequestHandler, content: bytes, _: int) -> None:
    request.send_error(503)


def test_what_comes_whole_is_read_and_kept(server: Server, tmp_path: Path) -> None:
    assert len(data.load("mnist", tmp_path, validation=1).test) == 12
    asked = dict(server.asked)
    assert len(data.load("mnist", tmp_path, validation=1).test) == 12
    assert server.asked == asked


@pytest.mark.parametrize("answer", [other, half, error])
def test_what_does_not_have_its_checksum_is_tried_once_more_and_not_kept(
    server: Server, answer: Answer, tmp_path: Path
) -> None:
    server.answer = answer
    before = socket.getdefaulttimeout()
    with pytest.raises(
        data.DatasetNotFoundError, match=r"'mnist': expected .* got no such file, and no download"
    ) as got:
        data.load("mnist", tmp_path)
    assert str(got.value).isprintable()
    assert socket.getdefaulttimeout() == before
    assert list(tmp_path.iterdir()) == []
    server.answer = whole
    once = Counter(server.asked)
    assert len(data.load("mnist", tmp_path, validation=1).test) == 12
    per_download = server.asked["train-images-idx3-ubyte.gz"] - once["train-images-idx3-ubyte.gz"]
    assert once["train-images-idx3-ubyte.gz"] in (2, 2 * per_download)


def test_a_server_that_fails_once_is_asked_again(server: Server, tmp_path: Path) -> None:
    def first_fails(request: http.server.BaseHTTPRequestHandler, content: bytes, count: int) -> None:
        (error if count == 1 else whole)(request, content, count)

    server.answer = first_fails
    assert len(data.load("mnist", tmp_path, validation=1).test) == 12


def test_a_server_that_never_sends_is_given_up(server: Server, tmp_path: Path) -> None:
    def wait(*_: object) -> None:
        server.over.wait(60)

    server.answer = wait
    start = time.monotonic()
    with pytest.raises(data.DatasetNotFoundError, match="timed out"):
        data.load("mnist", tmp_path)
    assert time.monotonic() - start < 10
    assert socket.getdefaulttimeout() is None


def test_where_nobody_listens_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
    start = time.monotonic()
    with pytest.raises(data.DatasetNotFoundError, match=r"no download .*refused"):
        data.load("mnist", tmp_path)
    assert time.monotonic() - start < named._PROBE_SECONDS


def test_a_pickle_in_the_place_of_a_set_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(
        ValueError, match=r"expected a complete file of its kind; got one that fails \(Dataset not found"
    ):
        data.load("cifar10", tmp_path)
    assert not (tmp_path / "ran").exists()
