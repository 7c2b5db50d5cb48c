"""Recordings of the pretend CUDA device (`tests/pretend_cuda.py`): operations, and the memory they read and write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of an operation's arguments or results. torch's own walk through trees takes most of a small run."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, list | tuple):
        return [tensor for part in tree for tensor in tensors(part)]
    return tensors(list(tree.values())) if isinstance(tree, dict) else []


def mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Such a tree with other tensors."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, list | tuple):
        return type(tree)([mapped(function, part) for part in tree])
    return {key: mapped(function, part) for key, part in tree.items()} if isinstance(tree, dict) else tree


def computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation gives. Engines of sparse products that a GPU has for bfloat16 the CPU has for float32."""
    if func.namespace != "gebt" or all(tensor.dtype != torch.bfloat16 for tensor in tensors((args, kwargs))):
        return func(*args, **kwargs)
    wide = mapped(lambda x: x.float() if x.dtype == torch.bfloat16 else x, (args, kwargs))
    return mapped(lambda x: x.bfloat16() if x.dtype == torch.float32 else x, func(*wide[0], **wide[1]))


class Recording:
    """The operations of a CUDA graph. Recording changes nothing; a replay does them on the memory they had."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, Any, list[Tensor]]] = []
        self._made: set[int] = set()
        self._outside: dict[int, torch.UntypedStorage] = {}
        self._old: dict[int, tuple[Tensor, Tensor]] = {}
        self._random = torch.random.get_rng_state()

    def before(self, func: Any, inside: Any) -> None:
        """Notes the memory that an operation reads, and the numbers that it will overwrite."""
        args, kwargs = inside
        for tensor in (leaf for leaf in tensors(inside) if leaf.numel()):
            place = tensor.untyped_storage().data_ptr()
            if place not in self._made:
                self._outside[place] = tensor.untyped_storage()
        named = [*zip(func._schema.arguments, args, strict=False)]
        named += [(argument, kwargs[argument.name]) for argument in func._schema.arguments if argument.name in kwargs]
        for argument, value in named:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in (leaf for leaf in tensors(value) if leaf.numel()):
                    place = tensor.untyped_storage().data_ptr()
                    if place not in self._made and place not in self._old:
                        whole = torch.tensor([], dtype=tensor.dtype).set_(tensor.untyped_storage())
                        self._old[place] = whole, whole.clone()

    def after(self, func: Any, inside: Any, out: Any) -> None:
        """Notes an operation and where its results are."""
        made = tensors(out)
        if not func.is_view:
            self.steps.append((func, inside, made))
        for tensor in made:
            place = tensor.untyped_storage().data_ptr()
            if place not in self._outside:
                self._made.add(place)

    def end(self) -> None:
        """Puts back what recording has overwritten: CUDA records without computing."""
        for tensor, numbers in self._old.values():
            tensor.copy_(numbers)
        torch.random.set_rng_state(self._random)

    def replay(self) -> None:
        """Does every operation again, results into the memory of the recording."""
        for func, (args, kwargs), made in self.steps:
            again = computed(func, args, kwargs)
            for old, new in zip(made, tensors(again), strict=True):
                if old.numel() and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
