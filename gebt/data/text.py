"""Labeled sentences, or pairs of them, in files of tab-separated values: four tasks of GLUE and any such table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gebt.data.graphs import data_root
from gebt.data.readers.reading import reading
from gebt.graph.graph import GraphError

Part = Literal["train", "dev"]
LARGEST_FILE = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Texts:
    """Labeled sentences, or pairs of them.

    Attributes:
        name: of the data set.
        first: sentences [N].
        second: sentences [N], where texts are pairs.
        labels: [N] int64 in 0..C-1.
        classes: names of the classes.

    Example:
        >>> texts = Texts("toy", ("a b", "c"), ("d", "e f"), torch.tensor([0, 1]), ("no", "yes"))
        >>> texts.take(torch.tensor([1])).sentences()
        ('c', 'e f')
    """

    name: str
    first: tuple[str, ...]
    second: tuple[str, ...] | None
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return self.labels.numel()

    def take(self, chosen: Tensor) -> Texts:
        """Some of the texts.

        Args:
            chosen: numbers [n], or a boolean mask [N].

        Returns:
            Those texts alone.
        """
        numbers = torch.arange(len(self))[chosen].tolist()
        first, second = (column and tuple(column[i] for i in numbers) for column in (self.first, self.second))
        return replace(self, first=first or (), second=second, labels=self.labels[chosen])

    def split(self, fraction: float, seed: int = 0) -> tuple[Texts, Texts]:
        """Splits the texts at random.

        Args:
            fraction: of the first part, which has floor(fraction N) texts.
            seed: of the random order.

        Returns:
            The first part, and the rest.

        Raises:
            ValueError: for a fraction that leaves a part empty.
        """
        count = int(fraction * len(self))
        if not 0 < count < len(self):
            raise ValueError(
                f"fraction (got {fraction} of {len(self)} texts), expected one that leaves both parts some"
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.take(order[:count]), self.take(order[count:])

    def sentences(self) -> tuple[str, ...]:
        """All sentences, the first of every pair before the second ones: text without labels.

        Returns:
            Sentences [N], or [2N] of pairs.
        """
        return self.first + (self.second or ())


@dataclass(frozen=True)
class _Task:
    """Where a task of GLUE has its files, and in which of their `width` columns the texts and the label stand."""

    folder: str
    first: int
    second: int | None
    label: int
    width: int
    header: bool = True
    classes: tuple[str, ...] = ("0", "1")


TASKS = {
    "cola": _Task("CoLA", 3, None, 1, 4, header=False),
    "sst-2": _Task("SST-2", 0, None, 1, 2),
    "mrpc": _Task("MRPC", 3, 4, 0, 5),
    "rte": _Task("RTE", 1, 2, 3, 4, classes=("entailment", "not_entailment")),
}


def load_texts(name: str, part: Part = "train", root: str | Path | None = None) -> Texts:
    """The labeled texts of a task of GLUE.

    Where MRPC's release is there, msr_paraphrase_train.txt and dev_ids.tsv, its 3,668 training pairs are those of the
    first file that the second does not name, as GLUE has it: some copies of train.tsv lack a pair. Files without labels
    (test.tsv) are not read.

    Args:
        name: "cola", "sst-2", "mrpc" or "rte".
        part: "train" or "dev".
        root: folder of the raw files (default `data_root()`), with glue_data/{CoLA,SST-2,MRPC,RTE}/{train,dev}.tsv.

    Returns:
        The texts.

    Raises:
        GraphError: naming the file, and the line, that is missing or broken.

    Source:
        Wang et al. 2019, "GLUE".
    """
    if name not in TASKS:
        raise GraphError(f"texts (got {name!r}), expected one of {', '.join(TASKS)}; other tables: text_table")
    if part not in ("train", "dev"):
        raise GraphError(f"part (got {part!r}), expected 'train' or 'dev'")
    task = TASKS[name]
    folder = data_root(root) / "glue_data" / task.folder
    release, dev_ids = folder / "msr_paraphrase_train.txt", folder / "dev_ids.tsv"
    from_release = name == "mrpc" and part == "train" and release.is_file() and dev_ids.is_file()
    path = release if from_release else folder / f"{part}.tsv"
    rows = list(_rows(path, task.width, task.header))
    if from_release:
        dev = {tuple(row) for _, row in _rows(dev_ids, 2, header=False)}
        rows = [(line, row) for line, row in rows if (row[1], row[2]) not in dev]
    return _texts(name, path, rows, (task.first, task.second, task.label), task.classes)


def text_table(
    path: str | Path, *, first: str, label: str, second: str | None = None, classes: Sequence[str] | None = None
) -> Texts:
    r"""The labeled texts of a file of tab-separated values, by the column names in its first line.

    Nothing is quoted: a quotation mark is a character like others.

    Args:
        path: the file.
        first: column of the sentences.
        label: column of the labels.
        second: column of the second sentences, where texts are pairs.
        classes: the labels in their order; default all that there are, sorted.

    Returns:
        The texts.

    Raises:
        GraphError: naming the file and the line that does not fit.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "reviews.tsv"
        ...     _ = path.write_text("text\tlabel\nfine\tgood\npoor\tbad\n")
        ...     texts = text_table(path, first="text", label="label")
        >>> texts.first, texts.labels.tolist(), texts.classes
        (('fine', 'poor'), [1, 0], ('bad', 'good'))
    """
    file = Path(path)
    names = _header(file)
    wanted = [first, label] if second is None else [first, second, label]
    for name in wanted:
        if names.count(name) != 1:
            raise GraphError(f"file {file} (got columns {', '.join(names)}), expected one that is named {name!r}")
    places = (names.index(first), None if second is None else names.index(second), names.index(label))
    rows = list(_rows(file, len(names), header=True))
    class_names = tuple(classes) if classes is not None else tuple(sorted({row[places[2]] for _, row in rows}))
    return _texts(file.stem, file, rows, places, class_names)


def _texts(
    name: str,
    path: Path,
    rows: Sequence[tuple[int, list[str]]],
    places: tuple[int, int | None, int],
    classes: tuple[str, ...],
) -> Texts:
    first, second, label = places
    number = {label_name: place for place, label_name in enumerate(classes)}
    for line, row in rows:
        if row[label] not in number:
            raise GraphError(f"{path}, line {line} (got label {row[label]!r}), expected one of {', '.join(classes)}")
        if not row[first].strip() or (second is not None and not row[second].strip()):
            raise GraphError(f"{path}, line {line} (got an empty text), expected a sentence")
    if not rows:
        raise GraphError(f"file {path} (got no text), expected at least one")
    pairs = None if second is None else tuple(row[second].strip() for _, row in rows)
    labels = torch.tensor([number[row[label]] for _, row in rows])
    return Texts(name, tuple(row[first].strip() for _, row in rows), pairs, labels, classes)


def _rows(path: Path, width: int, header: bool) -> Iterator[tuple[int, list[str]]]:
    """Number and columns of every line, without the header's."""
    for line, row in _lines(path):
        if len(row) != width:
            raise GraphError(f"{path}, line {line} (got {len(row)} columns), expected {width} with tabs between them")
        if not (header and line == 1):
            yield line, row


def _header(path: Path) -> list[str]:
    for _, row in _lines(path):
        return row
    raise GraphError(f"file {path} (got no line), expected one that names the columns")


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(_content(path), newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise GraphError(f"{path}, line {reader.line_num} (got: {error}), expected tab-separated values") from error


def _content(path: Path) -> str:
    """The text of a UTF-8 file, without the byte-order mark that some begin with."""
    if not path.is_file():
        raise GraphError(f"file {path} (got none), expected tab-separated values")
    with reading(path, "tab-separated values"):
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ValueError(f"more than {LARGEST_FILE} bytes")
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            raise GraphError(f"{path}, line {line} (got bytes that are no UTF-8), expected text in UTF-8") from error
