"""Small raw files in the layouts of the readers, the real ones where GEBT_DATA says they lie, and an https server."""

from __future__ import annotations

import os
import ssl
import struct
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import trustme

with warnings.catch_warnings():
    # PyTorch Geometric compiles with torch.jit.script on import, which torch calls deprecated.
    warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
    import torch_geometric  # noqa: F401

TRAIN, VALIDATION, TESTED, GAP, WIDTH, CLASSES = 4, 500, 6, 2, 5, 3
KNOWN = TRAIN + VALIDATION + 10
NODES = KNOWN + TESTED + GAP


@pytest.fixture(scope="session")
def real_root() -> Path:
    root = os.environ.get("GEBT_DATA")
    if not root:
        pytest.skip("needs the real data sets: set GEBT_DATA to the folder that holds Cora/raw and the others")
    return Path(root)


class OldPickle:
    """Writes what Python 2 wrote into the Planetoid files: protocol 2, bytes as text, numpy's and scipy's old names."""

    @staticmethod
    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    @staticmethod
    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    @staticmethod
    def tuple(*items: bytes) -> bytes:
        return b"(" + b"".join(items) + b"t"

    @staticmethod
    def document(body: bytes) -> bytes:
        return b"\x80\x02" + body + b"."

    @classmethod
    def array(cls, values: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
        code = values.dtype.str[1:].encode()
        state = (cls.number(3), cls.text(b"<"), b"NNN", cls.number(-1), cls.number(-1), cls.number(0))
        dtype = b"cnumpy\ndtype\n" + cls.tuple(cls.text(code), cls.number(0), cls.number(1)) + b"R"
        dtype += cls.tuple(*state) + b"b"
        sizes = cls.tuple(*(cls.number(size) for size in shape or values.shape))
        make = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        return make + cls.tuple(cls.number(1), sizes, dtype, b"\x89", cls.text(values.tobytes())) + b"b"

    @classmethod
    def csr(cls, dense: np.ndarray, **changed: np.ndarray) -> bytes:
        row, col = dense.nonzero()
        arrays = {
            "data": dense[row, col].astype("f4"),
            "indices": col.astype("i4"),
            "indptr": np.concatenate(([0], np.bincount(row, minlength=len(dense)).cumsum())).astype("i4"),
        }
        shape = cls.text(b"_shape") + cls.tuple(*(cls.number(size) for size in dense.shape))
        items = [cls.text(name.encode()) + cls.array(values) for name, values in (arrays | changed).items()]
        return b"cscipy.sparse.csr\ncsr_matrix\n)\x81}(" + shape + b"".join(items) + b"ub"

    @classmethod
    def lists(cls, neighbors: dict[int, list[int]]) -> bytes:
        items = [cls.number(k) + b"](" + b"".join(map(cls.number, v)) + b"e" for k, v in neighbors.items()]
        return b"ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R(" + b"".join(items) + b"u"


@pytest.fixture(scope="session")
def old_pickle() -> type[OldPickle]:
    return OldPickle


@pytest.fixture(scope="session")
def planetoid_bytes() -> dict[str, bytes]:
    """The Planetoid files of a ring of 522 nodes of which the last test node has two unknown ones before it."""
    ring = {node: [(node - 1) % NODES, (node + 1) % NODES] for node in range(NODES)}
    features = np.eye(WIDTH)[np.arange(KNOWN) % WIDTH] + np.eye(WIDTH)[0]
    one_hot = np.eye(CLASSES, dtype="i4")
    tested = [NODES - 1, *range(KNOWN, KNOWN + TESTED - 1)]
    bodies = {
        "allx": OldPickle.csr(features),
        "x": OldPickle.csr(features[:TRAIN]),
        "tx": OldPickle.csr(np.eye(WIDTH)[np.arange(TESTED) % WIDTH]),
        "ally": OldPickle.array(one_hot[np.arange(KNOWN) % CLASSES]),
        "y": OldPickle.array(one_hot[np.arange(TRAIN) % CLASSES]),
        "ty": OldPickle.array(one_hot[np.arange(TESTED) % CLASSES]),
        "graph": OldPickle.lists(ring),
    }
    files = {part: OldPickle.document(body) for part, body in bodies.items()}
    return files | {"test.index": "\n".join(map(str, tested)).encode()}


@pytest.fixture
def planetoid_folder(tmp_path: Path, planetoid_bytes: dict[str, bytes]) -> Path:
    for part, content in planetoid_bytes.items():
        (tmp_path / f"ind.tiny.{part}").write_bytes(content)
    return tmp_path


@pytest.fixture
def npz_arrays() -> dict[str, np.ndarray]:
    """A path of four nodes, one edge one-way, one self-loop; two features; node 3 has none."""
    return {
        "adj_data": np.ones(5, "f4"),
        "adj_indices": np.array([1, 1, 2, 3, 2], "i4"),
        "adj_indptr": np.array([0, 1, 3, 4, 5], "i4"),
        "adj_shape": np.array([4, 4]),
        "attr_data": np.array([3.0, 0.5, 7.0, 2.0], "f4"),
        "attr_indices": np.array([0, 1, 0, 1], "i4"),
        "attr_indptr": np.array([0, 1, 2, 4, 4], "i4"),
        "attr_shape": np.array([4, 2]),
        "labels": np.array([0, 1, 1, 0]),
    }


BODY = bytes(range(256)) * 1000


class Pages(BaseHTTPRequestHandler):
    """/file is whole, /cut stops half way, /long goes on, /chunked has no length, /to?X redirects to X,
    /claims?X says that X bytes follow.

    /ranged honors ranges of `Server.body`, and stops after `Server.stop` bytes; /unranged sends it whole.
    """

    def do_GET(self):
        path, _, target = self.path.partition("?")
        if path in ("/ranged", "/unranged"):
            self.part(path == "/ranged")
            return
        body = {"/cut": BODY[: len(BODY) // 2], "/long": BODY * 3, "/endless": BODY * 3}.get(path, BODY)
        if path == "/missing":
            self.send_error(404)
            return
        if path == "/claims":
            self.send_response(200)
            self.send_header("Content-Length", target)
            self.end_headers()
            return
        self.send_response(302 if path == "/to" else 200)
        if path == "/to":
            self.send_header("Location", target)
            body = b""
        if path not in ("/chunked", "/endless"):
            self.send_header("Content-Length", str(len(BODY) if path == "/cut" else len(body)))
        self.end_headers()
        self.wfile.write(body)

    def part(self, ranged):
        server, asked = self.server, self.headers["Range"]
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if ranged and asked else 0
        if first >= len(server.body):
            self.send_error(416)
            return
        rest = server.body[first:]
        self.send_response(206 if first else 200)
        if first:
            last = len(server.body) - 1
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(server.body)}")
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", server.version)
        self.end_headers()
        sent = rest[: server.stop]
        server.answers.append((asked, len(sent)))
        self.wfile.write(sent)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    body, version, stop = BODY, '"one"', None

    def handle_error(self, *_):
        """A client that hangs up, which half of these tests want, is no news."""


def serve(authority):
    server = Server(("127.0.0.1", 0), Pages)
    server.answers = []
    if authority:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def trusted():
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.authority = authority
    secure, plain = serve(authority), serve(None)
    context.server = secure
    yield context, f"https://localhost:{secure.server_port}", f"http://localhost:{plain.server_port}"
    for server in (secure, plain):
        server.shutdown()
        server.server_close()


@pytest.fixture
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "localhost")


@pytest.fixture
def ranged(trusted):
    """The server with nothing asked of it yet, its address and how to trust it."""
    context, secure, _ = trusted
    server = context.server
    server.answers.clear()
    yield server, secure, context
    server.body, server.version, server.stop = BODY, '"one"', None
