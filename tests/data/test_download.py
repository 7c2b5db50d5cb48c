from __future__ import annotations

import hashlib
import ssl
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trustme

from gebt.data.download import download_file
from gebt.data.manifest import FileInfo
from gebt.graph.canonical import GraphError

BODY = bytes(range(256)) * 1000


class Pages(BaseHTTPRequestHandler):
    """/file is whole, /cut stops half way, /long goes on, /chunked has no length, /to?X redirects to X."""

    def do_GET(self):
        path, _, target = self.path.partition("?")
        body = {"/cut": BODY[: len(BODY) // 2], "/long": BODY * 3}.get(path, BODY)
        if path == "/missing":
            self.send_error(404)
            return
        self.send_response(302 if path == "/to" else 200)
        if path == "/to":
            self.send_header("Location", target)
            body = b""
        if path != "/chunked":
            self.send_header("Content-Length", str(len(BODY) if path == "/cut" else len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_):
        """A client that hangs up, which half of these tests want, is no news."""


def serve(authority):
    server = Server(("127.0.0.1", 0), Pages)
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
    secure, plain = serve(authority), serve(None)
    yield context, f"https://localhost:{secure.server_port}", f"http://localhost:{plain.server_port}"
    for server in (secure, plain):
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "localhost")


def file_at(url):
    return FileInfo("data.bin", len(BODY), hashlib.sha256(BODY).hexdigest(), url)


@pytest.mark.parametrize("page", ["/file", "/chunked", "/to?/file"])
def test_a_good_file_arrives(trusted, tmp_path, page):
    context, secure, _ = trusted
    path = download_file(file_at(secure + page), tmp_path / "Cora" / "raw", context)
    assert path == tmp_path / "Cora" / "raw" / "data.bin"
    assert path.read_bytes() == BODY
    assert [entry.name for entry in path.parent.iterdir()] == ["data.bin"]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("/cut", r"got 128000 bytes.*expected 256000 bytes"),
        ("/long", r"got 256001 bytes.*expected 256000 bytes"),
        ("/missing", "404"),
        ("/to?file:///etc/passwd", "not allowed|begins with https"),
        ("/to?ftp://localhost/file", "begins with https"),
    ],
)
def test_a_bad_answer_leaves_nothing_behind(trusted, tmp_path, page, message):
    context, secure, _ = trusted
    with pytest.raises(GraphError, match=message):
        download_file(file_at(secure + page), tmp_path, context)
    assert not list(tmp_path.iterdir())


def test_a_wrong_sha256_is_refused_and_leaves_the_old_file(trusted, tmp_path):
    context, secure, _ = trusted
    (tmp_path / "data.bin").write_bytes(b"old")
    with pytest.raises(GraphError, match=rf"sha256 {hashlib.sha256(BODY).hexdigest()}\), expected .* sha256 0000"):
        download_file(replace(file_at(secure + "/file"), sha256="0" * 64), tmp_path, context)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("data.bin", b"old")]


def test_an_untrusted_certificate_is_refused(trusted, tmp_path):
    _, secure, _ = trusted
    with pytest.raises(GraphError, match="CERTIFICATE_VERIFY_FAILED"):
        download_file(file_at(secure + "/file"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_certificate_for_another_host_is_refused(trusted, tmp_path, monkeypatch):
    context, secure, _ = trusted
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    with pytest.raises(GraphError, match="CERTIFICATE_VERIFY_FAILED"):
        download_file(file_at(secure.replace("localhost", "127.0.0.1") + "/file"), tmp_path, context)


def test_plain_http_is_refused(trusted, tmp_path):
    context, _, plain = trusted
    with pytest.raises(GraphError, match=r"download address \(got 'http://localhost:\d+/file'\), expected .*https://"):
        download_file(file_at(plain + "/file"), tmp_path, context)
    assert not list(tmp_path.iterdir())


def test_a_redirect_to_plain_http_is_refused(trusted, tmp_path):
    context, secure, plain = trusted
    with pytest.raises(GraphError, match=r"download address \(got 'http://localhost"):
        download_file(file_at(f"{secure}/to?{plain}/file"), tmp_path, context)
    assert not list(tmp_path.iterdir())


def test_no_server_is_a_graph_error(tmp_path):
    with pytest.raises(GraphError, match="expected 256000 bytes into"):
        download_file(file_at("https://localhost:1/file"), tmp_path)


def test_a_folder_that_cannot_be_made_is_a_graph_error(trusted, tmp_path):
    context, secure, _ = trusted
    (tmp_path / "taken").touch()
    with pytest.raises(GraphError, match="taken"):
        download_file(file_at(secure + "/file"), tmp_path / "taken", context)
