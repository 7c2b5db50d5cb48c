"""A pretend CUDA device: tensors whose numbers live on the CPU and whose `device` is cuda:0.

It finds tensors of two devices in one operation, counts what waits for the device, refuses what a CUDA graph cannot
record, and replays a recorded graph as CUDA does: the same operations on the same memory, without the Python code
around them. Of kernels, streams, memory and time it says nothing; numbers are those of the CPU.

with pretend_cuda() as device:
    ...  # torch.cuda.is_available() is True
    device.waits  # a Counter of (operation, file:line)
"""

from __future__ import annotations

import collections
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing

from gebt.sparse.backends import triton
from gebt.train import cuda_graph
from tests.pretend_graph import Recording, computed, mapped, tensors

CUDA = torch.device("cuda", 0)
MEMORY = 80 << 30
aten = torch.ops.aten
# The size of the result, or the result itself, is known to the host only after a wait.
WAITING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten._unique2.default,
    aten.unique_consecutive.default, aten.unique_dim.default, aten.bincount.default, aten.equal.default,
    aten.repeat_interleave.Tensor,
}  # fmt: skip
# Beside a tensor of a device these take indices of the CPU, and copy them.
INDEXED = {
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}  # fmt: skip
RANDOM = {
    "randn",
    "rand",
    "randint",
    "randperm",
    "bernoulli",
    "multinomial",
    "normal",
    "uniform_",
    "random_",
    "normal_",
}
LIKE = {
    "new_empty",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_tensor",
    "zeros_like",
    "empty_like",
    "ones_like",
    "full_like",
}
CAPTURING = "CUDA error: operation not permitted when stream is capturing"
TwoDevices = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"


class Device:
    """What happened on the device so far."""

    def __init__(self) -> None:
        self.waits: collections.Counter[tuple[str, str]] = collections.Counter()
        self.problems: list[str] = []
        self.recordings, self.replays, self.launches = 0, 0, 0
        self.recording: Recording | None = None

    def wait(self, operation: str) -> None:
        """Notes a wait; an error while a graph is recorded."""
        self.waits[operation, _site()] += 1
        if self.recording is not None:
            raise RuntimeError(f"{CAPTURING} ({operation} at {_site()})")


_device = Device()


def _site() -> str:
    """The innermost line of the package that is being run."""
    frame = sys._getframe(1)
    while frame is not None and f"{os.sep}gebt{os.sep}" not in frame.f_code.co_filename:
        frame = frame.f_back
    return "?" if frame is None else f"{frame.f_code.co_filename.rpartition('gebt' + os.sep)[2]}:{frame.f_lineno}"


