"""The old pickles of the Planetoid files, read as data: no global in them is imported, called or built."""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from gebt.data.readers.reading import Array, UnsafeFileError, reading

LARGEST_FILE = 2**30


@dataclass(frozen=True)
class _Name:
    """A class or function that a pickle names; only its name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass
class _Recipe:
    """An object that a pickle would build, which never happens: from what, with which arguments, state and entries."""

    builder: _Name
    arguments: tuple[Any, ...]
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)


CSR_MATRIX = _Name("scipy.sparse.csr", "csr_matrix")
RECONSTRUCT = _Name("numpy.core.multiarray", "_reconstruct")
NDARRAY = _Name("numpy", "ndarray")
DTYPE = _Name("numpy", "dtype")
DEFAULTDICT = _Name("collections", "defaultdict")
LIST = _Name("__builtin__", "list")
ADMITTED = frozenset({CSR_MATRIX, RECONSTRUCT, NDARRAY, DTYPE, DEFAULTDICT, LIST})
NUMBERS = ("i4", "i8", "f4", "f8")


def read_pickle(path: Path) -> Any:
    """The plain value in a pickle: numbers, text, lists, tuples and dicts; everything else is described, not built.

    Args:
        path: the file.

    Returns:
        The value, for `array`, `csr_state` and `adjacency_lists`.

    Raises:
        UnsafeFileError: for a global outside `ADMITTED`, or an operation the Planetoid files do not need.
        GraphError: for a file that is not a pickle, or is cut short.
    """
    with reading(path, "a pickle as published with Planetoid"):
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{path.stat().st_size} bytes, more than {LARGEST_FILE}")
        return _Machine(path).run(path.read_bytes())


def array(recipe: Any) -> Array:
    """The numpy array of a pickle, built here from its bytes once their number fits the shape.

    Args:
        recipe: what `read_pickle` has in its place.

    Returns:
        The array.

    Raises:
        ValueError: for anything but an array of numbers.
    """
    _expect(recipe, RECONSTRUCT)
    version, shape, dtype, by_column, text = recipe.state
    _expect(dtype, DTYPE)
    code, order = dtype.arguments[0], dtype.state[1]
    if version != 1 or code not in NUMBERS or order not in ("<", ">") or not isinstance(text, str):
        raise ValueError("an array of something that is no number")
    if not is_shape(shape):
        raise ValueError("an array without a shape")
    # reshape checks the size: nothing is allocated beyond the bytes that are there, whatever the shape says.
    return np.frombuffer(text.encode("latin-1"), order + code).reshape(shape, order="F" if by_column else "C")


def is_shape(value: Any) -> TypeGuard[tuple[int, ...]]:
    """Whether a value is a tuple of sizes.

    Args:
        value: any.

    Returns:
        True where it is.

    Example:
        >>> is_shape((2, 3)), is_shape((2, -1)), is_shape([2, 3])
        (True, False, False)
    """
    return isinstance(value, tuple) and all(type(size) is int and size >= 0 for size in value)


def csr_state(recipe: Any) -> dict[str, Any]:
    """The attributes of a pickled `csr_matrix`.

    Args:
        recipe: what `read_pickle` has in its place.

    Returns:
        Values by name of the attribute.

    Raises:
        ValueError: for anything else.
    """
    _expect(recipe, CSR_MATRIX)
    if not isinstance(recipe.state, dict):
        raise ValueError("a csr_matrix without its arrays")
    return recipe.state


def adjacency_lists(recipe: Any) -> dict[Any, Any]:
    """The entries of a pickled `defaultdict(list)`.

    Args:
        recipe: what `read_pickle` has in its place.

    Returns:
        Entries by key.
    """
    _expect(recipe, DEFAULTDICT)
    entries: dict[Any, Any] = recipe.entries
    return entries


def _expect(recipe: Any, builder: _Name) -> None:
    if not isinstance(recipe, _Recipe) or recipe.builder != builder:
        got = str(recipe.builder) if isinstance(recipe, _Recipe) else type(recipe).__name__
        raise ValueError(f"{got} where {builder} should be")


class _Machine:
    """The stack machine of pickle protocol 2, with the few operations that the files need."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for operation, argument, _ in pickletools.genops(data):
            step = _STEPS.get(operation.name)
            if step is None:
                raise UnsafeFileError(
                    f"file {self.path} (got pickle operation {operation.name}), expected only those of the Planetoid "
                    "files; nothing was executed: delete it and load again"
                )
            step(self, argument)
        if len(self.stack) != 1:
            raise ValueError(f"{len(self.stack)} values left, expected one")
        return self.stack[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> tuple[Any, ...]:
        floor = self.marks[-1] if self.marks else 0
        if len(self.stack) - floor < count:
            raise ValueError("too few values on the stack")
        taken = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return taken

    def pop_mark(self) -> tuple[Any, ...]:
        start = self.marks.pop()
        taken = tuple(self.stack[start:])
        del self.stack[start:]
        return taken

    def push_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        named = _Name(module, name)
        if named not in ADMITTED:
            raise UnsafeFileError(
                f"file {self.path} (got the global {named}), expected only numpy arrays and lists; "
                "nothing was executed: delete it and load again"
            )
        self.push(named)

    def recipe(self) -> None:
        builder, arguments = self.pop(2)
        if not isinstance(builder, _Name) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is no class")
        self.push(_Recipe(builder, arguments))

    def build(self) -> None:
        recipe, state = self.pop(2)
        if not isinstance(recipe, _Recipe):
            raise ValueError("a state for something that has none")
        recipe.state = state
        self.push(recipe)

    def extend(self, items: tuple[Any, ...]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("an item for something that is no list")
        target.extend(items)

    def set_items(self, items: tuple[Any, ...]) -> None:
        target = self.stack[-1]
        if isinstance(target, _Recipe) and target.builder == DEFAULTDICT:
            target = target.entries
        # Keys are text or numbers only: the hash of nested tuples can take time exponential in the file's size.
        if not isinstance(target, dict) or len(items) % 2 or not all(type(key) in (int, str) for key in items[::2]):
            raise ValueError("an entry that does not fit a dict")
        target.update(zip(items[::2], items[1::2], strict=True))


def _store(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


_PUSH: dict[str, Callable[[_Machine, Any], None]] = dict.fromkeys(
    ("BININT", "BININT1", "BININT2", "SHORT_BINSTRING", "BINSTRING", "NONE"), _Machine.push
)
_STEPS: dict[str, Callable[[_Machine, Any], None]] = _PUSH | {
    "PROTO": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(machine.pop(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.pop(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.pop(3)),
    "TUPLE": lambda machine, _: machine.push(machine.pop_mark()),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_mark()),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "BINPUT": _store,
    "LONG_BINPUT": _store,
    "BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "GLOBAL": lambda machine, argument: machine.push_global(argument),
    "REDUCE": lambda machine, _: machine.recipe(),
    "NEWOBJ": lambda machine, _: machine.recipe(),
    "BUILD": lambda machine, _: machine.build(),
}
