"""Grafting: adapters are put into a model in place, switched, and taken out again.

    graft(model, LoraConfig(r=8, lora_alpha=32))     # one trainable adapter called "default"
    active_adapter(model)                             # its pairs, by the names of their layers
    with disable_adapter(model): ...                  # bit-identical to the base
    ungraft(model)                                    # plain layers again

Functions that take a grafted model also take one that is wrapped, as by `torch.compile` (see `lora.wrappers`).

The model keeps its class. The trained parts belong to the adapter: while it is active they are in the model, and the
base's own parameters never change. A LoRA adapter wraps each target `layer` as `LoraLinear(layer)`,
`LoraEmbedding(layer)` or `LoraConv2d(layer)` (see `lora.adapter`); the other methods are in `tsugiki.methods`.

This is all that grafting changes in a model; `ungraft` undoes each of them:

- the model gets the attribute `_tsugiki` (a `Graft`); `resize_token_embeddings` and `nn.DataParallel` raise an error
  (this module);
- `save_pretrained` and `load_state_dict` of a transformers model save and load the active adapter
  (`adapters.pretrained`);
- every parameter of the base gets `requires_grad=False` (this module);
- the output head, if it is an `nn.Linear`, gets a `forward` that computes the same faster (`linear_of_matrix`);
- dropout probabilities are set to 0, unless `base_dropout` is set (`lora.dropout`);
- BatchNorm modules get a `train` that keeps them in evaluation mode (`lora.batchnorm`);
- target layers are wrapped, with the layer as the child `base_layer` and the active pair as `lora` (`lora.layer`);
- modules whose parameters have pairs (`target_parameters`) get a child `tsugiki` and another `forward`
  (`lora.parameters`);
- modules and parameters that train on a copy are replaced by it; a module that holds a 32-bit copy of a 16-bit
  parameter gets another `forward` (`lora.swap`);
- modules get a child `tsugiki` and hooks that call it (`methods.hooks`, `methods.soft_prompt`); a decoder with a soft
  prompt has its length in the attribute `tsugiki_prompt_tokens`;
- within `mixed_batch`, grafted layers get another `forward` (`lora.mixed_batch`).

Merged weights stay in the model: `ungraft(merge(model))` is the base with the adapter in its weights, and has the
attribute `_tsugiki_changed_weights`, because its files no longer tell what it is (`base.identity`). Fast paths are
independent of grafting: `use_fast_paths` lists what it changes, and `use_plain_paths` undoes it.
"""

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import get_ident
from typing import Any, NoReturn, Protocol, TypeVar

import torch
from torch import nn

from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.lora.adapter import new_lora_adapter
from tsugiki.lora.batchnorm import freeze_batchnorm, unfreeze_batchnorm
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.dropout import SavedDropout, disable_dropout, restore_dropout
from tsugiki.lora.frozen_layer import CHANGED_WEIGHTS, linear_of_matrix
from tsugiki.lora.layer import Grafted, base_of
from tsugiki.lora.peft_config import PeftConfig, config_of_peft
from tsugiki.lora.several import JoinedAdapter, join_adapters
from tsugiki.lora.swap import Undo, WeightUpdate, replace_forward, replace_module, undo_all
from tsugiki.lora.targets import output_head
from tsugiki.lora.wrappers import unwrapped, unwrapped_to_graft

DEFAULT_NAME = "default"
BASE_ROW = "__base__"
"""Selects the base (no adapter) for a row of `mixed_batch`, as in PEFT. Reserved: no adapter can have this name."""
_ATTRIBUTE = "_tsugiki"

Model = TypeVar("Model", bound=nn.Module)