class OnDevice(Tensor):
    """A tensor of the pretend device; `numbers` is the tensor of the CPU that it stands for."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor, requires_grad: bool = False) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls, numbers.size(), strides=numbers.stride(), storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype, layout=numbers.layout, device=torch.device("cpu"), requires_grad=requires_grad,
        )  # fmt: skip
        made.numbers = numbers
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:
        return f"OnDevice({self.numbers!r})"

    # With these two torch knows that a module's parameter must be swapped for such a tensor, not overwritten by it.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: Any, size: Any, stride: Any) -> OnDevice:
        return OnDevice(inner["numbers"])

    def __deepcopy__(self, memo: dict[int, Any]) -> OnDevice:
        memo[id(self)] = copied = OnDevice(self.numbers.clone(), self.requires_grad)
        return copied

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        _check_devices(func, args, [tensor for tensor in tensors((args, kwargs)) if not isinstance(tensor, OnDevice)])
        if func in WAITING:
            _device.wait(func.__name__)
        recording = _device.recording
        inside = mapped(lambda tensor: getattr(tensor, "numbers", tensor), (args, kwargs))
        if recording is not None:
            recording.before(func, inside)
        out = computed(func, *inside)
        if not func.is_view:
            _device.launches += 1
        if recording is not None:
            recording.after(func, inside, out)
        if func is aten.copy_.default and not isinstance(args[0], OnDevice):
            return args[0]
        wrapped = mapped(lambda tensor: tensor if isinstance(tensor, OnDevice) else OnDevice(tensor), out)
        return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _check_devices(func: Any, args: tuple[Any, ...], of_cpu: list[Tensor]) -> None:
    """Raises what torch raises for tensors of two devices, and notes copies between them."""
    if func in INDEXED:
        for index in args[1] or []:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                _device.wait("index by a mask")
            if index is not None and not isinstance(index, OnDevice):
                _device.wait("copy of an index to the device")
        value = args[2] if len(args) > 2 else None
        wrong = isinstance(value, Tensor) and not isinstance(value, OnDevice) and value.dim() > 0
        if wrong or not isinstance(args[0], OnDevice):
            raise RuntimeError(f"{TwoDevices} ({func} at {_site()})")
    elif func is aten.copy_.default:
        if not isinstance(args[0], OnDevice):
            _device.wait("copy to the host")
        elif of_cpu:
            _device.wait("copy to the device")
    # A number in a tensor of no dimension may come from the CPU, but not into operations of our own.
    elif any(tensor.dim() > 0 or func.namespace == "gebt" for tensor in of_cpu):
        raise RuntimeError(f"{TwoDevices} ({func} at {_site()})")


class CUDAGraph:
    """`torch.cuda.CUDAGraph` of the pretend device."""

    def __init__(self) -> None:
        self.recording: Recording | None = None

    def replay(self) -> None:
        """See `Recording.replay`."""
        _device.replays += 1
        assert self.recording is not None
        with torch.no_grad():
            self.recording.replay()


@contextlib.contextmanager
def _graph(graph: CUDAGraph) -> Iterator[None]:
    _device.recordings += 1
    _device.recording = graph.recording = Recording()
    try:
        yield
    finally:
        _device.recording = None
        with torch.no_grad():
            graph.recording.end()


class _Stream:
    def __init__(self, *_: Any) -> None: ...

    def wait_stream(self, other: Any) -> None: ...

    def synchronize(self) -> None: ...


class _ToDevice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return OnDevice(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad.numbers


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Any) -> Tensor:
        return tensor.numbers.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return OnDevice(grad)


def to_device(tensor: Tensor) -> Tensor:
    """The tensor on the pretend device."""
    if isinstance(tensor, OnDevice):
        return tensor
    _device.wait("copy to the device")
    if tensor.requires_grad and torch.is_grad_enabled():
        return _ToDevice.apply(tensor)
    return OnDevice(tensor.detach().clone(memory_format=torch.preserve_format), tensor.requires_grad)


def to_host(tensor: Tensor) -> Tensor:
    """The tensor on the CPU."""
    if not isinstance(tensor, OnDevice):
        return tensor
    _device.wait("copy to the host")
    if tensor.requires_grad and torch.is_grad_enabled():
        return _ToHost.apply(tensor)
    return tensor.detach().numbers.clone()


def _is_cuda(device: Any) -> bool:
    return str(device).startswith("cuda") if isinstance(device, torch.device | str) else False


class _Generator(torch.Generator):
    """A generator that knows its device; its numbers are the CPU's."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls, "cpu")
        made.on_device = _is_cuda(device)
        return made

    def __init__(self, device: Any = "cpu") -> None: ...

    @property
    def device(self) -> torch.device:
        return CUDA if self.on_device else torch.device("cpu")


