"""Import torch and transformers, which takes seconds, and show a message meanwhile."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial, wraps
from importlib import import_module
from types import ModuleType
from typing import Any

from tsugiki.cli.deferred import changed_after_import, deferred
from tsugiki.cli.transformers_files import remembered_files
from tsugiki.io.progress import ProgressDisplay
from tsugiki.language import _
from tsugiki.ranks import is_main_process, several_processes

_TRANSFORMERS = (
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
)
"""Modules that every model of transformers needs."""
_UNUSED = (
    "scipy.optimize",
    "sklearn.metrics",
    "torch._dynamo",
    "torch._dynamo._trace_wrapped_higher_order_op",
    "torch.distributed._functional_collectives",
    "torch.distributed.checkpoint.hf_storage",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.distributed.tensor._utils",
    "torch.distributed.tensor.placement_types",
    "torch.nn.attention.flex_attention",
)
"""Modules that transformers imports for PyTorch's compiler, for sharded models, and for object detection."""


def import_libraries(module: str = "tsugiki.training.evaluation_targets") -> None:
    """Import a module that needs torch and transformers; in a terminal, an animated message is shown meanwhile.

    Only the main process does this in advance. Other processes import the module where it is used.

    Args:
        module: name of the module.
    """
    if module in sys.modules or not is_main_process():
        return
    with ProgressDisplay().stage(_("loading PyTorch and Transformers"), None), _without_garbage_collection():
        _import_transformers()
        import_module(module)


def _import_transformers() -> None:
    """Import the modules that every model of transformers needs, without those that a single process does not use."""
    with (
        changed_after_import("torch._compile", _without_compiler),
        changed_after_import("torch.nn.init", _without_drawing),
        changed_after_import("torch.optim.optimizer", _without_graph_breaks),
    ):
        import_module("torch")
    with remembered_files():
        import_module("transformers.models")
    with (
        nullcontext() if several_processes() else deferred(_UNUSED),
        changed_after_import("transformers.distributed.utils", _without_shards),
    ):
        for name in _TRANSFORMERS:
            import_module(name)


def _without_compiler(module: ModuleType) -> None:
    """Let PyTorch call functions that are excluded from compilation without importing its compiler.

    PyTorch would import the compiler when an optimiser is created, to exclude functions. As long as nothing else has
    imported it, nothing is compiled, and the functions can be called directly.
    """
    exclude = getattr(module, "_disable_dynamo", None)
    if exclude is None:
        return

    def disable_dynamo(fn: Callable[..., Any] | None = None, recursive: bool = True) -> Callable[..., Any]:
        if fn is None:
            return partial(disable_dynamo, recursive=recursive)
        excluded, direct = exclude(fn, recursive), fn

        @wraps(fn)
        def call(*arguments: Any, **named: Any) -> Any:
            return (excluded if "torch._dynamo" in sys.modules else direct)(*arguments, **named)

        return call

    module._disable_dynamo = disable_dynamo  # type: ignore[attr-defined]


def _without_graph_breaks(module: ModuleType) -> None:
    """Let an optimiser make a step without importing the compiler, which PyTorch needs only for a graph break."""
    decorate = getattr(module, "_use_grad_for_differentiable", None)
    if decorate is None:
        return

    def use_grad_for_differentiable(step: Callable[..., Any]) -> Callable[..., Any]:
        compiled = decorate(step)

        @wraps(step)
        def call(optimizer: Any, *arguments: Any, **named: Any) -> Any:
            if "torch._dynamo" in sys.modules:
                return compiled(optimizer, *arguments, **named)
            with sys.modules["torch"].set_grad_enabled(optimizer.defaults["differentiable"]):
                return step(optimizer, *arguments, **named)

        return call

    module._use_grad_for_differentiable = use_grad_for_differentiable  # type: ignore[attr-defined]


def _without_drawing(module: ModuleType) -> None:
    """Let `normal_` do nothing on torch's meta device, where tensors have no values: there it would import SymPy."""
    draw = getattr(module, "_no_grad_normal_", None)
    if draw is None:
        return

    def no_grad_normal(tensor: Any, *arguments: Any, **named: Any) -> Any:
        return tensor if tensor.is_meta else draw(tensor, *arguments, **named)

    module._no_grad_normal_ = no_grad_normal  # type: ignore[attr-defined]


def _without_shards(module: ModuleType) -> None:
    """Let transformers check whether a tensor is a DTensor (split over processes) without importing the class."""
    check = getattr(module, "is_dtensor", None)
    if check is None:
        return

    def is_dtensor(tensor: object) -> bool:
        return "torch.distributed.tensor" in sys.modules and bool(check(tensor))

    module.is_dtensor = is_dtensor  # type: ignore[attr-defined]


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Disable garbage collection within the block, and exclude the objects of imported modules from it afterwards.

    These are hundreds of thousands of objects that live until the process ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
