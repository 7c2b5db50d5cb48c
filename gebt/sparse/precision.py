"""The precision of training: float32, TF32 products, or bf16 activations with float32 weights.

One setting a process, as the engine of the sparse products is: `using` sets it for a block, and every task runs its
network through `forward`. A loss, a softmax, the sums of a normalization and mask scores are float32 in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Precision = Literal["float32", "tf32", "bf16"]
# Compute capability of the first GPUs whose tensor cores multiply TF32 and bf16 (Ampere).
OLDEST = (8, 0)

_current: Precision = "float32"


def check_precision(precision: str, device: torch.device | str) -> None:
    """Refuses a precision that the device does not multiply.

    Args:
        precision: to train in.
        device: of the tensors.

    Raises:
        ValueError: for an unknown precision, TF32 on a CPU, and a GPU older than Ampere.

    Example:
        >>> check_precision("tf32", "cpu")
        Traceback (most recent call last):
        ...
        ValueError: precision (got 'tf32' on cpu), expected 'float32' or 'bf16': TF32 is a format of NVIDIA GPUs
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision (got {precision!r}), expected one of {get_args(Precision)}")
    kind = torch.device(device).type
    if precision == "tf32" and kind != "cuda":
        raise ValueError(
            f"precision (got 'tf32' on {kind}), expected 'float32' or 'bf16': TF32 is a format of NVIDIA GPUs"
        )
    if precision != "float32" and kind == "cuda" and (found := torch.cuda.get_device_capability(device)) < OLDEST:
        raise ValueError(
            f"precision (got {precision!r} on compute capability {found}), expected 'float32': older than {OLDEST}"
        )


@contextmanager
def using(precision: Precision, device: torch.device | str = "cpu") -> Iterator[None]:
    """Networks inside the block are trained and evaluated in this precision; afterwards as before.

    Args:
        precision: "float32"; "tf32": dense float32 products are made of TF32 factors (10 bits of fraction); "bf16":
            forward passes under autocast to bfloat16, of float32 weights.
        device: what the tensors are on.

    Raises:
        ValueError: as `check_precision`.

    Example:
        >>> with using("bf16"):
        ...     current(), forward("cpu", torch.mm, torch.ones(2, 2), torch.full((2, 2), 1.001)).tolist()
        ('bf16', [[2.0, 2.0], [2.0, 2.0]])
        >>> current()
        'float32'
    """
    global _current
    check_precision(precision, device)
    before, products = _current, torch.get_float32_matmul_precision()
    _current = precision
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    elif before == "tf32":
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        _current = before
        torch.set_float32_matmul_precision(products)


def current() -> Precision:
    """The precision in use."""
    return _current


def forward(device: torch.device | str, network: Callable[..., Tensor], *inputs: Any, **named: Any) -> Tensor:
    """What a network gives in the precision in use; in float32 where that is 16 bits, for losses are made of it.

    Args:
        device: what the tensors are on.
        network: called with the rest.
        inputs: by place.
        named: by name.

    Returns:
        Its output.
    """
    if _current != "bf16":
        return widened(network(*inputs, **named))
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        return widened(network(*inputs, **named))


def autocasted(x: Tensor) -> Tensor:
    """A factor of a product as torch's autocast, if it is on, gives it to `torch.mm`.

    Args:
        x: any tensor.

    Returns:
        x in the type of autocast; as it is without autocast, and in double precision.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     autocasted(torch.ones(1)).dtype, autocasted(torch.ones(1).double()).dtype
        (torch.bfloat16, torch.float64)
    """
    kind = x.device.type
    if x.dtype == torch.float64 or not x.is_floating_point() or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A block in which products keep the types of their factors.

    Args:
        x: says the device.

    Returns:
        The context.

    Example:
        >>> x = torch.ones(1, 1)
        >>> with torch.autocast("cpu", torch.bfloat16), without_autocast(x):
        ...     (x @ x).dtype
        torch.float32
    """
    kind = x.device.type
    # Entering costs microseconds, which many small products would add up.
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def widened(x: Tensor) -> Tensor:
    """A tensor to be summed: float32 where it has 16 bits.

    Args:
        x: of a floating type.

    Returns:
        x, or its float32 copy.

    Example:
        >>> widened(torch.ones(1).bfloat16()).dtype, widened(torch.ones(1).double()).dtype
        (torch.float32, torch.float64)
    """
    return x.float() if x.itemsize == 2 else x