class Adapter(Protocol):
    """The trained parts of one adapter, and how they are put into a model."""

    config: Any

    @property
    def wrapped(self) -> Collection[str]:
        """The names of the layers that stay wrapped as long as the model holds this adapter."""

    def attach(self, model: nn.Module, undo: list[Undo]) -> None:
        """Put the adapter into the model, in which no other is active.

        What takes it out again is appended to `undo`, before each change, so that an error half way can be undone.
        """

    def weight_updates(self, model: nn.Module) -> dict[str, WeightUpdate]:
        """Return what merging the adapter does to weights of the base, by their names in the model before any graft.

        Parameters that are one and stay one have the same update (the same object).

        Args:
            model: the base with no adapter active, or a model of its shape; the values of its weights are not used.

        Raises:
            TsugikiError: the adapter cannot be merged.
        """


class MixedRows(Protocol):
    """Computes each row of a batch with its own adapter (see `lora.mixed_batch`)."""

    def attach(self, undo: list[Undo]) -> None:
        """Put it into the model, in which no adapter is active, as `Adapter.attach` does."""


class Config(Protocol):
    """The settings of an adapter."""

    def new_adapter(self, model: nn.Module) -> Adapter:
        """Return a new, untrained adapter for this model, in which no other is active; the model is not changed.

        Raises:
            TsugikiError: the settings do not fit the model.
        """


@dataclass
class Graft:
    """The adapters of one model, and what is needed to take them out."""

    adapters: dict[str, Any] = field(default_factory=dict)
    active: str | None = None
    """The adapter that computes, or that is merged. None: the base alone computes, or a mixed batch."""
    attached: list[Undo] = field(default_factory=list)
    """Takes out what is in the model now."""
    merged: list[Undo] | None = None
    """Restores the base's weights; None while nothing is merged."""
    joined: JoinedAdapter | None = None
    """The sum of several adapters that are active together; `active` has their names with plus signs."""
    joined_names: Sequence[str] = ()
    mixed_rows: MixedRows | None = None
    """The innermost `mixed_batch`; not in the model while `attached` is empty."""
    in_order: set[str] = field(default_factory=set)
    """Layers of which it is known that they get the rows in the order of the batch (see `lora.mixed_batch`)."""
    thread: int | None = None
    """The thread that is in a block of `disable_adapter` or `mixed_batch`; no other may change what computes."""
    required_grad: dict[str, bool] = field(default_factory=dict)
    """`requires_grad` of the base's parameters before grafting, by all of their names."""
    base_dropout: bool = False
    """Whether the base keeps its dropout."""
    saved_dropout: SavedDropout = field(default_factory=list)
    replaced_head: list[Undo] = field(default_factory=list)
    """Restores the `forward` of the output head; empty if it was not replaced."""
    saving: list[str] = field(default_factory=list)
    """The attributes of the model by which it saves and loads its adapter."""


def new_adapter(model: nn.Module, config: LoraConfig | Config | PeftConfig) -> Any:
    """Return a new, untrained adapter with these settings for `model`, in which none is active.

    A `LoraConfig` does not build its adapter itself, so that it can be imported without torch. PEFT's is translated.

    Raises:
        TsugikiError: the settings do not fit the model.
    """
    if isinstance(config, PeftConfig):
        config = config_of_peft(config)
    return new_lora_adapter(model, config) if isinstance(config, LoraConfig) else config.new_adapter(model)


def graft(
    model: Model,
    config: LoraConfig | Config | PeftConfig,
    name: str = DEFAULT_NAME,
    *,
    base_dropout: bool | None = None,
) -> Model:
    """Add a new adapter to `model` in place, make it the active one, and freeze everything else.

    Running statistics (of BatchNorm) are frozen, too: they are used in training, but not updated.

    Args:
        model: any module, but no wrapper around one except that of `torch.compile`.
        config: `LoraConfig`, PEFT's `LoraConfig`, or the config of another method.
        name: of the adapter; a model can hold several, of which one is active.
        base_dropout: keep dropout inside the frozen base. By default it is switched off, since frozen weights gain
            nothing from it. All adapters of a model have the same; None: that of the adapters it holds.

    Returns:
        The same model. `active_adapter(model)` is the new adapter.

    Raises:
        TsugikiError: the settings do not fit the model, the model is wrapped or offloaded, the name is taken, an
            adapter is merged, or the call is inside a `mixed_batch` block. The model is then as before.
    """
    base = unwrapped_to_graft(model)
    with base_alone(base):
        adapter = new_adapter(base, config)
    add_adapter(base, adapter, name, base_dropout=base_dropout)
    warn_of_float16(base)
    return model


