"""Grafting: adapters are added to a model in place, and removed again.

    graft(model, LoraConfig(r=8, lora_alpha=32))     # one trainable adapter called "default"
    active_adapter(model)                             # its pairs, by the names of their layers
    with disable_adapter(model): ...                  # the base again
    ungraft(model)                                    # plain layers again

Functions that take a grafted model also take one that is wrapped, as by `torch.compile` (see `model.ungrafted`).

The model keeps its class. The trained parts belong to the adapter: while it is active they are in the model, and the
base's own parameters never change. A LoRA adapter wraps each target `layer` as `LoraLinear(layer)`,
`LoraEmbedding(layer)` or `LoraConv2d(layer)` (see `lora.adapter`); the other methods are in `tsugiki.methods`.

This is all that grafting changes in a model; `ungraft` undoes each of them:

- the model gets the attribute `_tsugiki` (a `Graft`, see `lora.hold`); `nn.DataParallel` raises an error, and
  `resize_token_embeddings` if an adapter changes the embedding or the head; PEFT's `print_trainable_parameters` and
  `merge_and_unload` are added (`adapters.pretrained`);
- `save_pretrained` and `load_state_dict` of a transformers model save and load the active adapter, and `train` looks at
  the trainer, after the public `tsugiki.graft` or `load_adapter` (`adapters.pretrained`, `adapters.reference`);
- every parameter of the base gets `requires_grad=False`;
- the output head, if it is an `nn.Linear`, gets a `forward` that computes the same faster, with other rounding in
  float32 (`linear_of_matrix` in `model.linear`);
- dropout probabilities are set to 0, unless `base_dropout` is set; a model whose config has some gets a copy of its
  config, and keeps the copy if it is changed meanwhile (`model.freeze`);
- BatchNorm modules get a `train` that keeps them in evaluation mode (`model.freeze`);
- target layers are wrapped, with the layer as the child `base_layer` and the active pair as `lora` (`lora.layer`);
  the public `tsugiki.graft` gives them another `forward`, which computes the same faster (`fast.layers`);
- modules whose parameters have pairs (`target_parameters`) get a child `tsugiki` and another `forward`
  (`lora.experts`);
- modules and parameters that train on a copy are replaced by it; a module that holds a 32-bit copy of a 16-bit
  parameter gets another `forward` (`model.undo`);
- modules get a child `tsugiki` and hooks that call it (`model.undo`, `methods.soft_prompt`); a decoder with a soft
  prompt has its length in the attribute `tsugiki_prompt_tokens`;
- within `mixed_batch`, grafted layers get another `forward` (`fast.mixed_batch`).

Merged weights stay in the model: `ungraft(merge(model))` is the base with the adapter in its weights, and has the
attribute `_tsugiki_changed_weights`, because its files no longer identify it (`base.identity`). Fast paths are
independent of grafting: `use_fast_paths` lists what it changes, and `use_plain_paths` undoes it.
"""

from collections.abc import Collection, Iterable
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

from torch import nn

from tsugiki.errors import TsugikiError
from tsugiki.lora.adapter import new_lora_adapter
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.hold import (
    STATE_ATTRIBUTE,
    Adapter,
    Graft,
    base_alone,
    check_can_switch,
    check_thread,
    find_adapter,
    find_state,
    require_state,
    set_adapter,
    switch,
)
from tsugiki.lora.pair import Grafted
from tsugiki.model.freeze import freeze, use_matrix_product, warn_of_float16
from tsugiki.model.linear import CHANGED_WEIGHTS
from tsugiki.model.undo import replace_module, set_attribute, undo_all
from tsugiki.model.ungrafted import unwrapped, unwrapped_to_graft, vocabulary_layers

DEFAULT_NAME = "default"
BASE_ROW = "__base__"
"""Selects the base (no adapter) for a row of `mixed_batch`, as in PEFT. Reserved: no adapter can have this name."""
WORDS_BEFORE = "_tsugiki_words"
"""The attribute of a model whose vocabulary was resized while it was grafted: the number of words before."""

Model = TypeVar("Model", bound=nn.Module)


class OtherConfig(Protocol):
    """The settings of an adapter of another method than LoRA."""

    def new_adapter(self, model: nn.Module) -> Adapter:
        """Return a new, untrained adapter for a model in which no adapter is active; the model is not changed."""


Config: TypeAlias = LoraConfig | OtherConfig
"""The settings of an adapter."""


def graft(model: Model, config: Config, name: str = DEFAULT_NAME, *, base_dropout: bool | None = None) -> Model:
    """Add a new adapter to `model` in place, make it the active one, and freeze everything else.

    Running statistics (of BatchNorm) are frozen, too: they are used in training, but not updated. If there is an error,
    the model is as before. The public `tsugiki.graft`, which does more, explains the arguments (`adapters.pretrained`).
    """
    base = unwrapped_to_graft(model)
    with base_alone(base):
        adapter = new_adapter(base, config)
    add_adapter(base, adapter, name, base_dropout=base_dropout)
    warn_of_float16(base)
    return model


