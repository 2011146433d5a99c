"""A copy of a model without weights, and a forward pass through it.

Weights, and every large result of the pass, have a shape but no memory and no values, so that a pass takes about a
second for a model of 7 billion parameters. Autograd records the pass as usual.
"""

import copy
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_TOKENS = 24
_FRAMES = 96
_COMPUTED_ELEMENTS = 2**14
"""Results with at most this many elements are computed, so that code that depends on values, such as a router, runs."""


def weightless_copy(model_class: type[nn.Module], config: Any) -> Any:
    """Return a model of this class and config, whose weights are zeros that take no memory.

    Attention and experts use transformers' `eager` implementations.
    """
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    with torch.device("meta"):
        model = model_class(config).float()
    weightless: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if id(tensor) not in weightless:
                        zeros = _zeros_like(tensor)
                        is_parameter = isinstance(tensor, nn.Parameter)
                        trains = is_parameter and zeros.is_floating_point()
                        weightless[id(tensor)] = nn.Parameter(zeros, trains) if is_parameter else zeros
                    tensors[name] = weightless[id(tensor)]  # type: ignore[assignment]
    return model


def run(model: Any) -> Any:
    """Return the output of a model from `weightless_copy` for a few tokens; gradients are recorded.

    The state of torch's random number generator does not change.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(devices=[]),
        nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"),  # a device slows every call
        _ShapesOnly(),  # type: ignore[no-untyped-call]
    ):
        return model(**_inputs(model))


class _ShapesOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes integers, booleans and small results; of large floating-point results only the shape.

    A large result is one zero, expanded to the shape. So branches that depend on data run as usual, but no product of
    large matrices is computed, and no memory is used for it.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        returned = [result.alias_info for result in func._schema.returns if result.alias_info is not None]
        if any(alias.is_write for alias in returned):
            # Writing into a tensor without memory would have no effect.
            return args[0] if _has_no_memory(args[0]) else func(*args, **kwargs)
        if returned:
            return _view(func, args, kwargs)
        tensors: list[Tensor] = []
        on_meta = _map_tensors(_meta_twin, (args, kwargs), tensors)
        if tensors and all(map(_is_small, tensors)):
            return func(*args, **kwargs)
        results: list[Tensor] = []
        try:
            shapes = _map_tensors(_zeros_like, _compute_shapes(func, *on_meta), results)
        except (RuntimeError, NotImplementedError, TypeError):  # the shapes depend on values
            return func(*args, **kwargs)
        if not all(result.is_floating_point() or result.is_complex() for result in results):
            return func(*args, **kwargs)
        if not tensors and all(map(_is_small, results)):
            return func(*args, **kwargs)
        return shapes


def _view(func: Any, args: Any, kwargs: Any) -> Any:
    try:
        return func(*args, **kwargs)
    except RuntimeError:  # the view requires other strides than those of a tensor without memory
        return _map_tensors(_zeros_like, _compute_shapes(func, *_map_tensors(_meta_twin, (args, kwargs), [])), [])


def _compute_shapes(func: Any, args: Any, kwargs: Any) -> Any:
    """Return the result of an operation on torch's meta device."""
    if any(argument.name == "device" for argument in func._schema.arguments):
        kwargs["device"] = torch.device("meta")
    return func(*args, **kwargs)


def _map_tensors(function: Callable[[Tensor], Tensor], nested: Any, found: list[Tensor]) -> Any:
    """Apply `function` to every tensor in nested lists, tuples and dicts, and append these tensors to `found`."""
    if isinstance(nested, Tensor):
        found.append(nested)
        return function(nested)
    if isinstance(nested, dict):
        return {key: _map_tensors(function, item, found) for key, item in nested.items()}
    if isinstance(nested, list | tuple):
        mapped = [_map_tensors(function, item, found) for item in nested]
        return tuple(mapped) if isinstance(nested, tuple) else mapped
    return nested


def _meta_twin(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _zeros_like(tensor: Tensor) -> Tensor:
    """Return zeros of the shape of `tensor` on the processor; if there are many, they take no memory."""
    if _is_small(tensor):
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
    return torch.zeros((), dtype=tensor.dtype, device="cpu").expand(tensor.shape)


def _is_small(tensor: Tensor) -> bool:
    return tensor.numel() <= _COMPUTED_ELEMENTS


def _has_no_memory(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and not any(tensor.stride())


def _inputs(model: Any) -> dict[str, Any]:
    """Return arguments for a forward pass of a few tokens: token ids, and the input of an audio encoder, if any."""
    accepted = inspect.signature(model.forward).parameters
    config = model.config
    text = config.get_text_config(decoder=True)
    positions = getattr(text, "max_position_embeddings", None) or _TOKENS
    tokens = min(_TOKENS, positions) if positions > 0 else _TOKENS  # XLNet's is -1
    ids = torch.arange(tokens)[None] % text.vocab_size
    given: dict[str, Any] = {"use_cache": False, "decoder_input_ids": ids}
    name = getattr(model, "main_input_name", "input_ids")
    sounds = {"input_features": _spectrogram, "input_values": _samples}
    given[name] = sounds[name](config) if name in sounds else ids
    return {name: value for name, value in given.items() if name in accepted}


def _spectrogram(config: Any) -> Tensor:
    """Return a spectrogram, [1, frequencies, frames] as Whisper's encoder reads it, or [1, frames, frequencies]."""
    if hasattr(config, "num_mel_bins"):
        return torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions)
    encoder = getattr(config, "encoder_config", config)
    return torch.zeros(1, _FRAMES, getattr(encoder, "num_mel_bins", None) or encoder.input_feat_per_channel)


def _samples(config: Any) -> Tensor:
    """Return half a second of silence at 16 kHz, [1, samples]."""
    return torch.zeros(1, 8000)
