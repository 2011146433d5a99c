"""Merging: the active adapter is added to the base's weights, so that it costs nothing at inference.

An adapter defines its effect as updates of named weights (`Adapter.weight_updates`). Here they are applied to a model
in memory; `adapters.merge_files` applies them to the files of a model.

    merge(model)             W                 →   W + ΔW, rounded to the dtype of W
    merge_quantized(model)   scale · qweight   →   W   →   W + ΔW   →   scale' · qweight'

The old weights are kept for `unmerge`, which restores them bit-identically. The new weight belongs to its layer alone,
so a weight that was shared (such as GPT-2's by embedding and output head) is not shared any more, and the model's
config then says so.

A step between two quantised values can be larger than the adapter's update, which is then lost. The error can even
exceed the update, since a row whose scale changes is quantised again as a whole. So `merge` raises an error for a
quantised base, and `merge_quantized` returns the share that is lost, ‖scale' · qweight' - W - ΔW‖ / ‖ΔW‖.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.lora.hold import active_adapter, attach_adapter, detach_adapter, require_state
from tsugiki.lora.layer import Grafted
from tsugiki.model.linear import QuantizedLinear, is_quantized
from tsugiki.model.shared_parameters import shared_parameters, untie
from tsugiki.model.undo import Undo, parameter_owner, replace_module, replace_parameter, undo_all
from tsugiki.model.weight_updates import WeightUpdate, is_replacement
from tsugiki.model.wrappers import unwrapped


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Add the active adapter to the base's weights, in place. A model that is merged already is left as it is.

    A shared weight that the adapter changes in one place only becomes two weights, with a warning;
    `config.tie_word_embeddings` is set to False, so that a saved model keeps both.

    Returns:
        The same model; `ungraft(merge(model))` is a plain model with the adapter in its weights.

    Raises:
        TsugikiError: no adapter is active, its method cannot be merged, a merged weight is not finite, or the base is
            quantised.
    """
    model = unwrapped(model)
    state = require_state(model)
    if state.merged is None:
        with _updates_of_active_adapter(model) as (updates, undo):
            quantized = [name for name, update in updates.items() if _is_quantized(model, name, update)]
            if quantized:
                raise TsugikiError(
                    _(
                        "{path} is quantised, so merging would lose part of the update; load the base unquantised, "
                        "or use merge_quantized(model), which quantises the sum and returns what is lost"
                    ).format(path=quantized[0])
                )
            _replace_weights(model, _new_weights(model, updates), _shared_in_part(model, updates), undo)
            state.merged = undo
    return model


@torch.no_grad()
def merge_quantized(model: nn.Module) -> dict[str, float]:
    """Add the active adapter to the base's weights, in place, quantising again each layer that is quantised.

    Other layers are merged as by `merge`. `unmerge` undoes it.

    Returns:
        For each quantised layer, by name, the share of its update that is lost: 0 if nothing is lost, 1 if the error is
        as large as the update itself.

    Raises:
        TsugikiError: no adapter is active, its method cannot be merged, an adapter is merged already, a layer's format
            cannot be quantised again, or a merged weight is not finite.
    """
    model = unwrapped(model)
    state = require_state(model)
    if state.merged is not None:
        raise TsugikiError(
            _("adapter {active!r} is merged into the base already; unmerge(model) comes first").format(
                active=state.active
            )
        )
    layers: dict[str, nn.Module] = {}
    lost: dict[str, float] = {}
    with _updates_of_active_adapter(model) as (updates, undo):
        for name in [name for name, update in updates.items() if _is_quantized(model, name, update)]:
            layer = parameter_owner(model, name)[0]
            if not isinstance(layer, QuantizedLinear):
                raise TsugikiError(
                    _(
                        "{name} is quantised by a {kind}, which cannot be quantised again here; load the base "
                        "unquantised, in int8 or in nf4"
                    ).format(name=name, kind=type(layer).__name__)
                )
            path = name.rpartition(".")[0]
            layers[path], lost[path] = _requantized(name, layer, updates.pop(name))
        weights = _new_weights(model, updates)
        for path, layer in layers.items():
            _replace_layer(model, path, layer, undo)
        _replace_weights(model, weights, _shared_in_part(model, updates), undo)
        state.merged = undo
    return lost