def add_adapter(model: nn.Module, adapter: Adapter, name: str, *, base_dropout: bool | None = None) -> None:
    """Add an existing adapter, made for this model, and make it the active one, as `graft` does with a new one.

    Raises:
        TsugikiError: the name is taken or reserved, an adapter is merged, `base_dropout` is not that of the other
            adapters, or the call is inside a `mixed_batch` block.
    """
    model = unwrapped_to_graft(model)
    state = _state(model) or Graft()
    _check_can_switch(state)
    if name == BASE_ROW:
        raise TsugikiError(
            _("the name {name!r} is reserved for the base in mixed batches; choose another name").format(name=name)
        )
    if name in state.adapters:
        raise TsugikiError(
            _("the model already holds an adapter called {name!r}; choose another name").format(name=name)
        )
    if state.adapters and base_dropout not in (None, state.base_dropout):
        raise TsugikiError(
            _(
                "base_dropout is {base_dropout}, but the adapters of this model were grafted with {used}; remove "
                "them first, or leave base_dropout out"
            ).format(base_dropout=base_dropout, used=state.base_dropout)
        )
    try:
        if not state.adapters:
            _freeze(model, state, bool(base_dropout))
        state.adapters[name] = adapter
        set_adapter(model, name)
    except BaseException:
        state.adapters.pop(name, None)
        _unwrap(model, keep=state.adapters.values())
        if not state.adapters and _state(model) is state:
            _unfreeze(model, state)
        raise


def ungraft(model: nn.Module) -> nn.Module:
    """Take every adapter out and return the same model with plain layers.

    After `merge` the merged weights stay (as in PEFT's `merge_and_unload`); otherwise the model is as before grafting,
    with the same tensors (as in PEFT's `unload`).
    """
    model = unwrapped(model)
    state = require_state(model)
    _check_thread(state)
    if state.merged is not None:
        setattr(model, CHANGED_WEIGHTS, True)
    else:
        _deactivate(model)
    _unwrap(model, keep=())
    _unfreeze(model, state)
    return model


def remove_adapter(model: nn.Module, name: str) -> None:
    """Take one adapter out; if it is the last one, `ungraft` the model.

    Raises:
        TsugikiError: there is no such adapter, one is merged, or the call is inside a `mixed_batch` block.
    """
    model = unwrapped(model)
    state = require_state(model)
    _check_can_switch(state)
    find_adapter(model, name)
    if len(state.adapters) == 1:
        ungraft(model)
        return
    if state.active == name or state.joined is not None:
        _deactivate(model)
        state.joined = None
    del state.adapters[name]
    _unwrap(model, keep=state.adapters.values())


