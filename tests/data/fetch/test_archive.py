"""Zip files that become folders: resumed, safe, checked again; and OGB's sets by name, from a real https server."""

from __future__ import annotations

import io
import stat
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gebt.data import OGB, UnsafeFileError, check_dataset, load_graph, names_here, ogb_graph, read_ogb, write_ogb
from gebt.data.fetch.archive import check_sums, check_unchanged, fetch_folder, unpack
from gebt.data.readers.ogb import PARTS, OgbGraph
from gebt.graph import GraphError

pytestmark = pytest.mark.usefixtures("no_proxy")


def zip_of(files: dict[str, bytes], **changes: Any) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            member = zipfile.ZipInfo(name)
            member.compress_type = zipfile.ZIP_DEFLATED
            for key, value in changes.items():
                setattr(member, key, value)
            archive.writestr(member, body)
    return content.getvalue()


FILES = {"set/raw/a.txt": b"alpha", "set/raw/b.bin": bytes(range(256)) * 300, "set/split/c.txt": b"gamma"}


def test_a_zip_becomes_a_folder_with_its_sums(ranged: Any, tmp_path: Path) -> None:
    server, secure, context = ranged
    server.body = zip_of(FILES)
    folder = fetch_folder(secure + "/ranged", tmp_path / "mine", context)
    for name, body in FILES.items():
        assert (folder / name.removeprefix("set/")).read_bytes() == body
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert check_sums(folder) == dict.fromkeys(("raw/a.txt", "raw/b.bin", "split/c.txt"), "present")
    assert (folder / "ranged.sha256").read_text().endswith("  ranged\n")
    check_unchanged(folder)
    (folder / "raw" / "a.txt").write_bytes(b"alphA")
    (folder / "split" / "c.txt").unlink()
    assert check_sums(folder) == {"raw/a.txt": "sha256 differs", "raw/b.bin": "present", "split/c.txt": "missing"}
    with pytest.raises(GraphError, match=r"raw/a\.txt \(got: sha256 differs\), expected what was downloaded; delete"):
        check_unchanged(folder)
    (folder / "SHA256SUMS").write_text("0  ../../etc/passwd\n")
    with pytest.raises(UnsafeFileError, match=r"name '\.\./\.\./etc/passwd' in an archive"):
        check_unchanged(folder)
    assert fetch_folder(secure + "/ranged", folder, context) == folder
    assert len(server.answers) == 1


def test_a_zip_without_a_folder_inside_is_one_too(tmp_path: Path) -> None:
    (tmp_path / "flat.zip").write_bytes(zip_of({"a.txt": b"a", "b.txt": b"b"}))
    unpack(tmp_path / "flat.zip", tmp_path / "raw", "flat.zip")
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == [
        "SHA256SUMS", "a.txt", "b.txt", "flat.zip.sha256",
    ]  # fmt: skip


def test_a_zip_that_was_cut_short_is_gone_on_with(ranged: Any, tmp_path: Path) -> None:
    server, secure, context = ranged
    server.body = zip_of(FILES, compress_type=zipfile.ZIP_STORED)
    server.stop = 50_000
    with pytest.raises(GraphError, match=r"got 50000 bytes\), expected \d+ bytes; again goes on there"):
        fetch_folder(secure + "/ranged", tmp_path / "mine", context)
    assert not (tmp_path / "mine").exists()
    server.stop = None
    fetch_folder(secure + "/ranged", tmp_path / "mine", context)
    assert server.answers == [(None, 50_000), ("bytes=50000-", len(server.body) - 50_000)]


def test_a_zip_that_is_too_large_is_not_begun(ranged: Any, tmp_path: Path) -> None:
    server, secure, context = ranged
    with pytest.raises(GraphError, match=r"got 256000 bytes\), expected 1000 bytes at most"):
        fetch_folder(secure + "/ranged", tmp_path / "mine", context, most=1000)
    assert not list(tmp_path.iterdir())
    server.body, size = b"", 1 << 60
    (tmp_path / ".mine.zip").write_bytes(b"x")
    with pytest.raises(GraphError, match=rf"got {size} bytes\), expected at most the \d+ that are free"):
        fetch_folder(f"{secure}/claims?{size}", tmp_path / "mine", context, most=size)


