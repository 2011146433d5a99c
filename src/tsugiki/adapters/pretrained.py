"""The public `graft` and `load_adapter`, and how transformers' Trainer saves and loads the adapter of a grafted model.

Trainer calls three methods of the model, which are replaced in a grafted model:

    model.save_pretrained(folder)        writes the adapter, in PEFT's format
    model.load_state_dict(tensors)       also takes the tensors of an adapter's file
    model.train(mode)                    also refuses a trainer with another reference (`adapters.reference`)

Trainer loads the adapter of a checkpoint itself only into models of PEFT's class. Into all others it loads
`model.safetensors`. Therefore a folder with the name of a checkpoint (checkpoint-500) gets a link of this name to the
adapter's weights, which takes no space. Other folders do not get it, because an adapter's folder is not a model's. In a
checkpoint of several adapters, which are in subfolders, `model.safetensors` has all of them: `NAME.` and the name in
the adapter's file.
"""

import copy
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from traceback import walk_stack
from types import CellType, FunctionType, MethodType
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tsugiki.adapters.files import read_adapter_config
from tsugiki.adapters.format import folders_of_active, load_tensors, read_adapter, warn_of_unknown_base, write_adapter
from tsugiki.adapters.verify import logit_shift
from tsugiki.errors import TsugikiError, warn_caller
from tsugiki.fast.layers import add_adapter, use_fast_products
from tsugiki.io.atomic import new_file
from tsugiki.io.file_names import ADAPTER_FILE, MODEL_FILE
from tsugiki.language import _
from tsugiki.lora.graft import DEFAULT_NAME, Config, Model, remove_adapter, trainable_parameters, ungraft
from tsugiki.lora.graft import graft as plain_graft
from tsugiki.lora.hold import (
    STATE_ATTRIBUTE,
    active_adapter,
    active_names,
    check_can_switch,
    find_adapter,
    find_state,
    is_merged,
    require_state,
    set_adapter,
)
from tsugiki.lora.merge import merge
from tsugiki.lowbit.quantization import count_parameters
from tsugiki.methods.lora_format import PeftConfig, config_of_peft
from tsugiki.methods.peft_keys import PREFIX
from tsugiki.model.freeze import keep_unpacked, repacking_layers
from tsugiki.model.undo import set_attribute
from tsugiki.model.ungrafted import unwrapped, unwrapped_to_graft

_NO_EFFECT = frozenset({"max_shard_size", "save_function", "save_original_format", "token"})
"""Settings of `save_pretrained` that have no effect for an adapter, which is one file of safetensors."""
_POSSIBLE: Mapping[str, object] = {
    "distributed_checkpoint": False,
    "push_to_hub": False,
    "safe_serialization": True,
    "save_peft_format": True,
    "variant": None,
}
"""Settings of `save_pretrained` for which an adapter allows only one value."""
_HAS_ADAPTER = "_hf_peft_config_loaded"
"""The attribute by which transformers recognises a model with an adapter. Without it, Trainer refuses a model that
transformers has quantised (bitsandbytes and others). There is no public name for it."""
_WRAPPERS = re.compile(r"^(_orig_mod\.|module\.)+")
"""The prefixes that torch.compile and DistributedDataParallel add to the names of parameters."""


def graft(
    model: Model,
    config: Config | PeftConfig,
    name: str = DEFAULT_NAME,
    *,
    base_dropout: bool | None = None,
) -> Model:
    """Add a new adapter to `model` in place, make it the active one, and freeze everything else.

    This is `lora.graft.graft`, whose module lists what changes in the model, with layers that compute fast, and a
    transformers model that saves and loads its adapter. Running statistics (of BatchNorm) are used in training, but not
    updated.

    Args:
        model: any module, but no wrapper around one except that of `torch.compile`.
        config: `LoraConfig`, PEFT's `LoraConfig`, or the config of another method.
        name: the adapter's name. A model can hold several adapters, of which one is active.
        base_dropout: keep dropout inside the frozen base. All adapters of a model share this setting. None: that of the
            adapters that the model holds; for the first adapter, dropout is switched off, because frozen weights gain
            nothing from it.

    Returns:
        The same model. `active_adapter(model)` is the new adapter.

    Raises:
        TsugikiError: the settings do not fit the model, the model is wrapped or offloaded, the name is taken, an
            adapter is merged, or the call is inside a `mixed_batch` block. The model is then as before.
    """
    if isinstance(config, PeftConfig):
        config = config_of_peft(config)
    plain_graft(model, config, name, base_dropout=base_dropout)
    use_fast_products(model)
    replace_saving(unwrapped(model))
    return model


