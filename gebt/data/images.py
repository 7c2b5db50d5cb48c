"""Labeled images as byte tensors: the embedded digits, MNIST, CIFAR and any folder or archive of image files."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Literal

import numpy as np
import torch
from torch import Tensor

from gebt.data.graphs import data_root
from gebt.data.readers.reading import reading
from gebt.graph.graph import GraphError
from gebt.sparse.memory import check_room

Part = Literal["train", "test"]
SUFFIXES = (".jpg", ".jpeg", ".png")
LARGEST_FILE, LARGEST_SIDE = 64 * 2**20, 8192
CIFAR_SIDE = 32


@dataclass(frozen=True, eq=False)
class Images:
    """Labeled images.

    Attributes:
        name: of the data set.
        pixels: [N, channels, H, W] uint8.
        labels: [N] int64 in 0..C-1.
        classes: names of the classes.

    Example:
        >>> images = Images("toy", torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1, 0]), ("a", "b"))
        >>> len(images), images.shape
        (4, (1, 2, 2))
    """

    name: str
    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return self.labels.numel()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def take(self, chosen: Tensor) -> Images:
        """Some of the images.

        Args:
            chosen: numbers [n], or a boolean mask [N].

        Returns:
            Those images alone.
        """
        return replace(self, pixels=self.pixels[chosen], labels=self.labels[chosen])

    def split(self, fraction: float, seed: int = 0) -> tuple[Images, Images]:
        """Splits the images at random.

        Args:
            fraction: of the first part, which has floor(fraction N) images.
            seed: of the random order.

        Returns:
            The first part, and the rest.

        Raises:
            ValueError: for a fraction that leaves a part empty.

        Example:
            >>> train, val = load_images("digits").split(0.75, seed=0)
            >>> len(train), len(val)
            (1077, 360)
        """
        count = int(fraction * len(self))
        if not 0 < count < len(self):
            raise ValueError(
                f"fraction (got {fraction} of {len(self)} images), expected one that leaves both parts some"
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.take(order[:count]), self.take(order[count:])

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every channel, of pixels in [0, 1].

        Returns:
            Means and standard deviations, each [channels].
        """
        values = self.pixels.double().transpose(0, 1).flatten(1) / 255
        return values.mean(1).float(), values.std(1).float()

    def batches(
        self, size: int, *, mean: Tensor, std: Tensor, seed: int | None = None, crop: int = 0, flip: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of normalized images with their labels; with a seed shuffled, cropped and flipped at random.

        Args:
            size: images of a batch; the last one may be smaller.
            mean: of every channel [channels].
            std: of every channel [channels].
            seed: of the random order and changes; default in order and unchanged.
            crop: zeros put around an image, before a window of its size is cut out at random.
            flip: whether half of the images are mirrored.

        Yields:
            Images [B, channels, H, W] float32, and labels [B].
        """
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        everything = torch.arange(len(self))
        order = everything if generator is None else torch.randperm(len(self), generator=generator)
        for chosen in order.split(size):
            pixels = self.pixels[chosen]
            if generator is not None:
                pixels = augmented(pixels, generator, crop=crop, flip=flip)
            values = (pixels.float() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
            yield values, self.labels[chosen]


def augmented(pixels: Tensor, generator: torch.Generator, *, crop: int = 4, flip: bool = True) -> Tensor:
    """Every image moved by up to `crop` pixels either way, zeros coming in, and mirrored or not.

    Args:
        pixels: [B, C, H, W].
        generator: draws the moves and the mirrored half.
        crop: most pixels.
        flip: whether half of the images are mirrored.

    Returns:
        [B, C, H, W].
    """
    count, _, height, width = pixels.shape
    if crop:
        padded = torch.nn.functional.pad(pixels, (crop,) * 4)
        top, left = (torch.randint(2 * crop + 1, (count, 1, 1, 1), generator=generator) for _ in "yx")
        rows, columns = torch.arange(height).view(1, 1, -1, 1) + top, torch.arange(width).view(1, 1, 1, -1) + left
        pixels = padded[
            torch.arange(count).view(-1, 1, 1, 1), torch.arange(pixels.shape[1]).view(1, -1, 1, 1), rows, columns
        ]
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(3), pixels)
    return pixels


def load_images(name: str, part: Part = "train", root: str | Path | None = None) -> Images:
    """The images of a data set by name, or of a folder with train and test in it.

    Args:
        name: "digits" (embedded; 1,437 images for training and 360 for testing), "mnist", "cifar10", "cifar100", or the
            path of a folder.
        part: "train" or "test".
        root: folder of the raw files (default `data_root()`): MNIST/raw/*.gz; cifar-10-batches-bin, cifar-100-binary
            (the binary releases), or, for "cifar10", CIFAR-10-images/{train,test}.tar.gz or folders of that name.

    Returns:
        The images.

    Raises:
        GraphError: naming the file that is missing or broken.

    Example:
        >>> images = load_images("digits", "test")
        >>> tuple(images.pixels.shape), len(images.classes)
        ((360, 1, 8, 8), 10)
    """
    if part not in ("train", "test"):
        raise GraphError(f"part (got {part!r}), expected 'train' or 'test'")
    folder = data_root(root)
    if name == "digits":
        return _digits(part)
    if name == "mnist":
        return _mnist(folder / "MNIST" / "raw", part)
    if name == "cifar10" and not (folder / "cifar-10-batches-bin").is_dir():
        pictures = folder / "CIFAR-10-images"
        return image_folder(_part_of(pictures, part), name="cifar10", size=(CIFAR_SIDE, CIFAR_SIDE))
    if name in ("cifar10", "cifar100"):
        return _cifar(folder, name, part)
    if Path(name).is_dir():
        return image_folder(_part_of(Path(name), part), name=Path(name).name)
    raise GraphError(f"images (got {name!r}), expected 'digits', 'mnist', 'cifar10', 'cifar100' or a folder")


def _part_of(folder: Path, part: Part) -> Path:
    choices = [folder / f"{part}{ending}" for ending in (".tar.gz", ".tar", "")]
    for path in choices:
        if path.exists():
            return path
    raise GraphError(f"images {folder} (got no {part} in it), expected {' or '.join(path.name for path in choices)}")


def image_folder(path: Path, *, name: str | None = None, size: tuple[int, int] | None = None) -> Images:
    """The images of a folder, or of a tar archive of one, with one folder of JPEG or PNG files a class.

    Classes are in alphabetical order. Nothing is unpacked to disk; of an archive only regular files with those endings
    are read.

    Args:
        path: the folder or archive.
        name: of the data set; default that of the path.
        size: height and width that all images must have; default the first's.

    Returns:
        The images.

    Raises:
        GraphError: naming the file that does not fit.
    """
    if not path.exists():
        raise GraphError(f"images {path} (got no such folder or archive), expected one folder of images a class")
    images: list[tuple[str, Tensor]] = []
    with reading(path, "folders of JPEG or PNG files, one a class"):
        for label, file, stream in _files(path):
            pixels = _decoded(stream, f"{path}: {file}", size)
            size = size or (pixels.shape[1], pixels.shape[2])
            images.append((label, pixels))
    if not images:
        raise GraphError(f"images {path} (got no JPEG or PNG file in a folder of a class), expected at least one")
    classes = tuple(sorted({label for label, _ in images}))
    number = {label: place for place, label in enumerate(classes)}
    labels = torch.tensor([number[label] for label, _ in images])
    return Images(name or path.name.split(".")[0], torch.stack([pixels for _, pixels in images]), labels, classes)


def _files(path: Path) -> Iterator[tuple[str, str, IO[bytes]]]:
    """Class, name and content of every image file, in alphabetical order within a folder."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in SUFFIXES and file.is_file() and file.parent != path:
                with file.open("rb") as stream:
                    yield file.parent.name, file.name, stream
        return
    with tarfile.open(path) as archive:
        for member in archive:
            inside = PurePosixPath(member.name)
            if member.isreg() and inside.suffix.lower() in SUFFIXES and len(inside.parts) > 1:
                if member.size > LARGEST_FILE:
                    raise ValueError(f"{member.name} of {member.size} bytes, more than {LARGEST_FILE}")
                packed = archive.extractfile(member)
                if packed is not None:
                    yield inside.parent.name, member.name, packed


def _decoded(stream: IO[bytes], file: str, size: tuple[int, int] | None) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(stream.read(LARGEST_FILE)), formats=("JPEG", "PNG")) as image:
            if size is not None and (image.height, image.width) != size:
                raise GraphError(f"image {file} (got {image.height} x {image.width}), expected {size[0]} x {size[1]}")
            if max(image.size) > LARGEST_SIDE:
                raise GraphError(f"image {file} (got {image.height} x {image.width}), expected sides to {LARGEST_SIDE}")
            pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise GraphError(f"image {file} (got {error}), expected a complete JPEG or PNG file") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _digits(part: Part) -> Images:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    scaled = torch.from_numpy((pixels.astype(np.int64) * 255 // 16).astype(np.uint8)).view(-1, 1, 8, 8)
    images = Images("digits", scaled, torch.from_numpy(labels.astype(np.int64)), tuple("0123456789"))
    train, test = images.split(0.8)
    return train if part == "train" else test


def _mnist(folder: Path, part: Part) -> Images:
    stem = "train" if part == "train" else "t10k"
    pixels = _idx(folder / f"{stem}-images-idx3-ubyte.gz", 3)
    labels = _idx(folder / f"{stem}-labels-idx1-ubyte.gz", 1)
    if len(pixels) != len(labels) or int(labels.max()) > 9:
        got = f"{len(pixels)} images, {len(labels)} labels up to {int(labels.max())}"
        raise GraphError(f"MNIST in {folder} (got {got}), expected as many of both, labels up to 9")
    return Images("mnist", pixels.unsqueeze(1), labels.long(), tuple("0123456789"))


def _idx(path: Path, dims: int) -> Tensor:
    """An idx file of bytes, gzip-compressed: magic 0 0 8 dims, sizes as big-endian int32, the bytes."""
    if not path.is_file():
        raise GraphError(f"file {path} (got none), expected MNIST's own file of that name")
    with reading(path, "an idx file of unsigned bytes"), gzip.open(path) as file:
        head = file.read(4 + 4 * dims)
        if len(head) != 4 + 4 * dims or head[:4] != bytes((0, 0, 8, dims)):
            raise ValueError(f"magic {head[:4].hex()}, expected 000008{dims:02x}")
        sizes = [int.from_bytes(head[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
        total = int(np.prod(sizes, dtype=np.int64))
        check_room(f"images of {path.name}", 2 * total, torch.device("cpu"))
        content = file.read(total + 1)
        if len(content) != total:
            raise ValueError(f"{len(content)} bytes or more after its head, expected {total} for {sizes}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(sizes)


def _cifar(folder: Path, name: str, part: Part) -> Images:
    """The binary releases: records of one label byte (CIFAR-100: coarse and fine) and 3 x 32 x 32 bytes."""
    small = name == "cifar10"
    where = folder / ("cifar-10-batches-bin" if small else "cifar-100-binary")
    train = [f"data_batch_{number}.bin" for number in range(1, 6)] if small else ["train.bin"]
    files = train if part == "train" else ["test_batch.bin" if small else "test.bin"]
    ahead, side = 1 if small else 2, CIFAR_SIDE
    pixels, labels = [], []
    for file in files:
        path = where / file
        if not path.is_file():
            raise GraphError(f"file {path} (got none), expected the binary release of {name}")
        content = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8).clone()
        record = ahead + 3 * side * side
        if not content.numel() or content.numel() % record:
            got = content.numel()
            raise GraphError(f"file {path} (got {got} bytes), expected whole records of {record}; is it cut?")
        rows = content.view(-1, record)
        labels.append(rows[:, ahead - 1].long())
        pixels.append(rows[:, ahead:].view(-1, 3, side, side))
    count = 10 if small else 100
    numbers = torch.cat(labels)
    if int(numbers.max()) >= count:
        raise GraphError(f"labels of {name} (got {int(numbers.max())}), expected 0 to {count - 1}")
    names = where / ("batches.meta.txt" if small else "fine_label_names.txt")
    listed = names.read_text().split() if names.is_file() else []
    return Images(
        name, torch.cat(pixels), numbers, tuple(listed) if len(listed) == count else tuple(map(str, range(count)))
    )
