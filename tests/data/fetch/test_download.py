from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from gebt.data.fetch.download import download_file, fetch
from gebt.data.manifest import FileInfo
from gebt.graph.graph import GraphError

BODY = bytes(range(256)) * 1000


pytestmark = pytest.mark.usefixtures("no_proxy")


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
        ("/long", r"got 768000 bytes.*expected 256000 bytes"),
        ("/endless", r"got 256001 bytes.*expected 256000 bytes"),
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


def cut_short(ranged, tmp_path, page="/ranged"):
    server, secure, context = ranged
    server.stop = 100_000
    with pytest.raises(GraphError, match=r"got 100000 bytes\), expected 256000 bytes; again goes on there"):
        download_file(file_at(secure + page), tmp_path, context)
    server.stop = None
    assert sorted(path.name for path in tmp_path.iterdir()) == [".data.bin.part", ".data.bin.part.json"]
    server.answers.clear()


def test_a_download_that_was_cut_short_is_gone_on_with(ranged, tmp_path):
    server, secure, context = ranged
    cut_short(ranged, tmp_path)
    assert download_file(file_at(secure + "/ranged"), tmp_path, context).read_bytes() == BODY
    assert server.answers == [("bytes=100000-", 156_000)]
    assert [path.name for path in tmp_path.iterdir()] == ["data.bin"]


def test_a_server_without_ranges_sends_all_of_it_again(ranged, tmp_path):
    server, secure, context = ranged
    cut_short(ranged, tmp_path, "/unranged")
    assert download_file(file_at(secure + "/unranged"), tmp_path, context).read_bytes() == BODY
    assert server.answers == [("bytes=100000-", 256_000)]


@pytest.mark.parametrize("longer", [b"", b"more", None])
def test_another_file_at_the_address_is_begun_anew(ranged, tmp_path, longer):
    server, secure, context = ranged
    cut_short(ranged, tmp_path)
    server.body = BODY[::-1][:50_000] if longer is None else BODY[::-1] + longer
    server.version = '"one"' if longer else '"two"'
    file = replace(file_at(secure + "/ranged"), bytes=len(server.body), sha256=hashlib.sha256(server.body).hexdigest())
    assert download_file(file, tmp_path, context).read_bytes() == server.body
    assert server.answers[-1] == (None, len(server.body))


def test_a_part_of_another_address_or_without_its_mark_is_not_gone_on_with(ranged, tmp_path):
    server, secure, context = ranged
    for mark in ('{"url": "https://localhost/x", "version": "", "size": 256000}', "[]", "{", '{"size": "x"}'):
        (tmp_path / ".data.bin.part").write_bytes(b"x" * 999)
        (tmp_path / ".data.bin.part.json").write_text(mark)
        assert download_file(file_at(secure + "/ranged"), tmp_path, context).read_bytes() == BODY
    assert server.answers == [(None, 256_000)] * 4


def test_a_part_with_other_bytes_is_refused_and_removed(ranged, tmp_path):
    _, secure, context = ranged
    cut_short(ranged, tmp_path)
    (tmp_path / ".data.bin.part").write_bytes(b"x" * 100_000)
    with pytest.raises(GraphError, match=r"got 256000 bytes, sha256 .* expected 256000 bytes"):
        download_file(file_at(secure + "/ranged"), tmp_path, context)
    assert not list(tmp_path.iterdir())
    assert download_file(file_at(secure + "/ranged"), tmp_path, context).read_bytes() == BODY


def test_a_part_that_is_whole_asks_nothing_more(ranged, tmp_path):
    server, secure, context = ranged
    fetch(secure + "/ranged", tmp_path / ".data.bin.part", len(BODY), context)
    assert len(server.answers) == 1
    assert download_file(file_at(secure + "/ranged"), tmp_path, context).read_bytes() == BODY
    assert len(server.answers) == 1


def test_two_downloads_of_one_file_do_not_meet(ranged, tmp_path):
    _, secure, context = ranged
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(download_file, file_at(secure + "/ranged"), tmp_path, context) for _ in range(4)]
        assert {job.result().read_bytes() for job in jobs} == {BODY}
    assert [path.name for path in tmp_path.iterdir()] == ["data.bin"]