def load_adapter(
    model: Model, path: str | Path, name: str | None = None, *, allow_base_mismatch: bool = False
) -> Model:
    """Graft the adapter in a folder, written by Tsugiki or by PEFT, into a model and make it active.

    Every tensor in the file must be used: otherwise the load fails, names the tensors, and leaves the model unchanged.
    An adapter that does not change any logit, or with which one is not finite, is loaded with a warning.

    Args:
        model: the base that the adapter was trained on.
        path: the adapter's folder.
        name: the adapter's name in the model; None: "default".
        allow_base_mismatch: load the adapter although it was trained on another base.

    Returns:
        The same model. `active_adapter(model)` is the adapter.

    Raises:
        TsugikiError: the folder holds no adapter, its method is not supported, it was trained on another base, its
            tensors do not fit, or the model is wrapped (see `model.ungrafted`).
    """
    base, folder, called = unwrapped_to_graft(model), Path(path), name or DEFAULT_NAME
    adapter = read_adapter(base, folder, read_adapter_config(folder), allow_base_mismatch=allow_base_mismatch)
    active_before = active_names(base)
    add_adapter(base, adapter, called)
    replace_saving(base)
    try:
        shift = logit_shift(base)
    except BaseException:
        remove_adapter(base, called)
        if active_before:
            set_adapter(base, active_before)
        raise
    if shift == 0:
        warn_caller(_("the adapter in {folder} has no effect: the model's logits are those of the base", folder=folder))
    elif shift is not None and not math.isfinite(shift):
        warn_caller(_("the adapter in {folder} makes logits infinite or NaN", folder=folder))
    if not allow_base_mismatch:
        warn_of_unknown_base(base, folder)
    return model


def replace_saving(model: nn.Module) -> None:
    """Add methods to a grafted model; `ungraft` removes them.

    Every model gets `print_trainable_parameters` and `merge_and_unload`, which tutorials on PEFT call. A transformers
    model also gets methods with which Trainer saves and loads the adapter.
    """
    state = require_state(model)
    if "merge_and_unload" in vars(model):
        return
    attributes: dict[str, object] = {
        "print_trainable_parameters": partial(print_trainable_parameters, model),
        "merge_and_unload": partial(_merge_and_unload, model),
    }
    if hasattr(model, "save_pretrained"):
        attributes |= _of_transformers(model)
    for name, value in attributes.items():
        set_attribute(model, name, value, state.frozen)


def _of_transformers(model: nn.Module) -> dict[str, object]:
    """Return the attributes by which a transformers model saves and loads its adapter, and looks at its trainer."""
    attributes: dict[str, object] = {
        "save_pretrained": partial(save_pretrained, model),
        "load_state_dict": partial(load_state_dict, model),
        "train": partial(train, model),
    }
    if getattr(model, "is_quantized", False):
        attributes[_HAS_ADAPTER] = True
    return attributes


