"""Grafting: adapters put into a model in place, switched, taken out again.

The model stays the class that it was. What an adapter brings belongs to the adapter; activating it puts that into the
model, and the base's own parameters are never edited. For LoRA, each target `layer` becomes `LoraLinear(layer)`,
`LoraEmbedding(layer)` or `LoraConv2d(layer)` (see `lora.adapter`); the other methods are in `tsugiki.methods`.

    graft(model, LoraConfig(r=8, lora_alpha=32))     # one trainable adapter called "default"
    with disable_adapter(model): ...                  # the base, to the last bit
    ungraft(model)                                    # plain layers again
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from tsugiki.errors import TsugikiError
from tsugiki.lora.batchnorm import freeze_batchnorm, unfreeze_batchnorm
from tsugiki.lora.dropout import SavedDropout, disable_dropout, restore_dropout
from tsugiki.lora.layer import grafted_layers
from tsugiki.lora.swap import Undo, WeightUpdate, replace_module

DEFAULT_NAME = "default"
BASE_ROW = "__base__"
"""In `mixed_batch`, as in PEFT's mixed batches, a row that no adapter has a part in; so no adapter is called that."""
_ATTRIBUTE = "_tsugiki"


class Adapter(Protocol):
    """What one adapter brings, and how it takes its place in a model."""

    config: Any

    @property
    def wrapped(self) -> Collection[str]:
        """Names of the layers that are grafted, as long as the model holds this adapter."""

    def attach(self, model: nn.Module) -> list[Undo]:
        """Put it into the model, whose other adapters rest; returns what takes it out, the last first."""

    def merge(self, model: nn.Module) -> list[Undo]:
        """Fold it, which is attached, into weights of the base; returns what unfolds it.

        Raises:
            TsugikiError: it cannot be; the model is then as it was.
        """

    def changes(self, model: nn.Module) -> dict[str, WeightUpdate]:
        """What `merge` makes of the base's parameters, by name before any graft, for weights that are elsewhere.

        Parameters that are one and stay one have the same change.

        Args:
            model: the base, or what has its shape; its values are not looked at.

        Raises:
            TsugikiError: it cannot be merged.
        """


class Rows(Protocol):
    """What computes while each row of a batch has an adapter of its own (see `lora.mixed_batch`)."""

    def attach(self) -> list[Undo]:
        """Put it into the model, whose adapters all rest; returns what takes it out."""


class Config(Protocol):
    """The settings of an adapter."""

    def new_adapter(self, model: nn.Module) -> Adapter:
        """A fresh adapter for this model, in which no other is active, and which stays as it is.

        Raises:
            TsugikiError: it does not fit the model.
        """


@dataclass
class Graft:
    """The adapters of one model, which of them is active, and how to bring the base back."""

    adapters: dict[str, Any] = field(default_factory=dict)
    active: str | None = None
    attached: list[Undo] = field(default_factory=list)
    merged: list[Undo] | None = None
    """None while nothing is merged."""
    rows: Rows | None = None
    """Within `mixed_batch`; it rests while nothing is attached."""
    required_grad: dict[str, bool] = field(default_factory=dict)
    silenced: SavedDropout = field(default_factory=list)


def graft(model: nn.Module, config: Config, name: str = DEFAULT_NAME, *, base_dropout: bool = False) -> Any:
    """Add an adapter to `model` in place, make it the active one, and freeze everything else.

    That includes running statistics (BatchNorm's): they are used, in training too, and not moved.

    Args:
        model: any module; what of it can be grafted, the method says.
        config: what to graft; `LoraConfig`, or that of another method.
        name: a model can hold several adapters, one of them active.
        base_dropout: leave dropout inside the frozen base as it is. It is off by default: frozen
            weights gain nothing from it.

    Returns:
        The adapter, of its method's own class.

    Raises:
        TsugikiError: it does not fit the model, the name is taken, an adapter is merged, or a mixed batch is on.
    """
    with base_alone(model):
        adapter = config.new_adapter(model)
    add_adapter(model, adapter, name, base_dropout=base_dropout)
    return adapter


def add_adapter(model: nn.Module, adapter: Adapter, name: str, *, base_dropout: bool = False) -> None:
    """What `graft` does, with an adapter that was made for this model already.

    Raises:
        TsugikiError: the name is taken or that of the base, an adapter is merged, or a mixed batch is on.
    """
    state = _state(model) or Graft()
    _refuse_while_held(state)
    if name == BASE_ROW:
        raise TsugikiError(f"{name!r} is what rows of a mixed batch call the base; choose another name")
    if name in state.adapters:
        raise TsugikiError(f"the model already holds an adapter called {name!r}; choose another name")
    if not state.adapters:
        state.required_grad = {path: p.requires_grad for path, p in model.named_parameters()}
        model.requires_grad_(False)
        if not base_dropout:
            state.silenced = disable_dropout(model)
        freeze_batchnorm(model)
        setattr(model, _ATTRIBUTE, state)
        if hasattr(model, "save_pretrained"):
            model.save_pretrained = _refuse_to_save  # type: ignore[assignment]
    state.adapters[name] = adapter
    set_adapter(model, name)


