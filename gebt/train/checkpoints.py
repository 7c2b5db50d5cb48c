"""Checkpoints of a training by one or many processes: there whole or not at all, read without pickles."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gebt._files import write_atomically
from gebt.train.processes import ALONE, Processes

COMPLETE = "complete.json"
TENSOR = "$tensor"


class CheckpointError(ValueError):
    """A checkpoint that cannot be gone on from."""


class Checkpoints:
    """The newest checkpoint of a training in `folder`: NUMBER/rank-R.safetensors, one of each process, and then a note
    that all are there.

    The one before is removed only after that, so that a stop at any moment leaves one that can be gone on from.
    All processes see the same folder.
    """

    def __init__(self, folder: Path, processes: Processes = ALONE) -> None:
        self.folder, self.processes = folder, processes

    def save(self, number: int, state: dict[str, Any], arrays: Mapping[str, Tensor] | None = None) -> None:
        """Writes this process's `state` (tensors, numbers, texts, lists and dicts of them) as checkpoint `number`.

        `arrays`: tensors on the CPU that go to files of their own, without a copy in memory.
        """
        at = self.folder / f"{number:08d}"
        save_state(self._file(at), state)
        for name, array in (arrays or {}).items():
            _save_array(self._file(at, name), array.numpy())
        self.processes.wait()
        if self.processes.first:
            note = {"number": number, "processes": self.processes.count}
            write_atomically(at / COMPLETE, json.dumps(note) + "\n")
            for other in self._there():
                if other != at:
                    shutil.rmtree(other)

    def load(self) -> tuple[int, dict[str, Any], dict[str, Tensor]] | None:
        """Number, this process's state and its arrays, mapped, of the newest complete checkpoint; None: there is none.

        Raises `CheckpointError` for one of another number of processes, or a file that is broken.
        """
        # One process looks, so that all go on from the same.
        found = max((int(at.name) for at in self._there() if (at / COMPLETE).is_file()), default=-1)
        number = int(self.processes.sum_(torch.tensor(found if self.processes.first else 0)))
        if number < 0:
            return None
        at = self.folder / f"{number:08d}"
        count = json.loads((at / COMPLETE).read_text())["processes"]
        if count != self.processes.count:
            raise CheckpointError(
                f"checkpoint {at} (got one of {count} processes), expected {self.processes.count}; go on with as many"
            )
        arrays = {path.suffixes[0][1:]: _load_array(path) for path in at.glob(self._file(at, "*").name)}
        return number, load_state(self._file(at)), arrays

    def clear(self) -> None:
        """Removes what is there."""
        self.processes.wait()
        if self.processes.first:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, at: Path, array: str | None = None) -> Path:
        return at / f"rank-{self.processes.rank}.{f'{array}.npy' if array else 'safetensors'}"

    def _there(self) -> list[Path]:
        return [at for at in self.folder.glob("[0-9]*") if at.is_dir()] if self.folder.is_dir() else []


def save_state(path: Path, state: dict[str, Any]) -> Path:
    """Writes tensors, numbers, texts, lists and dicts of them; never leaves half a file."""
    tensors: dict[str, Tensor] = {}
    skeleton = _taken_out(state, tensors)
    return write_atomically(path, save(tensors, {"gebt": json.dumps(skeleton)}))


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote. Raises `CheckpointError` naming a file that is missing or broken."""
    try:
        with safe_open(path, framework="pt") as file:
            skeleton = json.loads((file.metadata() or {})["gebt"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return _put_back(skeleton, tensors)
    except (SafetensorError, KeyError, OSError, RecursionError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} (got {error}), expected one that gebt wrote") from error


def _save_array(path: Path, array: NDArray[Any]) -> None:
    """As `numpy.save`, on the disk when it returns; a checkpoint counts only once all of its files are."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.flush()
        array.tofile(file)
        os.fsync(file.fileno())


def _load_array(path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    except (EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} (got {error}), expected one that gebt wrote") from error


def _taken_out(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy: tensors of a file must not share memory.
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {TENSOR: name}
    if isinstance(value, dict):
        # Keys of optimizer states are numbers, which JSON has not.
        return {"$dict": [[key, _taken_out(own, tensors)] for key, own in value.items()]}
    if isinstance(value, list | tuple):
        return [_taken_out(own, tensors) for own in value]
    return value


def _put_back(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if TENSOR in value:
            return tensors[value[TENSOR]]
        return {key: _put_back(own, tensors) for key, own in value["$dict"]}
    if isinstance(value, list):
        return [_put_back(own, tensors) for own in value]
    return value