def set_adapter(model: nn.Module, name: str | Sequence[str]) -> None:
    """Make `name` the active adapter: it computes and trains, the others do not.

    If that fails, such as for want of memory, the adapter is active that was active before.

    Args:
        model: a grafted model.
        name: the adapter's name. Several names of LoRA adapters: their updates are added, and all of them train.

    Raises:
        TsugikiError: there is no such adapter, one is merged, the call is inside a `mixed_batch` block, or adapters
            cannot be added.
    """
    model = unwrapped(model)
    state = require_state(model)
    _check_can_switch(state)
    names = [name] if isinstance(name, str) else list(dict.fromkeys(name))
    if not names:
        raise TsugikiError(_("set_adapter got no name; disable_adapter(model) is the base alone"))
    chosen = {one: find_adapter(model, one) for one in names}
    called, before, joined = " + ".join(names), state.active, state.joined
    if before == called:
        return
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
    of `mixed_batch`, no other thread can enter one or switch the model's adapters.

    Raises:
        TsugikiError: an adapter is merged into the base (`unmerge` first), or another thread is in such a block.
    """
    model = unwrapped(model)
    state = require_state(model)
    _check_not_merged(state)
    _check_thread(state)
    outer, active, rows = state.thread, state.active, state.mixed_rows if state.attached else None
    try:
        state.thread = get_ident()
        attach_adapter(model, None)
        yield
    finally:
        if rows is not None:
            rows.attach(state.attached)
        elif (active in state.adapters or state.joined) and _state(model) is state:  # it has not ungrafted the model
            attach_adapter(model, active)
        state.thread = outer


@contextmanager
def base_alone(model: nn.Module) -> Iterator[None]:
    """`disable_adapter` for a model that may be grafted or not; new adapters are made within it.

    Raises:
        TsugikiError: an adapter is merged into the base, or weights of the base are not in memory.
    """
    _refuse_offloaded(model)
    if not is_grafted(model):
        yield
        return
    with disable_adapter(model):
        yield


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that train, by their present names in the model."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def warn_of_float16(model: nn.Module) -> None:
    """Warn if the model would compute in float16 on a processor, which takes many times as long as in float32."""
    on_processor = any(p.dtype == torch.float16 and p.device.type == "cpu" for p in model.parameters())
    if on_processor and not torch.accelerator.is_available():
        warnings.warn(
            _(
                "the model is in float16, in which processors are slow; load it in bfloat16 or float32, by "
                "from_pretrained(…, dtype=torch.bfloat16) or --base-dtype bf16"
            ),
            stacklevel=3,
        )


def is_grafted(model: nn.Module) -> bool:
    """Whether the model holds an adapter."""
    return _state(model) is not None


def is_merged(model: nn.Module) -> bool:
    """Whether an adapter is merged into the model's weights."""
    state = _state(model)
    return state is not None and state.merged is not None


def active_name(model: nn.Module) -> str | None:
    """Return the name of the active adapter; None if none is active."""
    state = _state(model)
    return None if state is None else state.active


def active_names(model: nn.Module) -> list[str]:
    """Return the names of the active adapters, for `set_adapter`."""
    state = _state(model)
    if state is None or state.active is None:
        return []
    return [state.active] if state.joined is None else list(state.joined_names)


def active_adapter(model: nn.Module) -> Any:
    """Return the active adapter, an object of its method's class.

    Raises:
        TsugikiError: none is active.
    """
    state = require_state(model)
    if state.active is None:
        raise TsugikiError(_("no adapter is active; set_adapter(model, name) activates one"))
    return state.joined if state.joined is not None else state.adapters[state.active]


def find_adapter(model: nn.Module, name: str) -> Any:
    """Return the adapter called `name`, an object of its method's class.

    Raises:
        TsugikiError: there is none; the message names the adapters of the model.
    """
    adapters = require_state(model).adapters
    if name not in adapters:
        raise TsugikiError(
            _("no adapter is called {name!r}; this model holds {adapters}").format(
                name=name, adapters=", ".join(map(repr, adapters))
            )
        )
    return adapters[name]


def require_state(model: nn.Module) -> Graft:
    """Return the model's `Graft`.

    Raises:
        TsugikiError: the model is not grafted.
    """
    state = _state(model)
    if state is None:
        raise TsugikiError(_("nothing is grafted on this model; call graft(model, config) or load_adapter first"))
    return state