def ungraft(model: nn.Module) -> nn.Module:
    """Take every adapter out and return the model with plain layers.

    After `merge` the merged weights stay (as PEFT's `merge_and_unload`); otherwise the base is what it was,
    the same tensors (as PEFT's `unload`).
    """
    state = require_state(model)
    if state.merged is None:
        deactivate(state)
    for path, module in grafted_layers(model).items():
        replace_module(model, path, module.base_layer)
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(state.required_grad.get(path, True))
    restore_dropout(state.silenced)
    unfreeze_batchnorm(model)
    delattr(model, _ATTRIBUTE)
    model.__dict__.pop("save_pretrained", None)
    return model


def remove_adapter(model: nn.Module, name: str) -> None:
    """Take one adapter out. With the last one the layers become plain again.

    Raises:
        TsugikiError: no such adapter, one is merged, or a mixed batch is on.
    """
    state = require_state(model)
    _refuse_while_held(state)
    find_adapter(model, name)
    if len(state.adapters) == 1:
        ungraft(model)
        return
    if state.active == name:
        deactivate(state)
    del state.adapters[name]
    still = {path for adapter in state.adapters.values() for path in adapter.wrapped}
    for path, module in grafted_layers(model).items():
        if path not in still:
            replace_module(model, path, module.base_layer)


def set_adapter(model: nn.Module, name: str) -> None:
    """Make `name` the active adapter: it computes and trains, the others rest.

    Raises:
        TsugikiError: no such adapter, one is merged, or a mixed batch is on.
    """
    state = require_state(model)
    _refuse_while_held(state)
    adapter = find_adapter(model, name)
    if state.active == name:
        return
    deactivate(state)
    state.attached = adapter.attach(model)
    state.active = name


@contextmanager
def disable_adapter(model: nn.Module) -> Iterator[None]:
    """Within the `with` block the model is its base, to the last bit.

    Raises:
        TsugikiError: the adapter is merged into the base; `unmerge` first.
    """
    state = require_state(model)
    _refuse_while_merged(state)
    active, rows = state.active, state.rows if state.attached else None
    deactivate(state)
    try:
        yield
    finally:
        if rows is not None:
            state.attached = rows.attach()
        elif active is not None and _state(model) is state:  # nobody has taken all adapters out
            set_adapter(model, active)


@contextmanager
def base_alone(model: nn.Module) -> Iterator[None]:
    """`disable_adapter`, of a model on which something may be grafted: what a new adapter is to be made from.

    Raises:
        TsugikiError: an adapter is merged into the base.
    """
    if not is_grafted(model):
        yield
        return
    with disable_adapter(model):
        yield


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name in the model as it stands; `sum(p.numel() ...)` counts them."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def is_grafted(model: nn.Module) -> bool:
    """Whether the model holds an adapter."""
    return _state(model) is not None


def is_merged(model: nn.Module) -> bool:
    """Whether an adapter is folded into the model's weights."""
    state = _state(model)
    return state is not None and state.merged is not None


def active_adapter(model: nn.Module) -> Any:
    """The adapter that computes now, of its method's own class.

    Raises:
        TsugikiError: none is active.
    """
    state = require_state(model)
    if state.active is None:
        raise TsugikiError("no adapter is active; set_adapter(model, name) activates one")
    return state.adapters[state.active]


def find_adapter(model: nn.Module, name: str) -> Any:
    """The adapter called `name`, of its method's own class.

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


def _state(model: nn.Module) -> Graft | None:
    return getattr(model, _ATTRIBUTE, None)


def _refuse_while_merged(state: Graft) -> None:
    if state.merged is not None:
        raise TsugikiError(f"adapter {state.active!r} is merged into the base; unmerge(model) comes first")


def _refuse_while_held(state: Graft) -> None:
    """Which adapters there are, and which is active, stays while something was made of them."""
    _refuse_while_merged(state)
    if state.rows is not None:
        raise TsugikiError("a mixed batch is on, whose rows have their adapters; leave its `with` block first")


def deactivate(state: Graft) -> None:
    """Leave the base alone in the model."""
    for undo in reversed(state.attached):
        undo()
    state.attached, state.active = [], None


def _refuse_to_save(*_: object, **__: object) -> None:
    raise TsugikiError(
        "save_pretrained would store the grafted layers under names that no loader knows; save_adapter(model, path) "
        "stores the adapter (Trainer: save_strategy='no', or tsugiki's RunTrainer), and "
        "ungraft(merge(model)).save_pretrained(path) the whole model"
    )