def unmerge(model: nn.Module) -> nn.Module:
    """Undo `merge` or `merge_quantized`: the base's weights are bit-identical to before, and the adapter is active.

    Raises:
        TsugikiError: nothing is merged.
    """
    model = unwrapped(model)
    state = require_state(model)
    if state.merged is None:
        raise TsugikiError(_("nothing is merged into this model"))
    undo_all(state.merged)
    state.merged = None
    attach_adapter(model, state.active)
    return model


@contextmanager
def _updates_of_active_adapter(model: nn.Module) -> Iterator[tuple[dict[str, WeightUpdate], list[Undo]]]:
    """Detach the active adapter from the model, and yield its updates and a list for functions that undo them.

    If the block raises an error, these functions are called, and the adapter is attached again.
    """
    state, adapter = require_state(model), active_adapter(model)
    if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):  # torch's DTensor
        raise TsugikiError(
            _(
                "the weights of this model are split over several processes, so nothing can be merged into them; "
                "save the adapter, and merge it in one process"
            )
        )
    active, undo = state.active, list[Undo]()
    try:
        detach_adapter(state)
        yield adapter.weight_updates(model), undo
    except BaseException:
        undo_all(undo)
        attach_adapter(model, active)
        raise


def _is_quantized(model: nn.Module, name: str, update: WeightUpdate) -> bool:
    """Return whether the weight called `name` is not a tensor of floating-point numbers of at least 16 bits.

    A buffer that a trained copy of its module replaces does not count as quantised, such as an integer counter.
    """
    owner, attribute = parameter_owner(model, name)
    tensor: Tensor | None = owner._parameters.get(attribute)
    if tensor is None:
        tensor = owner._buffers.get(attribute)
        if tensor is not None and is_replacement(update):
            return False
    if tensor is None or (is_quantized(owner) and attribute == "weight"):
        return True
    return not tensor.is_floating_point() or tensor.itemsize < 2


def _new_weights(model: nn.Module, updates: Mapping[str, WeightUpdate]) -> dict[str, Tensor]:
    """Return the merged weights by name; a weight that is shared, with the same update for all names, stays shared.

    Raises:
        TsugikiError: a weight is not finite.
    """
    merged: dict[tuple[int, int], Tensor] = {}
    weights: dict[str, Tensor] = {}
    not_finite: list[str] = []
    for name, update in updates.items():
        owner, attribute = parameter_owner(model, name)
        before: Tensor = getattr(owner, attribute)
        key = id(before), id(update)
        if key not in merged:
            merged[key] = update(before).detach().to(before.dtype).contiguous()
            if isinstance(before, nn.Parameter):
                merged[key] = nn.Parameter(merged[key], requires_grad=False)
                if not torch.isfinite(merged[key]).all():
                    not_finite.append(name)
        weights[name] = merged[key]
    if not_finite:
        raise TsugikiError(
            _("merging gives values that are not finite in {path} ({count} in all)").format(
                path=not_finite[0], count=len(not_finite)
            )
        )
    return weights


def _replace_weights(
    model: nn.Module, weights: Mapping[str, Tensor], untied: Collection[str], undo: list[Undo]
) -> None:
    for name, weight in weights.items():
        replace_parameter(model, name, weight, undo)
    untie(model, untied, undo)


def _requantized(name: str, layer: QuantizedLinear, update: WeightUpdate) -> tuple[nn.Module, float]:
    """Return the layer with the merged weight, quantised, and the share of the update that is lost."""
    before = layer.dequantize()
    exact = update(before)
    if not torch.isfinite(exact).all():
        raise TsugikiError(_("merging gives values that are not finite in {name}").format(name=name))
    after = layer.requantize(exact)
    assert isinstance(after, QuantizedLinear)
    error, size = (after.dequantize() - exact).norm(), (exact - before).norm()
    return after, float(error / size) if size else 0.0


def _replace_layer(model: nn.Module, path: str, layer: nn.Module, undo: list[Undo]) -> None:
    grafted = isinstance(model.get_submodule(path), Grafted)
    replace_module(model, f"{path}.base_layer" if grafted else path, layer, undo)


def _shared_in_part(model: nn.Module, updates: Mapping[str, WeightUpdate]) -> set[str]:
    """Return the layers whose parameter is shared with another layer that does not get the same update."""
    shared = shared_parameters(model)
    return {
        name.rpartition(".")[0]
        for name, update in updates.items()
        if any(updates.get(other) is not update for other in shared.get(name, ()))
    }
