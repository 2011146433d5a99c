"""Build models whose parameters have shapes but no values, and copies of a model in another dtype."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import init
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from tsugiki.annotations import PretrainedConfig, PreTrainedModel
from tsugiki.errors import TsugikiError

Model = TypeVar("Model", bound=nn.Module)
Result = TypeVar("Result")
_FILLS = frozenset({init.uniform_, init.normal_, init.kaiming_uniform_, torch.Tensor.uniform_, torch.Tensor.normal_})


class NoRandomValues(TorchFunctionMode):
    """Skips the random initialisation of tensors on the meta device, which takes torch 0.8 ms for each of them.

    Layers initialise their weights when they are built, also on that device. Unlike with `no_init_weights` of
    transformers, weights that the files of a model lack are still initialised, because they are on a real device then.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, unless it would fill a tensor on the meta device with random values."""
        kwargs = kwargs or {}
        if func in _FILLS:
            tensor: torch.Tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


_FEW_NUMBERS = 1024


class _FewNumbersOnProcessor(TorchFunctionMode):
    """Lets the few numbers from which rotary frequencies are computed be on the processor, not on the meta device.

    With tensors on the meta device, torch divides by reference implementations in Python, which import SymPy; that
    takes a quarter of a second. Tables of positions stay on the meta device, because a config may ask for any size.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function; for `torch.arange` of few integers, on the processor."""
        kwargs = kwargs or {}
        if func is torch.arange and all(type(arg) is int for arg in args) and len(range(*args)) <= _FEW_NUMBERS:
            kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **kwargs)


def with_few_numbers(build: Callable[[], Result]) -> Result:
    """Return what `build` gives, a model that is on the meta device at first (see `_FewNumbersOnProcessor`).

    A few models mix such numbers with tensors that are on the meta device; they are built as torch does it.
    """
    try:
        with _FewNumbersOnProcessor():
            return build()
    except RuntimeError:
        return build()


MOST_TENSORS = 20_000
"""Limit on parameter tensors: building a model with so many takes some seconds, and published models have fewer."""


def meta_model(config: PretrainedConfig, most_tensors: int = MOST_TENSORS) -> PreTrainedModel:
    """Build the causal language model that a config describes on torch's meta device: it has shapes and no values.

    A model of more than `most_tensors` parameter tensors is an error.
    """
    model = with_few_numbers(lambda: _on_meta_device(config, most_tensors))
    for module in model.modules():
        buffers = {name: buffer.to("meta") for name, buffer in module._buffers.items() if buffer is not None}
        module._buffers.update(buffers)
    return model.eval()


def _on_meta_device(config: PretrainedConfig, most_tensors: int) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), NoRandomValues(), _limited(most_tensors):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def model_without_weights(config: PretrainedConfig) -> PreTrainedModel:
    """Build the model that a config describes with its parameters on the meta device and its buffers in memory.

    Buffers such as rotary frequencies are not in a model's files, so they are computed here, in float32.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False), NoRandomValues(), _limited(MOST_TENSORS):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.tie_weights()
    return model.eval()


def place(owner: nn.Module, attribute: str, tensor: torch.Tensor) -> None:
    """Set a buffer or a parameter of a module to a tensor; a parameter that is set in this way does not train."""
    if attribute in owner._buffers:
        owner._buffers[attribute] = tensor
    else:
        owner._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)


def fill_with_zeros(model: nn.Module) -> None:
    """Replace every tensor of a model on the meta device by one zero, expanded to its shape, which takes no memory.

    Tensors that are tied in the model stay tied.
    """
    placeholders: dict[torch.Tensor, torch.Tensor] = {}
    for module in model.modules():
        own: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in own:
            for key, tensor in tensors.items():
                if tensor is None:
                    continue
                if tensor not in placeholders:
                    zeros = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    placeholders[tensor] = nn.Parameter(zeros, requires_grad=False) if is_parameter else zeros
                tensors[key] = placeholders[tensor]


@contextmanager
def _limited(most: int) -> Iterator[None]:
    """Raise an error when more than `most` parameters are created within the block."""
    created = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal created
        created += 1
        if created > most:
            raise TsugikiError(
                "by its config it has more than {most:,} parameter tensors; is the config damaged?", most=most
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def replica_in(dtype: torch.dtype, model: Model) -> Model:
    """Return a copy of `model` whose floating-point parameters have this dtype and whose buffers keep theirs.

    `copy.deepcopy(model).to(dtype)` would round the buffers as well. Rotary frequencies then lose so many digits that
    the angle at position 2,047 is wrong by up to 0.9 rad (heads of 64 channels, base 10,000).
    `from_pretrained(dtype=dtype)` keeps them in float32, and so does this function.
    """
    # What a parameter is copied to is given to `deepcopy`, so tied parameters stay tied, and none is copied twice.
    cast = {
        id(parameter): nn.Parameter(parameter.detach().to(dtype, copy=True), parameter.requires_grad)
        for parameter in model.parameters()
        if parameter.is_floating_point()
    }
    return copy.deepcopy(model, cast)
