"""Training in low precision, simulated: block floating point with stochastic rounding, in anyone's loop.

Yang et al., "SWALP: Stochastic Weight Averaging in Low-Precision Training", ICML 2019, as EB-Train's LL and LF use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim

from gebt.sparse.precision import widened


def block_floating_point(x: Tensor, bits: int, generator: torch.Generator | None = None) -> Tensor:
    """Every slice x[i] as integers of `bits` bits (with sign) times one power of two: its shared exponent.

    e = floor(log2 max |x[i]|), q = clip(round(x[i] / 2^(e - bits + 2)), -2^(bits - 1), 2^(bits - 1) - 1). Rounding is
    stochastic: up with the probability of the part behind the point, drawn from `generator` (default: torch's own), so
    that the mean is x, but for the clipped top, also of a 16-bit x. A tensor of one dimension is one block.
    Raises `ValueError` for fewer than 2 bits.
    """
    if bits < 2:
        raise ValueError(f"bits (got {bits}), expected at least 2")
    if not x.numel():
        return x
    block = widened(x.detach()).reshape(x.shape[0] if x.dim() > 1 else 1, -1)
    largest = block.abs().amax(1, keepdim=True)
    # frexp is exact, where log2 may round up to the next power.
    exponent = torch.frexp(largest).exponent - 1
    unit = torch.ldexp(torch.ones_like(largest), exponent - bits + 2)
    drawn = torch.rand(block.shape, generator=generator, dtype=block.dtype, device=block.device)
    counts = block / unit
    whole = counts.floor()
    # Not floor(counts + drawn): that sum is rounded, and a whole number could go up.
    rounded = (whole + (drawn < counts - whole)).clamp_(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return torch.where(largest > 0, rounded * unit, block).view(x.shape).to(x.dtype)


class _Quantized(torch.autograd.Function):
    """Block floating point of what goes forward, and of the error that comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, generator: torch.Generator) -> Tensor:
        ctx.bits, ctx.generator = bits, generator
        return block_floating_point(x, bits, generator)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return block_floating_point(gradients[0], ctx.bits, ctx.generator), None, None


class LowPrecision:
    """Keeps a network's training in `bits` bits until `remove()`: weights, gradients, momenta, activations, errors.

    Weights and momenta are rounded after every `optimizer.step()`, gradients before it, activations and errors behind
    every convolution and linear layer but the last. Numbers are simulated: tensors stay in their own type, so nothing
    is faster; what is seen is what 8 bits do to a search. State dicts keep their names.
    """

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, bits: int = 8, seed: int = 0) -> None:
        parameters = list(model.parameters())
        self._bits, self._generator = bits, torch.Generator(parameters[0].device).manual_seed(seed)
        self._optimizer, self._parameters = optimizer, parameters
        self._round(p.data for p in parameters)
        layers = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)]
        self._handles: list[Any] = [layer.register_forward_hook(self._activation) for layer in layers[:-1]]
        self._handles.append(optimizer.register_step_pre_hook(self._before))
        self._handles.append(optimizer.register_step_post_hook(self._after))

    def remove(self) -> None:
        """Full precision from here on; what was rounded stays so."""
        for handle in self._handles:
            handle.remove()

    def _activation(self, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return _Quantized.apply(output, self._bits, self._generator)  # type: ignore[no-untyped-call]

    def _before(self, *_: Any) -> None:
        self._round(p.grad for p in self._parameters if p.grad is not None)

    def _after(self, *_: Any) -> None:
        self._round(p.data for p in self._parameters)
        states = (state for state in self._optimizer.state.values())
        self._round(own for state in states for own in state.values() if isinstance(own, Tensor) and own.dim())

    def _round(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            tensor.copy_(block_floating_point(tensor, self._bits, self._generator))
