"""The adapters that a grafted model holds: which of them is active, switching, and several at once.

One adapter is active: it computes and trains, and the others do not. There may be none. The updates of several LoRA
adapters can be added, as in PEFT:

    y = W x + b + Σ s_i · B_i A_i dropout(x)  =  W x + b + [s_1 B_1 | s_2 B_2 | …] [A_1; A_2; …] dropout(x)

The factors are concatenated at each call, so that all of them train and the code for one pair computes the sum. The
adapters keep their parameters, and each is saved under its own name.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import get_ident
from traceback import walk_stack
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tsugiki.errors import TsugikiError
from tsugiki.lora.adapter import LoraAdapter
from tsugiki.lora.experts import JoinedParameterPairs, ParameterPair
from tsugiki.lora.pair import LowRank
from tsugiki.model.freeze import refuse_offloaded
from tsugiki.model.undo import Undo, remove_hook, undo_all
from tsugiki.model.ungrafted import unwrapped
from tsugiki.model.weights import WeightUpdate

STATE_ATTRIBUTE = "_tsugiki"
"""The attribute of a grafted model that holds its `Graft`."""


class Adapter(Protocol):
    """The trained parts of one adapter, and how they are put into a model."""

    config: Any

    def attach(self, model: nn.Module, undo: list[Undo]) -> None:
        """Put the adapter into the model, in which no other is active.

        Before each change, the function that reverts it is appended to `undo`, so that an error half way can be undone.
        """

    def weight_updates(self, model: nn.Module) -> dict[str, WeightUpdate]:
        """Return the updates of base weights that merge the adapter, by the weights' names before any graft.

        Names that share one parameter, before and after the merge, have the same update (the same object). The model is
        the base with no adapter active, or a model of its shape; the values of its weights are not used.
        """


@dataclass
class Graft:
    """The adapters of one model, and the state that is needed to remove them."""

    adapters: dict[str, Any] = field(default_factory=dict)
    """The adapters by name."""
    active: str | None = None
    """The name of the adapter that is active or merged; those of several are joined by plus signs. None while the base
    alone or a mixed batch computes."""
    attached: list[Undo] = field(default_factory=list)
    """Functions that remove the adapter or the mixed batch that is attached to the model now."""
    merged: list[Undo] | None = None
    """Functions that restore the base's weights; None while nothing is merged."""
    joined: LoraAdapter | None = None
    """The sum of several adapters that are active together, whose parameters it shares. It cannot be saved."""
    joined_names: Sequence[str] = ()
    """The names that the latest `set_adapter` got."""
    mixed_rows: Any = None
    """The innermost `mixed_batch` (see `fast.mixed_batch`); not attached to the model while `attached` is empty."""
    in_order: set[str] = field(default_factory=set)
    """Names of layers that are known to get the rows in the order of the batch (see `fast.mixed_batch`)."""
    thread: int | None = None
    """The thread that is in a block of `disable_adapter` or `mixed_batch`; no other thread may switch adapters."""
    base_dropout: bool = False
    """Whether the base keeps its dropout."""
    frozen: list[Undo] = field(default_factory=list)
    """Functions that undo what changes in the base as long as it holds an adapter (see `model.freeze`)."""


def find_state(model: nn.Module) -> Graft | None:
    """Return the model's `Graft`; None if the model is not grafted."""
    return getattr(unwrapped(model), STATE_ATTRIBUTE, None)


def require_state(model: nn.Module) -> Graft:
    """Return the model's `Graft`; a model that is not grafted is an error."""
    state = find_state(model)
    if state is None:
        raise TsugikiError("nothing is grafted on this model; call graft(model, config) or load_adapter first")
    return state


def is_grafted(model: nn.Module) -> bool:
    """Return whether the model holds an adapter."""
    return find_state(model) is not None


def is_merged(model: nn.Module) -> bool:
    """Return whether an adapter is merged into the model's weights."""
    state = find_state(model)
    return state is not None and state.merged is not None


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
        raise TsugikiError("no adapter is active; set_adapter(model, name) activates one")
    return state.joined if state.joined is not None else state.adapters[state.active]


def find_adapter(model: nn.Module, name: str) -> Any:
    """Return the adapter called `name`, an object of its method's class."""
    adapters = require_state(model).adapters
    if name not in adapters:
        raise TsugikiError(
            "no adapter is called {name!r}; this model holds {adapters}",
            name=name,
            adapters=", ".join(map(repr, adapters)),
        )
    return adapters[name]