def new_adapter(model: nn.Module, config: Config) -> Adapter:
    """Return a new, untrained adapter for a model in which no adapter is active; the model is not changed."""
    if not isinstance(config, LoraConfig):
        return config.new_adapter(model)
    if config.init_lora_weights == "mica":  # the value in a file of PEFT, by which B stays as it is in training
        raise TsugikiError("init_lora_weights 'mica' is not computed here; begin in PEFT, and load the adapter")
    return new_lora_adapter(model, config)


def add_adapter(model: nn.Module, adapter: Adapter, name: str, *, base_dropout: bool | None = None) -> None:
    """Add an existing adapter, made for this model, and make it the active one, as `graft` does with a new one."""
    model = unwrapped_to_graft(model)
    state = find_state(model) or Graft()
    check_can_switch(state)
    if name == BASE_ROW:
        raise TsugikiError(
            "the name {name!r} is reserved for the base in mixed batches; choose another name", name=name
        )
    if name in state.adapters:
        raise TsugikiError("the model already holds an adapter called {name!r}; choose another name", name=name)
    if state.adapters and base_dropout not in (None, state.base_dropout):
        raise TsugikiError(
            "base_dropout is {base_dropout}, but the adapters of this model were grafted with {used}; remove "
            "them first, or leave base_dropout out",
            base_dropout=base_dropout,
            used=state.base_dropout,
        )
    try:
        if not state.adapters:
            state.base_dropout = bool(base_dropout)
            setattr(model, STATE_ATTRIBUTE, state)
            freeze(model, state.base_dropout, state.frozen)
            if hasattr(model, "resize_token_embeddings"):
                resize = partial(_resize_token_embeddings, model)
                set_attribute(model, "resize_token_embeddings", resize, state.frozen)
        state.adapters[name] = adapter
        set_adapter(model, name)
    except BaseException:
        state.adapters.pop(name, None)
        _unwrap(model, keep=state.adapters.values())
        if not state.adapters and find_state(model) is state:
            _forget(model, state)
        raise


def ungraft(model: nn.Module) -> nn.Module:
    """Take every adapter out and return the same model with plain layers.

    After `merge` the merged weights stay (as in PEFT's `merge_and_unload`); otherwise the model is as before grafting,
    with the same tensors (as in PEFT's `unload`).
    """
    model = unwrapped(model)
    state = require_state(model)
    check_thread(state)
    if state.merged is not None:
        setattr(model, CHANGED_WEIGHTS, True)
    else:
        switch(model, None)
    _unwrap(model, keep=())
    _forget(model, state)
    return model


def remove_adapter(model: nn.Module, name: str) -> None:
    """Take one adapter out; if it is the last one, `ungraft` the model.

    Raises:
        TsugikiError: there is no such adapter, an adapter is merged, or the call is inside a `mixed_batch` block.
    """
    model = unwrapped(model)
    state = require_state(model)
    check_can_switch(state)
    find_adapter(model, name)
    if len(state.adapters) == 1:
        ungraft(model)
        return
    if state.active == name or state.joined is not None:
        switch(model, None)
    del state.adapters[name]
    _unwrap(model, keep=state.adapters.values())


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that train, by their current names in the model."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _forget(model: nn.Module, state: Graft) -> None:
    undo_all(state.frozen)
    vars(model).pop(STATE_ATTRIBUTE, None)


def _resize_token_embeddings(model: Any, new_num_tokens: int | None = None, *args: Any, **settings: Any) -> nn.Module:
    """Do the same as the method of the model's class, unless an adapter changes the embedding or the output head."""
    state = require_state(model)
    layers = vocabulary_layers(model)
    sizes = {len(layer.weight) for layer in layers.values()}  # type: ignore[arg-type]
    if new_num_tokens is not None and sizes != {new_num_tokens}:
        held = [path for adapter in state.adapters.values() for part in vars(adapter).values() for path in _names(part)]
        plain = (nn.Embedding, nn.Linear)
        changed = [
            path
            for path, layer in layers.items()
            if not isinstance(layer, plain) or any(name == path or name.startswith(f"{path}.") for name in held)
        ]
        if changed:
            raise TsugikiError(
                "resize_token_embeddings would replace {path}, which is quantised or changed by an adapter; resize the "
                "vocabulary before you graft",
                path=changed[0],
            )
        vars(model).setdefault(WORDS_BEFORE, max(sizes))
    embedding: nn.Module = type(model).resize_token_embeddings(model, new_num_tokens, *args, **settings)
    use_matrix_product(model, state.frozen)
    return embedding


def _names(part: object) -> Iterable[str]:
    """Return the names of layers or parameters that a part of an adapter is for."""
    return part if isinstance(part, dict) else ()


def _unwrap(model: nn.Module, keep: Collection[Adapter]) -> None:
    """Replace grafted layers by their frozen layers, except the layers of the adapters in `keep`."""
    kept = {id(model.get_submodule(path)) for adapter in keep for path in getattr(adapter, "pairs", ())}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, Grafted) and id(module) not in kept and model.get_submodule(path) is module:
            replace_module(model, path, module.base_layer, [])
