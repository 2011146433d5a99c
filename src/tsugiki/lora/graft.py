"""Grafting: adapters put into a model in place, switched, taken out again.

The model stays the class that it was. Each target `layer` becomes `LoraLinear(layer)` or
`LoraEmbedding(layer)`; what an adapter brings (pairs, modules trained whole, trained biases) belongs to the
adapter, and activating it sets those into the model. The base's own parameters are never edited: a trained
bias or module is a copy that stands in its place for as long as the adapter is active.

    graft(model, LoraConfig(r=8, lora_alpha=32))     # one trainable adapter called "default"
    with disable_adapter(model): ...                  # the base, to the last bit
    ungraft(model)                                    # plain layers again
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from tsugiki.errors import TsugikiError
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.dropout import Silenced, restore_dropout, silence_dropout
from tsugiki.lora.layer import Grafted, LoraEmbedding, LoraLinear, LowRank, new_pair, wrap
from tsugiki.lora.targets import base_modules, find_modules_to_save, find_targets

DEFAULT_NAME = "default"
_ATTRIBUTE = "_tsugiki"


@dataclass
class Adapter:
    """What one adapter brings. Names are those of the model before any graft."""

    config: LoraConfig
    pairs: dict[str, LowRank]
    modules: dict[str, nn.Module]
    biases: dict[str, nn.Parameter]


@dataclass
class Graft:
    """The adapters of one model, which of them is active, and how to bring the base back."""

    adapters: dict[str, Adapter] = field(default_factory=dict)
    active: str | None = None
    merged: dict[str, nn.Parameter] = field(default_factory=dict)
    """Weights as they were before `merge`, by layer; empty while nothing is merged."""
    base_modules: dict[str, nn.Module] = field(default_factory=dict)
    """The base's modules whose place the active adapter's trained copies have taken."""
    base_biases: dict[str, nn.Parameter] = field(default_factory=dict)
    required_grad: dict[str, bool] = field(default_factory=dict)
    silenced: Silenced = field(default_factory=list)
    tied: bool | None = None
    """`config.tie_word_embeddings` before a merge untied it."""


def graft(model: nn.Module, config: LoraConfig, name: str = DEFAULT_NAME, *, base_dropout: bool = False) -> Adapter:
    """Add an adapter to `model` in place, make it the active one, and freeze everything else.

    Args:
        model: any module that holds `nn.Linear`, `nn.Embedding` or transformers' `Conv1D` layers.
        config: what to graft; see `LoraConfig`.
        name: a model can hold several adapters, one of them active.
        base_dropout: leave dropout inside the frozen base as it is. It is off by default: frozen
            weights gain nothing from it.

    Raises:
        TsugikiError: the targets match nothing, the name is taken, or an adapter is merged.
    """
    targets = find_targets(model, config)
    modules = find_modules_to_save(model, config)
    state = _state(model) or Graft()
    _refuse_while_merged(state)
    if name in state.adapters:
        raise TsugikiError(f"the model already holds an adapter called {name!r}; choose another name")

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
    for path in modules:
        if any(inner.startswith(f"{path}.") for inner in grafted_layers(model)):
            raise TsugikiError(f"modules_to_save names {path}, inside which another adapter has grafted layers")
    copies = {path: copy.deepcopy(module).requires_grad_(True) for path, module in modules.items()}
    biases = {
        path: nn.Parameter(bias.detach().clone()) for path, bias in _trained_biases(model, config, targets).items()
    }
    _say_what_unties(model, modules)

    if not state.adapters:
        state.required_grad = {path: p.requires_grad for path, p in model.named_parameters()}
        model.requires_grad_(False)
        if not base_dropout:
            state.silenced = silence_dropout(model)
        setattr(model, _ATTRIBUTE, state)
        if hasattr(model, "save_pretrained"):
            model.save_pretrained = _refuse_to_save  # type: ignore[assignment]
    for path in targets:
        if not isinstance(_get(model, path), LoraLinear | LoraEmbedding):
            _set(model, path, wrap(_get(model, path)))
    state.adapters[name] = adapter = Adapter(config, pairs, copies, biases)
    set_adapter(model, name)
    return adapter


def ungraft(model: nn.Module) -> nn.Module:
    """Take every adapter out and return the model with plain layers.

    After `merge` the merged weights stay (as PEFT's `merge_and_unload`); otherwise the base is what it was,
    the same tensors (as PEFT's `unload`).
    """
    state = require_state(model)
    if not state.merged:
        _deactivate(model, state)
    for path, module in grafted_layers(model).items():
        _set(model, path, module.base_layer)
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(state.required_grad.get(path, True))
    restore_dropout(state.silenced)
    delattr(model, _ATTRIBUTE)
    model.__dict__.pop("save_pretrained", None)
    return model


def remove_adapter(model: nn.Module, name: str) -> None:
    """Take one adapter out. With the last one the layers become plain again."""
    state = require_state(model)
    _refuse_while_merged(state)
    find_adapter(model, name)
    if len(state.adapters) == 1:
        ungraft(model)
        return
    if state.active == name:
        _deactivate(model, state)
    del state.adapters[name]
    for path, module in grafted_layers(model).items():
        if not any(path in adapter.pairs for adapter in state.adapters.values()):
            _set(model, path, module.base_layer)


def set_adapter(model: nn.Module, name: str) -> None:
    """Make `name` the active adapter: it computes and trains, the others rest.

    Raises:
        TsugikiError: no such adapter, or one is merged.
    """
    state = require_state(model)
    _refuse_while_merged(state)
    adapter = find_adapter(model, name)
    if state.active == name:
        return
    _deactivate(model, state)
    for path, pair in adapter.pairs.items():
        layer = _get(model, path)
        assert isinstance(layer, LoraLinear | LoraEmbedding)
        layer.lora = pair.to(layer.weight.device).train(layer.training)
    for path, module in adapter.modules.items():
        state.base_modules[path] = current = _get(model, path)
        _set(model, path, module.train(current.training))
    for path, bias in adapter.biases.items():
        owner, attribute = _bias_owner(model, path)
        state.base_biases[path] = owner._parameters[attribute]  # type: ignore[assignment]
        owner._parameters[attribute] = bias
    state.active = name


@contextmanager
def disable_adapter(model: nn.Module) -> Iterator[None]:
    """Within the `with` block the model is its base, to the last bit.

    Raises:
        TsugikiError: the adapter is merged into the base; `unmerge` first.
    """
    state = require_state(model)
    _refuse_while_merged(state)
    active = state.active
    _deactivate(model, state)
    try:
        yield
    finally:
        if active is not None:
            set_adapter(model, active)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name in the model as it stands; `sum(p.numel() ...)` counts them."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def is_grafted(model: nn.Module) -> bool:
    """Whether the model holds an adapter."""
    return _state(model) is not None


def active_adapter(model: nn.Module) -> Adapter:
    """The adapter that computes now.

    Raises:
        TsugikiError: none is active.
    """
    state = require_state(model)
    if state.active is None:
        raise TsugikiError("no adapter is active; set_adapter(model, name) activates one")
    return state.adapters[state.active]


def find_adapter(model: nn.Module, name: str) -> Adapter:
    """The adapter called `name`.

    Raises:
        TsugikiError: there is none; the message names those that there are.
    """
    adapters = require_state(model).adapters
    if name not in adapters:
        raise TsugikiError(f"no adapter is called {name!r}; this model holds {', '.join(map(repr, adapters))}")
    return adapters[name]


def require_state(model: nn.Module) -> Graft:
    """The model's graft record.

    Raises:
        TsugikiError: nothing is grafted on it.
    """
    state = _state(model)
    if state is None:
        raise TsugikiError("nothing is grafted on this model; graft(model, config) or load_adapter comes first")
    return state


def grafted_layers(model: nn.Module) -> dict[str, Grafted]:
    """The grafted layers of the model by name, active or not."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLinear | LoraEmbedding)}


def _state(model: nn.Module) -> Graft | None:
    return getattr(model, _ATTRIBUTE, None)


def _refuse_while_merged(state: Graft) -> None:
    if state.merged:
        raise TsugikiError(f"adapter {state.active!r} is merged into the base; unmerge(model) comes first")


def _deactivate(model: nn.Module, state: Graft) -> None:
    """Leave the base alone in the model."""
    for layer in grafted_layers(model).values():
        layer.lora = None
    for path, module in state.base_modules.items():
        _set(model, path, module.train(_get(model, path).training))
    for path, bias in state.base_biases.items():
        owner, attribute = _bias_owner(model, path)
        owner._parameters[attribute] = bias
    state.base_modules, state.base_biases, state.active = {}, {}, None


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


def _say_what_unties(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    """A module trained on a copy no longer shares its weight; that is never done in silence."""
    shared = _names_by_parameter(model)
    for path, module in modules.items():
        inside = {f"{path}.{name}" for name, _ in module.named_parameters()}
        for parameter in module.parameters():
            others = [name for name in shared[id(parameter)] if name not in inside]
            if others:
                warnings.warn(
                    f"{path} shares its weight with {others[0]}; the adapter trains a copy for {path}, "
                    f"and {others[0]} keeps the base's",
                    stacklevel=3,
                )


def _names_by_parameter(model: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name.replace(".base_layer.", "."))
    return names


def _refuse_to_save(*_: object, **__: object) -> None:
    raise TsugikiError(
        "save_pretrained would store the grafted layers under names that no loader knows; save_adapter(model, path) "
        "stores the adapter (Trainer: save_strategy='no', or tsugiki's RunTrainer), and "
        "ungraft(merge(model)).save_pretrained(path) the whole model"
    )


def _get(model: nn.Module, path: str) -> nn.Module:
    return model.get_submodule(path)


def _set(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    model.get_submodule(parent).register_module(child, module)


def _bias_owner(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module, below any graft, whose parameter `path` names, and the parameter's name in it."""
    owner_path, _, attribute = path.rpartition(".")
    owner = _get(model, owner_path)
    return (owner.base_layer if isinstance(owner, LoraLinear | LoraEmbedding) else owner), attribute
