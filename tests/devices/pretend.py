"""A pretended accelerator in plain Python: correct results, refused mistakes, and a count of how often the host waits.

A tensor of the device `pretend:0` is a wrapper around a tensor of the processor. `PretendedDevice`, a
`TorchDispatchMode`, computes every operation with the wrapped tensors, so results are real and autograd works. It
raises the errors that accelerators raise, and counts what is slow on them:

- a tensor of the processor beside one of the device is an error, as on CUDA (numbers, as tensors without dimensions,
  and indices are allowed);
- float64 is an error where `float64=False`, and decompositions of matrices always, as on MPS;
- a copy to or from memory that is not pinned must wait: until it is done, that memory could be freed or written again;
- every operation that must bring a value or a size to the host is counted with the line of code that asks for it.

It cannot tell which kernels a real device lacks, nor how much time or memory an operation takes.
"""

import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _DummyPrivateUse1Hook, _setup_privateuseone_for_python_backend

NAME = "pretend"
aten = torch.ops.aten

_WAITS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
"""Operations whose result is on the host, or whose size depends on values on the device."""
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""Operations that take indices of the processor; a mask as an index makes the host wait for its number of elements."""
_MISSING = {"linalg_qr", "_linalg_svd", "_linalg_eigh", "linalg_cholesky_ex", "geqrf"}
_ON_HOST = {"_local_scalar_dense", "equal"}
_COPIES = {"_to_copy", "copy_", "_copy_from"}


class _Module:
    """What libraries look up in `torch.pretend`; the device is available only while one is in use."""

    in_use: "PretendedDevice | None" = None
    generator: torch.Generator
    """The device's own generator of random numbers."""

    def is_initialized(self) -> bool:
        return self.in_use is not None

    def is_available(self) -> bool:
        return self.in_use is not None

    def device_count(self) -> int:
        return int(self.in_use is not None)

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        pass

    def synchronize(self, *device: Any) -> None:
        pass

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        if self.in_use is not None:
            self.generator.manual_seed(seed + 1)  # another device draws other numbers from the same seed

    manual_seed = manual_seed_all

    def get_rng_state(self, *device: Any) -> Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: Tensor, *device: Any) -> None:
        self.generator.set_state(state)

    def empty_cache(self) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class _Hook(_DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return MODULE.is_available()


MODULE = _Module()


class DeviceTensor(torch.Tensor):
    """A tensor of the device. `host` holds its values."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> "DeviceTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            layout=host.layout,
            device=torch.device(NAME, 0),
        )

    def __init__(self, host: Tensor) -> None:
        self.host = host

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} of a tensor of the pretended device, which is not in use any more")

    def __repr__(self) -> str:
        return f"DeviceTensor({self.host})"


class PretendedDevice(TorchDispatchMode):
    """The device while it is in use; see the module's text.

    Attributes:
        float64: whether the device has float64.
        waits: how often the host waited for the device, by "file:line operation".
    """

    def __init__(self, float64: bool = False) -> None:
        super().__init__()
        self.float64 = float64
        self.waits: Counter[str] = Counter()

    def reset(self) -> None:
        """Forget what was counted."""
        self.waits.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name: str = func._schema.name.removeprefix("aten::")
        leaves = [*_leaves(args), *_leaves(kwargs.values())]
        ours = [leaf for leaf in leaves if isinstance(leaf, DeviceTensor)]
        asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        to_device = asked is not None and asked.type == NAME
        if not ours and not to_device:
            return func(*args, **kwargs)
        others = [leaf for leaf in leaves if type(leaf) is not DeviceTensor and isinstance(leaf, Tensor) and leaf.dim()]
        if name not in _COPIES:
            self._check_one_device(name, args, bool(ours), others)
        elif kwargs.get("non_blocking") or (len(args) > 2 and args[2]):
            self._check_pinned(name, leaves, asked)
        to_host = name in _ON_HOST or (name == "_to_copy" and asked is not None and not to_device)
        to_host |= name in ("copy_", "_copy_from") and not isinstance(args[0 if name == "copy_" else 1], DeviceTensor)
        if name in _WAITS or to_host or (name in _INDEXED and _has_mask(args[1])):
            self.waits[f"{_caller()} {name}"] += 1
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        if not self.float64 and kwargs.get("dtype") == torch.float64:
            raise TypeError(f"{name}: the device does not support float64")
        if name in _MISSING:
            raise NotImplementedError(f"{name}: the device has no such operation")
        host_args = [_host_values(value) for value in args]
        host_kwargs = {key: _host_values(value) for key, value in kwargs.items()}
        draws = torch.Tag.nondeterministic_seeded in func.tags and host_kwargs.get("generator") is None
        with _drawing_from(MODULE.generator) if draws else nullcontext():
            result = func(*host_args, **host_kwargs)
        if to_host:
            return args[0] if name == "copy_" else result
        by_host = {id(tensor.host): tensor for tensor in ours} if func._schema.is_mutable else {}
        if isinstance(result, Tensor):
            return self._wrap(result, name, by_host)
        return tree_map(lambda leaf: self._wrap(leaf, name, by_host) if isinstance(leaf, Tensor) else leaf, result)

    def _check_one_device(self, name: str, args: tuple[Any, ...], has_ours: bool, others: list[Tensor]) -> None:
        if has_ours and name in _INDEXED and isinstance(args[0], DeviceTensor):
            others = [tensor for tensor in others if not any(tensor is index for index in args[1])]
        if has_ours and others:
            shapes = [tuple(tensor.shape) for tensor in others]
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, found pretend:0 and cpu {shapes}"
            )

    def _check_pinned(self, name: str, leaves: list[Any], asked: torch.device | None) -> None:
        """Check a copy that the host does not wait for; the new tensor of one to the host would be read too early."""
        on_host = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, DeviceTensor)]
        if not all(tensor.is_pinned() for tensor in on_host) or (asked is not None and asked.type != NAME):
            raise RuntimeError(f"{_caller()} {name}: a copy without waiting, and the memory is not pinned")

    def _wrap(self, result: Tensor, name: str, by_host: dict[int, DeviceTensor]) -> Tensor:
        if not self.float64 and result.dtype == torch.float64:
            raise TypeError(f"{name}: the device does not support float64")
        return by_host[id(result)] if id(result) in by_host else DeviceTensor(result)


def register() -> None:
    """Tell torch of the device, once in a process and before its first backward pass.

    The backward pass counts the devices of the machine when it runs for the first time, and fails on later ones.
    """
    _setup_privateuseone_for_python_backend(NAME, backend_module=MODULE, hook=_Hook())


@contextmanager
def pretended_device(float64: bool = False) -> Iterator[PretendedDevice]:
    """Make the device, which must be registered, the accelerator of this machine within the block."""
    device = PretendedDevice(float64)
    # Otherwise `torch.tensor(…, device=…)` would ask the device for memory before this mode is called.
    torch._C._set_only_lift_cpu_tensors(True)
    MODULE.in_use, MODULE.generator = device, torch.Generator()
    try:
        with device:
            yield device
    finally:
        MODULE.in_use = None
        torch._C._set_only_lift_cpu_tensors(False)


def on_host(tensor: Tensor) -> Tensor:
    """Return the values of a tensor of either device, without a wait being counted."""
    return tensor.host if isinstance(tensor, DeviceTensor) else tensor


@contextmanager
def _drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let operations of the processor draw their random numbers from `generator` within the block."""
    before = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(before)


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    """Yield arguments and what lists of them hold; PyTorch's own function takes several times as long."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _leaves(value)
        else:
            yield value


def _host_values(value: Any) -> Any:
    """Return an argument of an operation with the values of the device's tensors, also of those in a list."""
    if isinstance(value, list | tuple):
        return [_host_values(one) for one in value]
    return value.host if isinstance(value, DeviceTensor) else value


def _has_mask(indices: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _caller() -> str:
    """Return "file:line" of the innermost frame of Tsugiki, or else of transformers, or else of anything but torch."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
    for part in ("/tsugiki/", "/transformers/", ""):
        own = [frame for frame in frames if part in frame.filename and "/torch/" not in frame.filename]
        if own:
            return f"{'/'.join(Path(own[-1].filename).parts[-2:])}:{own[-1].lineno}"
    return "?"
