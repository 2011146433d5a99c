"""A LoRA adapter: the pairs of all its layers, and what else it trains, as one thing that a model can hold.

Each target `layer` becomes `LoraLinear(layer)`, `LoraEmbedding(layer)` or `LoraConv2d(layer)` and stays it while the
model holds the adapter; the pair is in it while the adapter is active. A trained bias or module is a copy that stands
in its place.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from tsugiki.errors import TsugikiError
from tsugiki.lora.batchnorm import unfreeze_batchnorm
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.dora import add_magnitude
from tsugiki.lora.layer import (
    Grafted,
    LowRank,
    activate_factors,
    deactivate_factors,
    features,
    grafted_layers,
    is_linear,
    merged_weight,
    new_pair,
    oriented,
    updated,
    wrap,
)
from tsugiki.lora.merge import fold, require_unquantized
from tsugiki.lora.swap import (
    Undo,
    WeightUpdate,
    module_updates,
    replace_module,
    replace_parameter,
    replace_with,
    warn_untied_weights,
)
from tsugiki.lora.targets import base_modules, find_modules_to_save, find_targets


@dataclass
class LoraAdapter:
    """What one LoRA adapter brings. Names are those of the model before any graft."""

    config: LoraConfig
    pairs: dict[str, LowRank]
    modules: dict[str, nn.Module]
    biases: dict[str, nn.Parameter]

    @property
    def wrapped(self) -> set[str]:
        """The grafted layers."""
        return set(self.pairs)

    def attach(self, model: nn.Module) -> list[Undo]:
        """Put pairs, modules and biases into the model."""
        layers = [_grafted(model, path) for path in self.pairs]
        for layer, pair in zip(layers, self.pairs.values(), strict=True):
            activate_factors(layer, pair)
        undo: list[Undo] = [partial(deactivate_factors, layers)]
        undo += [replace_module(model, path, module) for path, module in self.modules.items()]
        undo += [replace_parameter(model, path, bias) for path, bias in self.biases.items()]
        return undo

    def merge(self, model: nn.Module) -> list[Undo]:
        """Fold the pairs into the weights of their layers; modules and biases are in their places already."""
        layers = {path: layer for path, layer in grafted_layers(model).items() if path in self.pairs}
        require_unquantized(
            {path: layer.base_layer for path, layer in layers.items()},
            "load the base as it is stored, or let merge_quantized(model) round the sum and say what is lost",
        )
        _refuse_groups({path: layer.base_layer for path, layer in layers.items()})
        weights = {path: merged_weight(layer.base_layer, self.pairs[path]) for path, layer in layers.items()}
        undo = fold(model, weights, also_untied=self.modules)
        for path, layer in layers.items():
            layer.lora = None
            undo.append(partial(setattr, layer, "lora", self.pairs[path]))
        return undo

    def changes(self, model: nn.Module) -> dict[str, WeightUpdate]:
        """Of weights with a pair their sum with ΔW; of trained biases and modules the trained values."""
        every = dict(base_modules(model))
        layers = {path: every[path] for path in self.pairs}
        _refuse_groups(layers)
        summed: dict[str, WeightUpdate] = {
            f"{path}.weight": partial(updated, layer, self.pairs[path]) for path, layer in layers.items()
        }
        return summed | {path: replace_with(bias) for path, bias in self.biases.items()} | module_updates(self.modules)


def new_adapter(model: nn.Module, config: LoraConfig) -> LoraAdapter:
    """A fresh adapter with these settings for `model`, which stays as it is.

    Raises:
        TsugikiError: the settings match nothing in the model, or something that cannot be.
    """
    targets = find_targets(model, config)
    for path, layer in targets.items():
        _refuse_what_does_not_fit(path, layer, config)
    modules = copies_to_save(model, config)
    pairs = {path: _pair(path, layer, config) for path, layer in targets.items()}
    biases = trained_biases(model, config, targets)
    return LoraAdapter(
        config, pairs, modules, {path: nn.Parameter(bias.detach().clone()) for path, bias in biases.items()}
    )


def copies_to_save(model: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """Copies of the modules that `modules_to_save` names, to be trained: name before any graft -> copy.

    Raises:
        TsugikiError: a name that matches nothing, or a module in which another adapter has grafted layers.
    """
    modules = find_modules_to_save(model, config)
    for path in modules:
        if any(inner.startswith(f"{path}.") for inner in grafted_layers(model)):
            raise TsugikiError(f"modules_to_save names {path}, inside which another adapter has grafted layers")
    inside = {f"{path}.{name}": p for path, module in modules.items() for name, p in module.named_parameters()}
    warn_untied_weights(model, inside)
    return {path: _trained_copy(module) for path, module in modules.items()}


def _refuse_groups(layers: Mapping[str, nn.Module]) -> None:
    for path, layer in layers.items():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            raise TsugikiError(
                f"{path} is a convolution in {layer.groups} groups, into whose kernel no pair can be merged; keep the "
                "adapter beside it"
            )


def _grafted(model: nn.Module, path: str) -> Grafted:
    """The grafted layer at `path`, which becomes one where it is not yet."""
    layer: Any = model
    for child in path.split("."):  # as `get_submodule`, in a twentieth of its time
        layer = layer._modules[child]
    if isinstance(layer, Grafted):
        return layer
    grafted = wrap(layer)
    grafted.training = layer.training
    replace_module(model, path, grafted)
    return grafted


def _pair(path: str, layer: nn.Module, config: LoraConfig) -> LowRank:
    """The pair of the layer called `path`."""
    pair = new_pair(layer, config.rank_of(path), config.scaling_of(path), config.lora_dropout, config.init_lora_weights)
    if config.use_dora:
        add_magnitude(pair, oriented(layer))
    if config.freeze_A and not isinstance(layer, nn.Embedding):
        pair.A.requires_grad_(False)
    return pair


def _refuse_what_does_not_fit(path: str, layer: nn.Module, config: LoraConfig) -> None:
    rank, start = config.rank_of(path), config.init_lora_weights
    kind = type(layer).__name__
    if isinstance(start, str) and start != "gaussian" and not is_linear(layer):
        raise TsugikiError(f"init_lora_weights {start!r} is of linear layers, and {path} is a {kind}; leave it out")
    if str(start).startswith("pissa") and rank > min(features(layer)):
        raise TsugikiError(
            f"init_lora_weights {start!r}: {path} has no {rank} principal directions, only {min(features(layer))}; "
            "lower the rank"
        )
    if not isinstance(layer, nn.Conv2d):
        return
    if rank % layer.groups:
        raise TsugikiError(f"{path} is a {kind} in {layer.groups} groups, and rank {rank} is no multiple of that")
    if config.use_dora and layer.groups > 1:
        raise TsugikiError(f"use_dora: {path} is a {kind} in {layer.groups} groups, where no row has one length")
    if layer.padding_mode != "zeros":
        raise TsugikiError(f"{path} is a {kind} that pads with {layer.padding_mode}; only zeros are known here")


def _trained_copy(module: nn.Module) -> nn.Module:
    copied = copy.deepcopy(module).requires_grad_(True)
    unfreeze_batchnorm(copied)  # another adapter may hold those of the base
    return copied


def trained_biases(model: nn.Module, config: LoraConfig, targets: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The base's biases that `config` trains, by name before any graft."""
    if config.bias == "none":
        return {}
    owners = dict(base_modules(model)) if config.bias == "all" else targets
    saved_whole = tuple(find_modules_to_save(model, config))
    found = {
        f"{path}.bias": bias
        for path, owner in owners.items()
        if isinstance(bias := owner._parameters.get("bias"), nn.Parameter)
        and not any(path == whole or path.startswith(f"{whole}.") for whole in saved_whole)
    }
    if not found:
        raise TsugikiError(f"bias={config.bias!r}, but the layers meant have no bias; use bias='none'")
    return found