def save_pretrained(
    model: nn.Module,
    save_directory: str | os.PathLike[str],
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    **settings: object,
) -> None:
    """Write the active adapter to a folder, as `save_adapter` does, or several; also while it is merged.

    `ungraft(merge(model)).save_pretrained(folder)` writes the whole model.

    Args:
        model: a grafted model.
        save_directory: the folder; created if it does not exist. If its name is that of a checkpoint (checkpoint-500),
            `model.safetensors` is a link to the adapter's weights, or has those of several, for transformers' Trainer;
            not if the names of the state dict are those of a wrapper, such as `torch.compile`'s.
        is_main_process: False writes nothing.
        state_dict: the values to write, by their names in the model, such as those that an engine has gathered from a
            sharded model. None: the model's own.
        settings: other settings of transformers' `save_pretrained`; those without a meaning for an adapter are ignored.

    Raises:
        TsugikiError: no adapter is active, the state dict lacks a trained parameter, the folder cannot be written, or
            a setting has a value that is not possible for an adapter in PEFT's format.
    """
    for name, value in settings.items():
        if name not in _NO_EFFECT and (name not in _POSSIBLE or value != _POSSIBLE[name]):
            hint = _("call model.push_to_hub(name) instead") if name == "push_to_hub" else _("leave it out")
            raise TsugikiError(
                "save_pretrained of a grafted model writes an adapter, for which {name}={value!r} is not "
                "possible; {hint}, or save the whole model: ungraft(merge(model)).save_pretrained(folder)",
                name=name,
                value=value,
                hint=hint,
            )
    # Trainer gives an empty state dict if DeepSpeed is not to gather the weights; DeepSpeed then saves its own files.
    if not is_main_process or (state_dict is not None and not state_dict):
        return
    folder = Path(save_directory)
    folders = folders_of_active(model, folder)
    adapters = {name: find_adapter(model, name) for name in folders}
    if state_dict is not None:
        adapters = _with_values(model, adapters, state_dict)
    for name, own_folder in folders.items():
        write_adapter(model, adapters[name], own_folder)
    # A wrapped model that is given to Trainer would load the tensors itself, under other names, and only warn.
    is_wrapped = state_dict is not None and any(_WRAPPERS.match(name) for name in state_dict)
    if re.fullmatch(r"checkpoint-\d+", folder.name) and not is_wrapped:
        with new_file(folder / MODEL_FILE, replace=True) as temporary:
            if len(folders) == 1:
                _link(folder / ADAPTER_FILE, temporary)
            else:
                own = {name: load_file(own_folder / ADAPTER_FILE) for name, own_folder in folders.items()}
                save_file({f"{name}.{key}": own[name][key] for name in own for key in own[name]}, temporary)


def load_state_dict(model: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
    """Copy tensors into a grafted model: an adapter's file into the active adapter, or a state dict into the model.

    An adapter's file must be whole and fit the active adapter, which must not be merged; `strict` and `assign` have no
    meaning for it. The result is that of torch's `load_state_dict`: the missing names, and the unexpected names.
    """
    several = {key: key.partition(f".{PREFIX}")[0] for key in state_dict if f".{PREFIX}" in key}
    if not several and not any(name.startswith((PREFIX, "prompt_embeddings")) for name in state_dict):
        return type(model).load_state_dict(model, state_dict, strict, assign)
    if is_merged(model):
        raise TsugikiError("an adapter cannot be loaded into one that is merged into the base; call unmerge(model)")
    if several:
        _load_several(model, several, state_dict)
    else:
        load_tensors(model, active_adapter(model), state_dict, _("the state dict"))
    return nn.Module().load_state_dict({})  # torch's result if nothing is missing and nothing unexpected


def _load_several(model: nn.Module, name_of: Mapping[str, str], state_dict: Mapping[str, Any]) -> None:
    """Copy the tensors of a checkpoint of several adapters, whose names `name_of` has, into the active ones."""
    found, active = sorted(set(name_of.values())), sorted(active_names(model))
    if found != active:
        raise TsugikiError(
            "the state dict holds the adapters {found}, and {active} are active; activate the same ones with "
            "set_adapter first",
            found=", ".join(found),
            active=", ".join(active),
        )
    for name in active:
        own = {key.removeprefix(f"{name}."): state_dict[key] for key in name_of if name_of[key] == name}
        load_tensors(model, find_adapter(model, name), own, _("the state dict"))


def print_trainable_parameters(model: nn.Module) -> None:
    """Print the number of trainable parameters, in the format of PEFT's method of the same name.

    The total includes the base and the active adapter; for a quantised base, the number before quantising is used.
    """
    trainable = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    total = count_parameters(model)
    share = trainable / total if total else 0
    print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * share:.4f}")


