"""The state of a grafted model: its adapters, and which of them is active."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any, Protocol

from torch import nn

from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.lora.several import JoinedAdapter
from tsugiki.lora.swap import Undo, WeightUpdate
from tsugiki.model.training_mode import SavedDropout
from tsugiki.model.wrappers import unwrapped

STATE_ATTRIBUTE = "_tsugiki"
"""The attribute of a grafted model that holds its `Graft`."""


class Adapter(Protocol):
    """The trained parts of one adapter, and how they are put into a model."""

    config: Any

    @property
    def wrapped(self) -> Collection[str]:
        """The names of the layers that stay wrapped as long as the model holds this adapter."""

    def attach(self, model: nn.Module, undo: list[Undo]) -> None:
        """Put the adapter into the model, in which no other is active.

        Before each change, the function that reverts it is appended to `undo`, so that an error half way can be undone.
        """

    def weight_updates(self, model: nn.Module) -> dict[str, WeightUpdate]:
        """Return the updates of base weights that merge the adapter, by the weights' names before any graft.

        Names that share one parameter, before and after the merge, have the same update (the same object).

        Args:
            model: the base with no adapter active, or a model of its shape; the values of its weights are not used.

        Raises:
            TsugikiError: the adapter cannot be merged.
        """


class MixedRows(Protocol):
    """Computes each row of a batch with its own adapter (see `lora.mixed_batch`)."""

    def attach(self, undo: list[Undo]) -> None:
        """Let the layers of a model in which no adapter is active compute the rows, as `Adapter.attach` does."""


@dataclass
class Graft:
    """The adapters of one model, and the state that is needed to remove them."""

    adapters: dict[str, Any] = field(default_factory=dict)
    """The adapters by name."""
    active: str | None = None
    """The name of the adapter that is active or merged; None while the base alone or a mixed batch computes."""
    attached: list[Undo] = field(default_factory=list)
    """Functions that remove the adapter or the mixed batch that is attached to the model now."""
    merged: list[Undo] | None = None
    """Functions that restore the base's weights; None while nothing is merged."""
    joined: JoinedAdapter | None = None
    """The sum of several adapters that are active together; `active` has their names with plus signs."""
    joined_names: Sequence[str] = ()
    """The names that the latest `set_adapter` got."""
    mixed_rows: MixedRows | None = None
    """The innermost `mixed_batch`; not attached to the model while `attached` is empty."""
    in_order: set[str] = field(default_factory=set)
    """Names of layers that are known to get the rows in the order of the batch (see `lora.mixed_batch`)."""
    thread: int | None = None
    """The thread that is in a block of `disable_adapter` or `mixed_batch`; no other thread may switch adapters."""
    required_grad: dict[str, bool] = field(default_factory=dict)
    """`requires_grad` of the base's parameters before grafting, by all of their names."""
    base_dropout: bool = False
    """Whether the base keeps its dropout."""
    saved_dropout: SavedDropout = field(default_factory=list)
    """The dropout probabilities of the base before they were set to 0."""
    replaced_head: list[Undo] = field(default_factory=list)
    """Functions that restore the `forward` of the output head; empty if it was not replaced."""
    saving: list[str] = field(default_factory=list)
    """Names of the attributes that were set on the model so that it saves and loads its adapter."""


def find_state(model: nn.Module) -> Graft | None:
    """Return the model's `Graft`; None if the model is not grafted."""
    return getattr(unwrapped(model), STATE_ATTRIBUTE, None)


def require_state(model: nn.Module) -> Graft:
    """Return the model's `Graft`.

    Raises:
        TsugikiError: the model is not grafted.
    """
    state = find_state(model)
    if state is None:
        raise TsugikiError(_("nothing is grafted on this model; call graft(model, config) or load_adapter first"))
    return state


def is_grafted(model: nn.Module) -> bool:
    """Return whether the model holds an adapter."""
    return find_state(model) is not None


def is_merged(model: nn.Module) -> bool:
    """Return whether an adapter is merged into the model's weights."""
    state = find_state(model)
    return state is not None and state.merged is not None


def active_name(model: nn.Module) -> str | None:
    """Return the name of the active adapter; None if none is active."""
    state = find_state(model)
    return None if state is None else state.active


def active_names(model: nn.Module) -> list[str]:
    """Return the names of the active adapters, for `set_adapter`."""
    state = find_state(model)
    if state is None or state.active is None:
        return []
    return [state.active] if state.joined is None else list(state.joined_names)


def active_adapter(model: nn.Module) -> Any:
    """Return the active adapter, an object of its method's class.

    Raises:
        TsugikiError: no adapter is active.
    """
    state = require_state(model)
    if state.active is None:
        raise TsugikiError(_("no adapter is active; set_adapter(model, name) activates one"))
    return state.joined if state.joined is not None else state.adapters[state.active]


def find_adapter(model: nn.Module, name: str) -> Any:
    """Return the adapter called `name`, an object of its method's class.

    Raises:
        TsugikiError: the model has no such adapter; the message names those that it has.
    """
    adapters = require_state(model).adapters
    if name not in adapters:
        raise TsugikiError(
            _("no adapter is called {name!r}; this model holds {adapters}").format(
                name=name, adapters=", ".join(map(repr, adapters))
            )
        )
    return adapters[name]


def check_not_merged(state: Graft) -> None:
    """Raise a TsugikiError if an adapter is merged into the base."""
    if state.merged is not None:
        raise TsugikiError(
            _("adapter {active!r} is merged into the base; call unmerge(model) first").format(active=state.active)
        )


def check_thread(state: Graft) -> None:
    """Raise a TsugikiError if another thread is in a block of `disable_adapter` or `mixed_batch`."""
    if state.thread not in (None, get_ident()):
        raise TsugikiError(
            _(
                "another thread is in a `disable_adapter` or `mixed_batch` block of this model; wait until it has "
                "left the block (threading.Lock), or give each thread a copy of the model"
            )
        )


def check_can_switch(state: Graft) -> None:
    """Raise a TsugikiError if adapters must not be added, removed or activated now."""
    check_not_merged(state)
    check_thread(state)
    if state.mixed_rows is not None:
        raise TsugikiError(_("a mixed batch is active, which gives each row its adapter; leave its `with` block first"))
