"""Images: each format against bytes written by hand, real files where there are some, broken ones named."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gebt.data.images import Images, augmented, image_folder, load_images
from gebt.graph.graph import GraphError

REAL = pytest.mark.skipif("GEBT_DATA" not in os.environ, reason="GEBT_DATA is not set")


def picture(fill: tuple[int, int, int], size: tuple[int, int] = (4, 6)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((*size, 3), fill, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, fills in {"dog": [(9, 8, 7)], "ant": [(1, 2, 3), (4, 5, 6)]}.items():
        (tmp_path / "set" / label).mkdir(parents=True)
        for number, fill in enumerate(fills):
            (tmp_path / "set" / label / f"{number}.png").write_bytes(picture(fill))
    (tmp_path / "set" / "readme.txt").write_text("no image")
    return tmp_path / "set"


def packed(folder: Path) -> Path:
    path = folder.parent / "set.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "set")
    return path


def test_folders_and_archives_give_the_same_images(folder: Path) -> None:
    for source in (folder, packed(folder)):
        images = image_folder(source)
        assert (images.name, images.classes, len(images)) == ("set", ("ant", "dog"), 3)
        assert sorted(zip(images.labels.tolist(), images.pixels[:, :, 0, 0].tolist(), strict=True)) == [
            (0, [1, 2, 3]), (0, [4, 5, 6]), (1, [9, 8, 7])
        ]  # fmt: skip
        assert images.pixels.shape == (3, 3, 4, 6)


def test_a_folder_of_one_s_own_has_two_parts(folder: Path) -> None:
    own = folder.parent / "own"
    own.mkdir()
    folder.rename(own / "train")
    with pytest.raises(
        GraphError, match=r"images .*own \(got no test in it\), expected test\.tar\.gz or test\.tar or te"
    ):
        load_images(str(own), "test")
    packed(own / "train").rename(own / "test.tar.gz")
    train, test = load_images(str(own)), load_images(str(own), "test")
    assert (train.name, train.classes) == (test.name, test.classes) == ("own", ("ant", "dog"))


def test_what_is_no_image_of_the_size_is_named(folder: Path) -> None:
    (folder / "dog" / "1.png").write_bytes(picture((0, 0, 0), (5, 6)))
    with pytest.raises(GraphError, match=r"image .*1\.png \(got 5 x 6\), expected 4 x 6"):
        image_folder(folder)
    (folder / "dog" / "1.png").write_bytes(picture((0, 0, 0))[:40])
    with pytest.raises(GraphError, match=r"image .*1\.png \(got .*\), expected a complete JPEG or PNG file"):
        image_folder(folder)
    archive = packed(folder)
    archive.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(GraphError, match=r"file .*set\.tar\.gz \(got: .*\), expected folders of JPEG or PNG files"):
        image_folder(archive)
    with pytest.raises(GraphError, match=r"images .*nowhere \(got no such folder or archive\)"):
        image_folder(folder / "nowhere")
    empty = folder.parent / "empty"
    empty.mkdir()
    with pytest.raises(GraphError, match=r"images .*empty \(got no JPEG or PNG file"):
        image_folder(empty)


def idx(*sizes: int, content: bytes) -> bytes:
    head = bytes((0, 0, 8, len(sizes))) + b"".join(size.to_bytes(4, "big") for size in sizes)
    return gzip.compress(head + content)


def test_mnist_files_are_read_and_broken_ones_named(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(idx(2, 2, 3, content=bytes(range(12))))
    (raw / "train-labels-idx1-ubyte.gz").write_bytes(idx(2, content=bytes((7, 0))))
    images = load_images("mnist", root=tmp_path)
    assert images.pixels.tolist() == torch.arange(12).view(2, 1, 2, 3).tolist()
    assert images.labels.tolist() == [7, 0]
    for content, message in (
        (idx(2, 2, 3, content=bytes(11)), r"11 bytes or more after its head, expected 12"),
        (idx(2, 2, 3, content=bytes(13)), r"13 bytes or more"),
        (idx(6, content=bytes(6)), r"expected 00000803"),
        (b"not gzip", "expected an idx file"),
    ):
        (raw / "train-images-idx3-ubyte.gz").write_bytes(content)
        with pytest.raises(GraphError, match=message):
            load_images("mnist", root=tmp_path)
    with pytest.raises(GraphError, match=r"file .*t10k-images-idx3-ubyte\.gz \(got none\)"):
        load_images("mnist", "test", tmp_path)


@pytest.mark.parametrize(("name", "ahead", "file"), [
    ("cifar10", 1, "cifar-10-batches-bin/test_batch.bin"), ("cifar100", 2, "cifar-100-binary/test.bin"),
])  # fmt: skip
def test_binary_releases_of_cifar_are_read(tmp_path: Path, name: str, ahead: int, file: str) -> None:
    pixels = torch.randint(256, (3, 3072), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1], [9], [4]], dtype=torch.uint8).repeat(1, ahead)
    labels[:, 0] = labels[:, 0] if ahead == 1 else 0
    path = tmp_path / file
    path.parent.mkdir()
    path.write_bytes(torch.cat((labels, pixels), 1).numpy().tobytes())
    images = load_images(name, "test", tmp_path)
    assert torch.equal(images.pixels, pixels.view(3, 3, 32, 32))
    assert images.labels.tolist() == [1, 9, 4]
    assert len(images.classes) == (10 if ahead == 1 else 100)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(GraphError, match=r"expected whole records of 307[34]; is it cut"):
        load_images(name, "test", tmp_path)


def test_digits_are_embedded_and_split() -> None:
    train, test = (load_images("digits", part) for part in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    assert train.pixels.shape[1:] == (1, 8, 8)
    assert int(train.pixels.max()) == 255
    with pytest.raises(GraphError, match=r"images \(got 'nothing'\)"):
        load_images("nothing")
    with pytest.raises(GraphError, match=r"part \(got 'val'\)"):
        load_images("digits", "val")  # type: ignore[arg-type]


def numbered(count: int = 10) -> Images:
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 5, 5).contiguous()
    return Images("numbered", pixels, torch.arange(count), tuple(map(str, range(count))))


def test_batches_are_normalized_and_shuffled_by_their_seed_alone() -> None:
    images = numbered()
    mean, std = images.statistics()
    plain = list(images.batches(4, mean=mean, std=std))
    assert [len(labels) for _, labels in plain] == [4, 4, 2]
    values = torch.cat([x for x, _ in plain])
    torch.testing.assert_close(values.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    first, second, other = (
        torch.cat([labels for _, labels in images.batches(4, mean=mean, std=std, seed=seed)]) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert sorted(first.tolist()) == list(range(10))


def test_crops_move_and_flips_mirror() -> None:
    ramp = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5).repeat(64, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    flipped = augmented(ramp, generator, crop=0, flip=True)
    mirrored = (flipped == ramp.flip(3)).flatten(1).all(1)
    assert 16 < int(mirrored.sum()) < 48
    assert bool((flipped[~mirrored] == ramp[~mirrored]).all())
    padded = torch.nn.functional.pad(ramp[0, 0], (2,) * 4)
    windows = {tuple(padded[y : y + 5, x : x + 5].flatten().tolist()) for y in range(5) for x in range(5)}
    cropped = {tuple(own.flatten().tolist()) for own in augmented(ramp, generator, crop=2, flip=False)}
    assert cropped <= windows
    assert len(cropped) > 12


def test_splits_are_disjoint_and_seeded() -> None:
    images = numbered()
    first, rest = images.split(0.3, seed=4)
    assert (len(first), len(rest)) == (3, 7)
    assert sorted([*first.labels.tolist(), *rest.labels.tolist()]) == list(range(10))
    assert torch.equal(images.split(0.3, seed=4)[0].labels, first.labels)
    with pytest.raises(ValueError, match=r"fraction \(got 0.01 of 10 images\)"):
        images.split(0.01)


@REAL
@pytest.mark.parametrize(("name", "count", "shape"), [("mnist", 10_000, (1, 28, 28)), ("cifar10", 10_000, (3, 32, 32))])
def test_real_files_hold_what_they_should(name: str, count: int, shape: Any) -> None:
    root = Path(os.environ["GEBT_DATA"])
    if not (root / ("MNIST" if name == "mnist" else "CIFAR-10-images")).is_dir():
        pytest.skip(f"no {name} under GEBT_DATA")
    images = load_images(name, "test")
    assert (len(images), images.pixels.shape[1:], len(images.classes)) == (count, shape, 10)
    counts = torch.bincount(images.labels)
    assert int(counts.min()) >= 892
    if name == "cifar10":
        assert counts.tolist() == [1000] * 10
        assert images.classes[:2] == ("airplane", "automobile")