def broken_crc(content: bytes) -> bytes:
    at = content.index(b"alpha")
    return content[:at] + b"alphA" + content[at + 5 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zip_of({"set/a": b"a", "set/../../x": b"evil"}), r"name 'set/\.\./\.\./x' in an archive, expected one inside"),
        (zip_of({"../x": b"evil"}), r"name '\.\./x'"),
        (zip_of({"/x": b"evil"}), "name '/x'"),
        (zip_of({"C:/x": b"evil"}), "name 'C:/x'"),
        (zip_of({"..\\x": b"evil"}), "name"),
        (zip_of({"link": b"/etc/passwd"}, external_attr=(stat.S_IFLNK | 0o777) << 16), "got 'link', a link or of"),
        (zip_of({"a": b"a"}, compress_type=zipfile.ZIP_LZMA), "got 'a', a link or of another packing"),
        (zip_of({"a": b"a", "a/b": b"b"}), "got two files of one name"),
        (zip_of({"zeros": bytes(100 << 20)}), r"got 104857600 bytes unpacked from \d+\).*nothing was unpacked"),
        (zip_of({"SHA256SUMS": b"a", "b": b"b"}), "got two files of one name"),
        (zip_of({}), "got 0 files"),
        (broken_crc(zip_of(FILES, compress_type=zipfile.ZIP_STORED)), r"Bad CRC-32.*it was removed, load again"),
        (zip_of(FILES)[:-30], "File is not a zip file"),
        (b"<html>not here</html>", "File is not a zip file"),
    ],
)
def test_an_unsound_zip_leaves_nothing(ranged: Any, tmp_path: Path, content: bytes, message: str) -> None:
    server, secure, context = ranged
    server.body = content
    with pytest.raises(GraphError, match=message):
        fetch_folder(secure + "/ranged", tmp_path / "root" / "mine", context)
    assert not list((tmp_path / "root").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def arxiv() -> OgbGraph:
    generator = torch.Generator().manual_seed(0)
    info = replace(OGB["ogbn-arxiv"], nodes=0, edges=0)
    split = dict(zip(PARTS, torch.randperm(12, generator=generator).split((6, 3, 3)), strict=True))
    return OgbGraph(
        info,
        torch.randint(12, (2, 30), generator=generator),
        12,
        torch.randn(12, 128, generator=generator),
        torch.randint(40, (12, 1), generator=generator),
        {"node_year": torch.full((12, 1), 2020)},
        split=split,
    )


def zip_of_folder(folder: Path, top: str) -> bytes:
    return zip_of(
        {f"{top}/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    )


def test_ogb_sets_load_by_name_from_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = arxiv()
    write_ogb(tmp_path / "ogbn_arxiv", graph)
    assert "ogbn-arxiv" in names_here(tmp_path)
    assert not {"ogbn-products", "reddit"} & set(names_here(tmp_path))
    with pytest.raises(GraphError, match=r"number of nodes in .* \(got 12\), expected 169343"):
        load_graph("ogbn-arxiv", tmp_path)
    monkeypatch.setitem(OGB, "ogbn-arxiv", graph.info)
    loaded = load_graph("ogbn-arxiv", tmp_path)
    assert loaded.fingerprint == ogb_graph(graph).fingerprint
    assert (loaded.name, loaded.num_classes, loaded.metric) == ("ogbn-arxiv", 40, "accuracy")
    assert {status for _, status in check_dataset("ogbn-arxiv", tmp_path)} == {"present"}
    with pytest.raises(GraphError, match=r"split seed \(got 1\), expected 0"):
        load_graph("ogbn-arxiv", tmp_path, split_seed=1)


def test_proteins_load_by_name_as_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    info = replace(OGB["ogbn-proteins"], nodes=0, edges=0)
    graph = replace(arxiv(), info=info, features=None, node={"node_species": torch.ones(12, 1).long()})
    labels = torch.randint(2, (12, 112), generator=generator)
    graph = replace(graph, labels=labels, edge={"edge_feat": torch.rand(30, 8, generator=generator)})
    monkeypatch.setitem(OGB, "ogbn-proteins", info)
    write_ogb(tmp_path / "ogbn_proteins", graph)
    loaded = load_graph("ogbn-proteins", tmp_path)
    assert (loaded.target, loaded.num_classes, loaded.metric) == ("multilabel", 112, "mean_roc_auc")
    assert loaded.fingerprint == ogb_graph(read_ogb(tmp_path / "ogbn_proteins", info)).fingerprint


def test_an_absent_set_is_downloaded_once_and_checked_later(
    ranged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, secure, context = ranged
    graph, root = arxiv(), tmp_path / "root"
    write_ogb(tmp_path / "made", graph)
    server.body = zip_of_folder(tmp_path / "made", "arxiv")
    context.authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setitem(OGB, "ogbn-arxiv", replace(graph.info, address=f"{secure}/ranged"))
    with pytest.raises(GraphError, match=r"got no folder .*ogbn_arxiv\), .*; by hand, make .*ogbn_arxiv of https://"):
        load_graph("ogbn-arxiv", root, download=False)
    assert {status for _, status in check_dataset("ogbn-arxiv", root)} == {"missing"}
    for _ in range(2):
        assert load_graph("ogbn-arxiv", root).fingerprint == ogb_graph(graph).fingerprint
    assert len(server.answers) == 1
    path = root / "ogbn_arxiv" / "raw" / "node-label.csv.gz"
    path.write_bytes(path.read_bytes()[:-9])
    assert (path, "sha256 differs") in check_dataset("ogbn-arxiv", root)
    with pytest.raises(GraphError, match=r"node-label\.csv\.gz \(got: sha256 differs\), expected what was downloaded"):
        load_graph("ogbn-arxiv", root)


def test_without_a_network_the_way_by_hand_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OGB, "ogbn-arxiv", replace(arxiv().info, address="https://localhost:1/arxiv.zip"))
    with pytest.raises(GraphError, match=r"by hand, make .*ogbn_arxiv of https://localhost:1/arxiv\.zip"):
        load_graph("ogbn-arxiv", tmp_path)
    monkeypatch.setitem(OGB, "ogbn-arxiv", replace(arxiv().info, address="http://localhost:1/arxiv.zip"))
    with pytest.raises(GraphError, match="expected one that begins with https://"):
        load_graph("ogbn-arxiv", tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(GraphError, match=r"data set 'flickr' .*torch_geometric\.datasets\.Flickr"):
        load_graph("flickr", tmp_path)
