"""A LoRA adapter: the pairs of all its layers, and what else it trains, as one thing that a model can hold.

Each target `layer` becomes `LoraLinear(layer)` or `LoraEmbedding(layer)` and stays it while the model holds the
adapter; the pair is in it while the adapter is active. A trained bias or module is a copy that stands in its place.
"""

import copy
from dataclasses import dataclass
from functools import partial

from torch import nn

from tsugiki.errors import TsugikiError
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.layer import LoraEmbedding, LoraLinear, LowRank, grafted_layers, merged_weight, new_pair, wrap
from tsugiki.lora.merge import fold, refuse_few_bits
from tsugiki.lora.replace import Undo, replace_module, replace_parameter, say_what_unties
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
        undo: list[Undo] = []
        for path, pair in self.pairs.items():
            layer = model.get_submodule(path)
            if not isinstance(layer, LoraLinear | LoraEmbedding):
                base = layer
                layer = wrap(base)
                layer.training = base.training
                replace_module(model, path, layer)
            layer.lora = pair.to(layer.weight.device).train(layer.training)
            undo.append(partial(setattr, layer, "lora", None))
        undo += [replace_module(model, path, module) for path, module in self.modules.items()]
        undo += [replace_parameter(model, path, bias) for path, bias in self.biases.items()]
        return undo

    def merge(self, model: nn.Module) -> list[Undo]:
        """Fold the pairs into the weights of their layers; modules and biases are in their places already."""
        layers = {path: layer for path, layer in grafted_layers(model).items() if path in self.pairs}
        refuse_few_bits({path: layer.base_layer for path, layer in layers.items()})
        weights = {path: merged_weight(layer.base_layer, self.pairs[path]) for path, layer in layers.items()}
        undo = fold(model, weights, also_untied=self.modules)
        for path, layer in layers.items():
            layer.lora = None
            undo.append(partial(setattr, layer, "lora", self.pairs[path]))
        return undo


def new_adapter(model: nn.Module, config: LoraConfig) -> LoraAdapter:
    """A fresh adapter with these settings for `model`, which stays as it is.

    Raises:
        TsugikiError: the settings match nothing in the model, or something that cannot be.
    """
    targets = find_targets(model, config)
    modules = copies_to_save(model, config)
    pairs = {
        path: new_pair(
            layer,
            config.rank_of(path),
            config.scaling_of(path),
            config.lora_dropout,
            config.init_lora_weights,
        )
        for path, layer in targets.items()
    }
    biases = _trained_biases(model, config, targets)
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
    say_what_unties(model, inside)
    return {path: copy.deepcopy(module).requires_grad_(True) for path, module in modules.items()}


def _trained_biases(model: nn.Module, config: LoraConfig, targets: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
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
