"""Weights that a model uses under several names, and what merging an adapter does to weights (see `lora.merge`)."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tsugiki.errors import TsugikiError, warn_caller
from tsugiki.language import _
from tsugiki.model.freeze import Replaced, copy_configs, restore_configs
from tsugiki.model.linear import is_quantized
from tsugiki.model.undo import Undo, base_of, parameter_owner
from tsugiki.model.ungrafted import vocabulary_layers

WeightUpdate: TypeAlias = Callable[[Tensor], Tensor]
"""Takes a weight of the base in any floating-point dtype, and returns the merged weight, in float32 or wider."""


def shared_parameters(model: nn.Module) -> dict[str, list[str]]:
    """Return, for each name of a parameter with several names, all of its names, which are those before any graft."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name.replace(".base_layer.", "."))
    return {name: group for group in names.values() if len(group) > 1 for name in group}


def shared_in_part(model: nn.Module, updates: Mapping[str, WeightUpdate]) -> set[str]:
    """Return the layers whose parameter is shared with another layer that does not get the same update."""
    shared = shared_parameters(model)
    return {
        name.rpartition(".")[0]
        for name, update in updates.items()
        if any(updates.get(other) is not update for other in shared.get(name, ()))
    }


def quantized_copies(model: nn.Module, parameter: str) -> list[str]:
    """Return the names of layers whose weight is this parameter in the model's files, but is quantised in the model."""
    tied = getattr(model, "all_tied_weights_keys", {})
    layers = [name.rpartition(".")[0] for name, source in tied.items() if source == parameter]
    return [name for name in layers if is_quantized(base_of(model.get_submodule(name)))]


def untie(model: nn.Module, layers: Collection[str], undo: list[Undo]) -> bool:
    """Record in the model's config that embedding and output head are two weights, if one of `layers` is either.

    `layers` are those whose weight is not shared any more. A copy of the config takes its place. Returns whether the
    config has changed.
    """
    config = getattr(model, "config", None)
    tied = config is not None and getattr(config, "tie_word_embeddings", False)
    if not tied or not vocabulary_layers(model).keys() & set(layers):
        return False
    replaced: Replaced = []
    undo.append(partial(restore_configs, replaced))
    copy_configs(model, replaced)
    undo.append(partial(setattr, model.config, "tie_word_embeddings", True))
    model.config.tie_word_embeddings = False  # type: ignore[union-attr]
    warn_caller(
        _(
            "the adapter changes the weight that the embedding and the output head share, but not in both places "
            "alike; merged, they are two weights (tie_word_embeddings=False)"
        )
    )
    return True


def replace_with(value: Tensor) -> WeightUpdate:
    """Return a WeightUpdate that replaces the weight by `value`."""
    return partial(_second, value)


def is_replacement(update: WeightUpdate) -> bool:
    """Return whether this update was returned by `replace_with`."""
    return isinstance(update, partial) and update.func is _second


def module_updates(modules: Mapping[str, nn.Module]) -> dict[str, WeightUpdate]:
    """Return the updates that replace the parameters and buffers of whole modules, by their names before any graft."""
    updates: dict[str, WeightUpdate] = {}
    of_tensor: dict[int, WeightUpdate] = {}  # shared tensors share an update
    for path, module in modules.items():
        for name, tensor in module.state_dict(keep_vars=True).items():
            updates[f"{path}.{name}"] = of_tensor.setdefault(id(tensor), replace_with(tensor))
    return updates


def is_quantized_weight(model: nn.Module, name: str, update: WeightUpdate) -> bool:
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


def updated_weights(model: nn.Module, updates: Mapping[str, WeightUpdate]) -> dict[str, Tensor]:
    """Return the merged weights by name; a weight that is shared, with the same update for all names, stays shared."""
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
            "merging gives values that are not finite in {path} ({count} in all)",
            path=not_finite[0],
            count=len(not_finite),
        )
    return weights


def _second(value: Tensor, _: Tensor) -> Tensor:
    return value