def _with_values(model: nn.Module, adapters: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return copies of the active adapters whose parameters have the values of a state dict of the model."""
    values = {_WRAPPERS.sub("", name): value for name, value in state_dict.items()}
    missing = [name for name in trainable_parameters(model) if name not in values]
    if missing:
        raise TsugikiError(
            "the state dict lacks {name}, which the adapter trains ({count} such)", name=missing[0], count=len(missing)
        )
    copies: dict[int, Any] = {
        id(own): nn.Parameter(values[name], requires_grad=False) if isinstance(own, nn.Parameter) else values[name]
        for name, own in model.state_dict(keep_vars=True).items()
        if name in values
    }
    # These parameters are used in the place of copies.
    return {name: copy.deepcopy(adapter, copies) for name, adapter in adapters.items()}


def _link(file: Path, link: Path) -> None:
    """Give a file a second name in its folder: a symbolic link, whose listing shows that there is one file."""
    try:
        link.symlink_to(file.name)
    except OSError:  # Windows and some file systems have hard links alone, or none
        try:
            os.link(file, link)
        except OSError:
            shutil.copy(file, link)


def _merge_and_unload(model: nn.Module, progressbar: bool = False, safe_merge: bool = False) -> nn.Module:
    """Merge the adapter into the weights and return the base model, as PEFT's method does.

    There is no progress bar, and the weights are always checked, as with `safe_merge=True`.
    """
    return ungraft(merge(model))


_REFERENCE_OF = "_tsugiki_reference_of"
"""The attribute of a reference that holds the `Graft` of its model."""


def reference_model(model: Model) -> Model:
    """Return a model that computes what a grafted model computes now, and keeps doing so while that is trained.

    It shares the weights of the base, and has a copy of what trains in the active adapter, as the reference of PEFT and
    TRL. Within `disable_adapter(model)`, it is the base alone. It is in evaluation mode and does not train.

    Raises:
        TsugikiError: nothing is grafted, an adapter is merged, or the call is inside a `mixed_batch` block.
    """
    base = unwrapped(model)
    state = require_state(base)
    check_can_switch(state)
    tensors = [*base.parameters(), *base.buffers()]
    copies: dict[int, Any] = {id(shared): shared for shared in (state, *(t for t in tensors if not t.requires_grad))}
    reference: Any = copy.deepcopy(base, copies)
    # A copy of the model has the same function in its own `forward`. That of TRL has captured the `forward` of the
    # model that trains, and would still call it.
    forward = vars(reference).get("forward")
    if isinstance(forward, MethodType):
        reference.forward = MethodType(_copied_function(forward.__func__, copies), reference)
    for layer in repacking_layers(reference):
        keep_unpacked(layer)  # `eval` would repack a weight that the model shares, and then no gradient passes through
    delattr(reference, STATE_ATTRIBUTE)
    setattr(reference, _REFERENCE_OF, state)
    return reference.requires_grad_(False).eval()  # type: ignore[no-any-return]


def _copied_function(function: Any, copies: dict[int, Any]) -> Any:
    """Return a function with copies of what it has captured, such as the `forward` that TRL has put its own around."""
    cells = tuple(CellType(copy.deepcopy(cell.cell_contents, copies)) for cell in function.__closure__ or ())
    copied = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    copied.__kwdefaults__ = function.__kwdefaults__
    vars(copied).update(vars(function))
    return copied


def train(model: nn.Module, mode: bool = True) -> nn.Module:
    """Do the same as the method of the model's class, unless a trainer of TRL calls it that would train wrongly."""
    owner: object = model
    for frame, _line in walk_stack(sys._getframe(1)):
        owner = frame.f_locals.get("self")
        if not isinstance(owner, nn.Module):  # a wrapper calls the method of the model inside
            break
    if any(kind.__module__.startswith("trl.") for kind in type(owner).__mro__):
        _check_trainer(model, owner)
    return type(model).train(model, mode)


def _check_trainer(model: nn.Module, trainer: Any) -> None:
    """Raise a TsugikiError if this trainer of TRL would change the base, or compute with other weights."""
    kind = type(trainer).__name__
    if getattr(trainer, "use_vllm", False) or hasattr(trainer, "weight_transfer"):  # the latter is of AsyncGRPOTrainer
        raise TsugikiError(
            "{trainer} would give vLLM the weights of a grafted model under names that vLLM does not have, and without "
            "the adapter; generate without vLLM (use_vllm), or train with PEFT and read its adapter by load_adapter",
            trainer=kind,
        )
    reference = getattr(trainer, "ref_model", None)
    if reference is None:
        return
    if getattr(trainer.args, "sync_ref_model", False):
        raise TsugikiError(
            "{trainer} with sync_ref_model would change the weights of the base; leave sync_ref_model out", trainer=kind
        )
    if vars(unwrapped(reference)).get(_REFERENCE_OF) is not find_state(model):
        raise TsugikiError(
            "{trainer} holds another reference than this model before training, such as a base that it has loaded "
            "itself; give it tsugiki.reference_model(model), as ref_model=… or by trainer.ref_model = … before train()",
            trainer=kind,
        )