class _Functions(TorchFunctionMode):
    """What happens before the dispatcher: moves between devices, and tensors that are made on one."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name, first = getattr(func, "__name__", ""), args[0] if args else None
        if func is Tensor.cuda:
            return to_device(args[0])
        if func is Tensor.cpu:
            return to_host(args[0])
        if func is Tensor.to:
            return _moved(func, args[0], list(args[1:]), kwargs)
        if isinstance(first, OnDevice):
            if func is Tensor.tolist:
                _device.wait("tolist")
                return first.detach().numbers.tolist()
            if func in (Tensor.numpy, Tensor.data_ptr, Tensor.__array__):
                raise TypeError(f"can't convert cuda:0 device type tensor to numpy ({name} at {_site()})")
            if func is Tensor.__deepcopy__:
                return first.__deepcopy__(args[1])
        _check_generator(name, first, kwargs)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
            out = func(*args, **kwargs)
            if func in (torch.tensor, torch.as_tensor):
                return to_device(out)
            made = isinstance(out, Tensor) and not isinstance(out, OnDevice)
            return OnDevice(out.detach(), out.requires_grad) if made else out
        if kwargs.get("device") is not None and name in LIKE and isinstance(first, OnDevice):
            return to_host(func(*args, **kwargs))
        return func(*args, **kwargs)


def _moved(func: Any, tensor: Tensor, rest: list[Any], kwargs: dict[str, Any]) -> Tensor:
    """`Tensor.to` in all its forms."""
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for value in rest:
        if isinstance(value, Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, torch.device | str):
            device = value
        elif isinstance(value, torch.dtype):
            dtype = value
    options = {key: kwargs[key] for key in ("copy", "memory_format") if kwargs.get(key) is not None}
    out = func(tensor, dtype=dtype or tensor.dtype, **options)
    return out if device is None else to_device(out) if _is_cuda(device) else to_host(out)


def _check_generator(name: str, first: Any, kwargs: dict[str, Any]) -> None:
    if name not in RANDOM:
        return
    generator = kwargs.get("generator")
    on_device = isinstance(first, OnDevice) or _is_cuda(kwargs.get("device"))
    if on_device and generator is not None and not getattr(generator, "on_device", False):
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' ({name} at {_site()})")
    if _device.recording is not None and not on_device:
        _device.problems.append(f"random numbers of the CPU ({name} at {_site()}) while recording: frozen in the graph")


def _can_be_recorded(optimizer: Any) -> None:
    """What torch itself checks where there is a device."""
    if _device.recording is not None and not all(group["capturable"] for group in optimizer.param_groups):
        raise RuntimeError(f"Attempting CUDA graph capture of step() of {type(optimizer).__name__}, not capturable")


_module_to = torch.nn.Module.to


def _to(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
    if args and isinstance(args[0], OnDevice):
        args = (CUDA, args[0].dtype)
    return _module_to(module, *args, **kwargs)


def _patches() -> Iterator[tuple[Any, str, Any]]:
    nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    for name, value in {
        "is_available": lambda: True, "is_current_stream_capturing": lambda: _device.recording is not None,
        "synchronize": nothing, "mem_get_info": lambda *_: (MEMORY, MEMORY), "reset_peak_memory_stats": nothing,
        "memory_allocated": lambda *_: 0,
        "memory_reserved": lambda *_: 0, "max_memory_allocated": lambda *_: 0, "current_device": lambda: 0,
        "get_device_name": lambda *_: "pretend", "get_device_capability": lambda *_: (9, 0),
        "is_bf16_supported": lambda *_: True,
        "Stream": _Stream, "current_stream": _Stream, "stream": contextlib.nullcontext, "graph": _graph,
        "CUDAGraph": CUDAGraph,
    }.items():  # fmt: skip
        yield torch.cuda, name, value
    yield torch.backends.cuda, "is_built", lambda: True
    # Triton's kernels read memory by address, and tensors of this device have none.
    yield triton, "takes", lambda x: False
    yield torch.nn.Module, "to", _to
    yield torch, "Generator", _Generator
    # The dispatcher takes these tensors for the CPU's, so what is cast for one device is cast for the other.
    autocast, enabled, kind = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype
    yield torch, "autocast", lambda device_type, *args, **options: autocast("cpu", *args, **options)
    yield torch, "is_autocast_enabled", lambda device_type=None: enabled("cpu")
    yield torch, "get_autocast_dtype", lambda device_type: kind("cpu")
    copies = cuda_graph._copies
    yield cuda_graph, "_copies", lambda func, args, kwargs: copies(func, args, {})
    names = ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check")
    yield torch.optim.Optimizer, next(name for name in names if hasattr(torch.optim.Optimizer, name)), _can_be_recorded


@contextlib.contextmanager
def pretend_cuda() -> Iterator[Device]:
    """Everything inside sees one CUDA device."""
    global _device
    _device = Device()
    saved = []
    for owner, name, value in _patches():
        saved.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)
    try:
        with _Functions():
            yield _device
    finally:
        for owner, name, value in saved:
            setattr(owner, name, value)
