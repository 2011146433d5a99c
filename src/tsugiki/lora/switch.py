"""Switching between the adapters of a grafted model. The active one computes and trains; there may be none."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from traceback import walk_stack
from typing import Any

import torch
from torch import nn

from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.lora.graft_state import (
    Graft,
    check_can_switch,
    check_not_merged,
    check_thread,
    find_adapter,
    find_state,
    is_grafted,
    require_state,
)
from tsugiki.lora.several import join_adapters
from tsugiki.lora.swap import undo_all
from tsugiki.model.wrappers import unwrapped


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
        raise TsugikiError(_("set_adapter got no name; disable_adapter(model) is the base alone"))
    chosen = {adapter_name: find_adapter(model, adapter_name) for adapter_name in names}
    called, before, joined = " + ".join(names), state.active, state.joined
    if before == called:
        return
    with _in_this_thread_only(model, state):
        try:
            state.joined = join_adapters(chosen) if len(names) > 1 else None
            attach_adapter(model, called)
            state.joined_names = names
        except BaseException:
            state.joined = joined
            attach_adapter(model, before)
            raise


@contextmanager
def disable_adapter(model: nn.Module) -> Iterator[None]:
    """Within the `with` block the model is bit-identical to its base.

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
    """Do the same as `disable_adapter`, also for a model that is not grafted; new adapters are built within the block.

    Raises:
        TsugikiError: an adapter is merged into the base, or weights of the base are not in memory.
    """
    _refuse_offloaded(model)
    if not is_grafted(model):
        yield
        return
    with disable_adapter(model):
        yield


def attach_adapter(model: nn.Module, name: str | None) -> None:
    """Detach what is attached to the model, and attach the adapter called `name`; None: attach nothing.

    If attaching fails, nothing is attached.
    """
    state = require_state(model)
    detach_adapter(state)
    state.active = None
    if name is None:
        return
    try:
        (state.joined if state.joined is not None else state.adapters[name]).attach(model, state.attached)
        state.active = name
    except BaseException:
        detach_adapter(state)
        state.active = None
        raise


def detach_adapter(state: Graft) -> None:
    """Detach the active adapter, or the rows of a mixed batch, so that the base alone computes."""
    undo_all(state.attached)


def deactivate(model: nn.Module) -> None:
    """Detach the active adapter; if an error interrupts this, the adapter stays active."""
    state = require_state(model)
    before = state.active
    with _in_this_thread_only(model, state):
        try:
            attach_adapter(model, None)
        except BaseException:
            if before is not None:
                attach_adapter(model, before)
            raise


@contextmanager
def _in_this_thread_only(model: nn.Module, state: Graft) -> Iterator[None]:
    """Within the block, another thread can neither switch the model's adapters nor call the model.

    Raises:
        TsugikiError: another thread is in such a block, or in a forward pass, which would get parts of two adapters.
    """
    check_thread(state)
    outer, state.thread = state.thread, get_ident()
    try:
        model.register_forward_pre_hook(_refuse_other_threads, prepend=True)
        _check_not_computing(model)  # passes that begin from now on meet the hook
        yield
    finally:
        # The hook is found by its function, because an interruption may come before a handle is kept.
        for key in [key for key, hook in model._forward_pre_hooks.items() if hook is _refuse_other_threads][-1:]:
            del model._forward_pre_hooks[key]
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
                    _(
                        "another thread is in a forward pass of this model, which would get parts of two adapters; "
                        "wait until it has ended (threading.Lock), or give each thread a copy of the model"
                    )
                )


def _refuse_offloaded(model: nn.Module) -> None:
    """Raise a TsugikiError if accelerate keeps weights on the disk or elsewhere, and loads them for each call."""
    for path, module in model.named_modules():
        if "_hf_hook" in vars(module) and any(p is not None and p.is_meta for p in module._parameters.values()):
            raise TsugikiError(
                _(
                    "the weights of {path} are not in memory, because accelerate offloads them, so they cannot be "
                    "adapted; load the model without offloading"
                ).format(path=path)
            )