def attach_adapter(model: nn.Module, name: str | None) -> None:
    """Take out what is in the model, and put in the adapter called `name`; None: leave the base alone.

    If that fails, the base alone is left.
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
    """Take the active adapter, or the rows of a mixed batch, out of the model, so that the base alone is left."""
    undo_all(state.attached)


def _deactivate(model: nn.Module) -> None:
    """Leave the base alone; if an error interrupts that, the adapter stays active."""
    state = require_state(model)
    before = state.active
    try:
        attach_adapter(model, None)
    except BaseException:
        if before is not None:
            attach_adapter(model, before)
        raise


def _freeze(model: nn.Module, state: Graft, base_dropout: bool) -> None:
    """Prepare a model for its first adapter."""
    if getattr(getattr(model, "config", None), "rescale_every", 0) > 0:
        raise TsugikiError(
            _(
                "RWKV halves the weights of its later layers in evaluation mode, and would not halve an adapter's; "
                "load it with rescale_every 0 in its config"
            )
        )
    state.required_grad = {path: p.requires_grad for path, p in model.named_parameters(remove_duplicate=False)}
    state.base_dropout = base_dropout
    setattr(model, _ATTRIBUTE, state)
    model.requires_grad_(False)
    if not base_dropout:
        state.saved_dropout = disable_dropout(model)
    freeze_batchnorm(model)
    head = output_head(model)
    if type(head) is nn.Linear and "forward" not in vars(head):
        replace_forward(head, partial(linear_of_matrix, head), state.replaced_head)
    model._replicate_for_data_parallel = _refuse_data_parallel  # type: ignore[method-assign]
    if hasattr(model, "resize_token_embeddings"):
        model.resize_token_embeddings = partial(_refuse_to_resize, model)  # type: ignore[assignment]
    if hasattr(model, "save_pretrained"):
        import tsugiki  # what an adapter's files are is decided above `lora`; the package imports it on first use

        state.saving = tsugiki.replace_saving(model)


def _unfreeze(model: nn.Module, state: Graft) -> None:
    """Undo `_freeze`."""
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(state.required_grad.get(path, False))
    restore_dropout(state.saved_dropout)
    unfreeze_batchnorm(model)
    undo_all(state.replaced_head)
    for name in (*state.saving, _ATTRIBUTE, "_replicate_for_data_parallel", "resize_token_embeddings"):
        vars(model).pop(name, None)


def _unwrap(model: nn.Module, keep: Collection[Adapter]) -> None:
    """Put the frozen layers back in the places of the grafted ones, except for those of the adapters in `keep`."""
    kept = {id(model.get_submodule(path)) for adapter in keep for path in adapter.wrapped}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, Grafted) and id(module) not in kept and model.get_submodule(path) is module:
            replace_module(model, path, module.base_layer, [])


def _state(model: nn.Module) -> Graft | None:
    return getattr(unwrapped(model), _ATTRIBUTE, None)


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


def _check_not_merged(state: Graft) -> None:
    if state.merged is not None:
        raise TsugikiError(
            _("adapter {active!r} is merged into the base; call unmerge(model) first").format(active=state.active)
        )


def _check_thread(state: Graft) -> None:
    if state.thread not in (None, get_ident()):
        raise TsugikiError(
            _(
                "another thread is in a `disable_adapter` or `mixed_batch` block of this model; wait until it has "
                "left the block (threading.Lock), or give each thread a copy of the model"
            )
        )


def _check_can_switch(state: Graft) -> None:
    """Raise a TsugikiError if the set of adapters, and which of them is active, must not change now."""
    _check_not_merged(state)
    _check_thread(state)
    if state.mixed_rows is not None:
        raise TsugikiError(_("a mixed batch is active, which gives each row its adapter; leave its `with` block first"))


def _refuse_to_resize(model: Any, new_num_tokens: int | None = None, *_args: object, **_kwargs: object) -> nn.Module:
    embedding: nn.Module = model.get_input_embeddings()
    if new_num_tokens not in (None, len(base_of(embedding).weight)):  # type: ignore[arg-type]
        raise TsugikiError(
            _(
                "resize_token_embeddings would replace the layers that an adapter changes, or trained copies of "
                "them; resize the vocabulary before you graft"
            )
        )
    return embedding


def _refuse_data_parallel(*_args: object) -> NoReturn:
    raise TsugikiError(
        _(
            "nn.DataParallel copies the model at every step, and the copies have no parameters that an adapter "
            "could be grafted on. Use one device (CUDA_VISIBLE_DEVICES=0), or a process for each device (torchrun)"
        )
    )