def check_not_merged(state: Graft) -> None:
    """Raise a TsugikiError if an adapter is merged into the base."""
    if state.merged is not None:
        raise TsugikiError("adapter {active!r} is merged into the base; call unmerge(model) first", active=state.active)


def check_thread(state: Graft) -> None:
    """Raise a TsugikiError if another thread is in a block of `disable_adapter` or `mixed_batch`."""
    if state.thread not in (None, get_ident()):
        raise TsugikiError(
            "another thread is in a `disable_adapter` or `mixed_batch` block of this model; wait until it has "
            "left the block (threading.Lock), or give each thread a copy of the model"
        )


def check_can_switch(state: Graft) -> None:
    """Raise a TsugikiError if adapters must not be added, removed or activated now."""
    check_not_merged(state)
    check_thread(state)
    if state.mixed_rows is not None:
        raise TsugikiError("a mixed batch is active, which gives each row its adapter; leave its `with` block first")


def set_adapter(model: nn.Module, name: str | Sequence[str]) -> None:
    """Make `name` the active adapter: it computes and trains, the others do not.

    If that fails, for example because memory runs out, the adapter that was active before stays active.

    Args:
        model: a grafted model.
        name: the adapter's name. If several LoRA adapters are named, their updates are added, and all of them train.

    Raises:
        TsugikiError: there is no such adapter, an adapter is merged, the call is inside a `mixed_batch` block, the
            updates of the adapters cannot be added, or another thread computes with the model.
    """
    model = unwrapped(model)
    state = require_state(model)
    check_can_switch(state)
    names = [name] if isinstance(name, str) else list(dict.fromkeys(name))
    if not names:
        raise TsugikiError("set_adapter got no name; disable_adapter(model) is the base alone")
    chosen = {adapter_name: find_adapter(model, adapter_name) for adapter_name in names}
    called = " + ".join(names)
    if called != state.active:
        switch(model, called, join_adapters(chosen) if len(names) > 1 else None)
        state.joined_names = names


@contextmanager
def disable_adapter(model: nn.Module) -> Iterator[None]:
    """Within the `with` block the model is its base; grafted layers compute bit-identically to what they were.

    Which adapter computes is a property of the model, not of a thread. So while a thread is in such a block, or in one
    of `mixed_batch`, no other thread can enter one, switch the model's adapters or call the model.

    Raises:
        TsugikiError: an adapter is merged into the base (`unmerge` first), or another thread is in such a block or in a
            forward pass of the model. Within the block: another thread calls the model.
    """
    model = unwrapped(model)
    state = require_state(model)
    check_not_merged(state)
    active, rows = state.active, state.mixed_rows if state.attached else None
    with _in_this_thread_only(model, state):
        try:
            attach_adapter(model, None)
            yield
        finally:
            if rows is not None:
                rows.attach(state.attached)
            elif (active in state.adapters or state.joined) and find_state(model) is state:  # it was not ungrafted
                attach_adapter(model, active)


@contextmanager
def base_alone(model: nn.Module) -> Iterator[None]:
    """Do the same as `disable_adapter`, also for a model that is not grafted; new adapters are built in the block."""
    refuse_offloaded(model)
    with disable_adapter(model) if is_grafted(model) else nullcontext():
        yield


def attach_adapter(model: nn.Module, name: str | None) -> None:
    """Detach what is attached to the model, and attach the adapter called `name`; None: attach nothing.

    If attaching fails, nothing is attached.
    """
    state = require_state(model)
    undo_all(state.attached)
    state.active = None
    if name is None:
        return
    try:
        (state.joined or state.adapters[name]).attach(model, state.attached)
        state.active = name
    except BaseException:
        undo_all(state.attached)
        raise


def switch(model: nn.Module, name: str | None, joined: LoraAdapter | None = None) -> None:
    """Do the same as `attach_adapter`; if an error interrupts this, the adapter that was active before stays active."""
    state = require_state(model)
    before, joined_before = state.active, state.joined
    with _in_this_thread_only(model, state):
        try:
            state.joined = joined
            attach_adapter(model, name)
        except BaseException:
            state.joined = joined_before
            attach_adapter(model, before)
            raise


@contextmanager
def _in_this_thread_only(model: nn.Module, state: Graft) -> Iterator[None]:
    """Within the block, another thread can neither switch the model's adapters nor call the model.

    If another thread is in a forward pass already, that is an error, because it would get parts of two adapters.
    """
    check_thread(state)
    outer, state.thread = state.thread, get_ident()
    try:
        model.register_forward_pre_hook(_refuse_other_threads, prepend=True)
        _check_not_computing(model)  # passes that begin from now on meet the hook
        yield
    finally:
        remove_hook(model, _refuse_other_threads)
        state.thread = outer


def _refuse_other_threads(model: nn.Module, args: Any) -> None:
    state = find_state(model)
    if state is not None and not torch.compiler.is_compiling():
        check_thread(state)


def _check_not_computing(model: nn.Module) -> None:
    """Raise a TsugikiError if another thread is in a forward pass of the model.

    Hooks that count the passes would have to stay on the model, where compilers and other libraries meet them. So the
    calls of the other threads are looked through.
    """
    for thread, innermost in sys._current_frames().items():
        for frame, _line in walk_stack(innermost) if thread != get_ident() else ():
            if frame.f_code is nn.Module._call_impl.__code__ and frame.f_locals.get("self") is model:
                raise TsugikiError(
                    "another thread is in a forward pass of this model, which would get parts of two adapters; "
                    "wait until it has ended (threading.Lock), or give each thread a copy of the model"
                )


class JoinedPairs(LowRank):
    """The pairs that several adapters have for one layer."""

    def __init__(self, pairs: list[LowRank]) -> None:
        nn.Module.__init__(self)
        self.pairs = nn.ModuleList(pairs)
        self.A, self.B = pairs[0].A, pairs[0].B  # `activate_factors` reads the device from A
        self.scaling, self.dropout = 1.0, pairs[0].dropout
        for name in ("magnitude", "norms", "A0", "B0", "bias"):
            self.register_parameter(name, None)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the factors of the sum, A [Σ r, in] and B [out, Σ r]; B is multiplied by the scalings."""
        factors = [(*pair.factors(), pair.scaling) for pair in self.pairs if isinstance(pair, LowRank)]
        return torch.cat([A for A, _, _ in factors]), torch.cat([scaling * B for _, B, scaling in factors], 1)


def join_adapters(adapters: Mapping[str, object]) -> LoraAdapter:
    """Return the sum of LoRA adapters of one model, by their names."""
    pairs: dict[str, list[LowRank]] = {}
    parameter_pairs: dict[str, list[ParameterPair]] = {}
    joined: list[LoraAdapter] = []
    for name, adapter in adapters.items():
        if not isinstance(adapter, LoraAdapter):
            kind = type(adapter.config).__name__  # type: ignore[attr-defined]
            raise TsugikiError(
                "{name!r} is not a LoRA adapter ({kind}), so it cannot be active together with others",
                name=name,
                kind=kind,
            )
        joined.append(adapter)
        for path, pair in adapter.pairs.items():
            pairs.setdefault(path, []).append(pair)
        for path, parameter_pair in adapter.parameter_pairs.items():
            parameter_pairs.setdefault(path, []).append(parameter_pair)
    others = [path for part in joined for path in (*part.modules, *part.parameters, *part.tokens)]
    twice = next((path for path in others if others.count(path) > 1), None)
    if twice is not None:
        raise TsugikiError(
            "several of {adapters} replace {path}; only one of them can be active",
            adapters=", ".join(adapters),
            path=twice,
        )
    for path, found in pairs.items():
        if len(found) > 1 and any(pair.magnitude is not None or pair.bias is not None for pair in found):
            raise TsugikiError(
                "{path} has DoRA or lora_bias, whose updates cannot be added; activate one adapter", path=path
            )
        if len({pair.dropout.p for pair in found}) > 1 or (len(found) > 1 and found[0].A.dim() != 2):
            raise TsugikiError(
                "the adapters have different dropout for {path}, or it is a convolution, so their updates "
                "cannot be computed at once; activate one adapter",
                path=path,
            )
    return LoraAdapter(
        joined[0].config,
        {path: found[0] if len(found) == 1 else JoinedPairs(found) for path, found in pairs.items()},
        {path: part.modules[path] for part in joined for path in part.modules},
        {path: part.parameters[path] for part in joined for path in part.parameters},
        {path: own[0] if len(own) == 1 else JoinedParameterPairs(own) for path, own in parameter_pairs.items()},
        {path: part.tokens[path] for part in joined for path in part.tokens},
    )
