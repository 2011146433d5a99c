"""Freezing a base: the changes in a model that all of its adapters share, and what training mode changes inside it.

Frozen weights gain nothing from dropout; it only costs time and adds noise. Models hold it in three forms: as
`nn.Dropout` modules, as bare floats that their `forward` passes on (OPT's `dropout` and `layerdrop`, BLOOM's
`hidden_dropout`, the `attention_dropout` of every SDPA attention), and as floats of the config that `forward` reads
again at every call (`self.config.hidden_dropout` in Falcon, Persimmon and BLT). Other models can be built from the same
config, so a model whose config has such floats first gets a config of its own.

In training mode BatchNorm normalises by the statistics of the batch and updates its running statistics. The base would
change although no parameter of it does, and an adapter would compute something else in training than afterwards. So
its running statistics are used but not updated.

On some processors (AVX512-BF16) a 4-bit layer of bitsandbytes repacks its weight when it first computes in evaluation
mode, and a backward pass through a repacked weight gives zeros, without an error. So training mode unpacks it, and no
later evaluation repacks it.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NoReturn, TypeAlias

import torch
from torch import nn

from tsugiki.errors import TsugikiError, warn_caller
from tsugiki.language import _
from tsugiki.model.linear import linear_of_matrix
from tsugiki.model.undo import Undo, replace_forward, set_attribute
from tsugiki.model.ungrafted import output_head

SavedDropout = list[tuple[Any, str, Any]]
"""Module or config, attribute and former probability; then modules whose config was replaced (see `copy_configs`)."""

_SCALE = "moe_token_dropout"
"""Left as it is, because NLLB-MoE multiplies the outputs of its experts by 1 - p in evaluation: 0 would change the
model."""

REPACKS = "support_avx512bf16_for_cpu"
"""The attribute that lets a 4-bit layer of bitsandbytes repack its weight in evaluation mode."""

Replaced: TypeAlias = list[tuple[Any, str, Any]]
"""Module, attribute, and the config that a copy has replaced."""


def freeze(model: nn.Module, keep_dropout: bool, undo: list[Undo]) -> None:
    """Prepare a model for its first adapter: its own parameters stop training, and nothing else of it changes either.

    A model that changes its own weights between training and evaluation (RWKV) is refused.
    """
    if getattr(getattr(model, "config", None), "rescale_every", 0) > 0:
        raise TsugikiError(
            "RWKV halves the weights of its later layers in evaluation mode, and would not halve an adapter's; "
            "load it with rescale_every 0 in its config"
        )
    required_grad = {path: p.requires_grad for path, p in model.named_parameters(remove_duplicate=False)}
    undo.append(partial(_restore_grad, model, required_grad))
    model.requires_grad_(False)
    if not keep_dropout:
        saved: SavedDropout = []
        undo.append(partial(restore_dropout, saved))
        disable_dropout(model, saved)
    undo.append(partial(unfreeze_batchnorm, model))
    freeze_batchnorm(model)
    for layer in repacking_layers(model):
        undo.append(partial(setattr, layer, REPACKS, True))
        set_attribute(layer, "train", partial(_train_unpacked, layer), undo)
        layer.train(layer.training)
    use_own_functions(model, undo)
    use_matrix_product(model, undo)
    set_attribute(model, "_replicate_for_data_parallel", _refuse_data_parallel, undo)


def use_own_functions(model: nn.Module, undo: list[Undo]) -> None:
    """Let the layers compute by the functions of their classes, not by kernels that transformers takes from the hub.

    With kernels, `train` and `eval` give layers other functions each, and take away those that a layer has by its
    `forward`. `from_pretrained` of transformers 5.25 has kernels unless `use_kernels=False` is given.
    """
    if getattr(model, "use_kernels", False):
        turn = partial(setattr, model, "use_kernels")
        undo.append(partial(turn, True))
        turn(False)


def use_matrix_product(model: nn.Module, undo: list[Undo]) -> None:
    """Let the output head, if it is an `nn.Linear`, compute the same faster."""
    head = output_head(model)
    if type(head) is nn.Linear and "forward" not in vars(head):
        replace_forward(head, partial(linear_of_matrix, head), undo)


def warn_of_float16(model: nn.Module) -> None:
    """Warn if the model would compute in float16 on a processor, which takes many times as long as in float32."""
    on_processor = any(p.dtype == torch.float16 and p.device.type == "cpu" for p in model.parameters())
    if on_processor and not torch.accelerator.is_available():
        warn_caller(
            _(
                "the model is in float16, in which processors are slow; load it in bfloat16 or float32, by "
                "from_pretrained(…, dtype=torch.bfloat16) or {flag:base_dtype bf16}"
            )
        )


def refuse_offloaded(model: nn.Module) -> None:
    """Raise a TsugikiError if accelerate keeps weights on the disk or elsewhere, and loads them for each call."""
    for path, module in model.named_modules():
        if _holds_offloaded(module):
            raise TsugikiError(
                "the weights of {path} are not in memory, because accelerate offloads them, so they cannot be "
                "adapted; load the model without offloading",
                path=path,
            )


@contextmanager
def in_memory(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Keep the own parameters of these modules in memory within the block, if accelerate offloads them."""
    from accelerate.utils import align_module_device

    with ExitStack() as stack:
        for module in modules:
            if _holds_offloaded(module):
                stack.enter_context(align_module_device(module))
        yield


def is_offloaded(model: nn.Module) -> bool:
    """Return whether accelerate offloads parameters of the model."""
    return any(map(_holds_offloaded, model.modules()))


def _holds_offloaded(module: nn.Module) -> bool:
    return "_hf_hook" in vars(module) and any(p is not None and p.is_meta for p in module._parameters.values())


def _restore_grad(model: nn.Module, required_grad: Mapping[str, bool]) -> None:
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(required_grad.get(path, False))


def _refuse_data_parallel(*_args: object) -> NoReturn:
    raise TsugikiError(
        "nn.DataParallel copies the model at every step, and the copies have no parameters that an adapter "
        "could be grafted on. Use one device (CUDA_VISIBLE_DEVICES=0), or a process for each device (torchrun)"
    )


def disable_dropout(model: nn.Module, saved: SavedDropout | None = None) -> SavedDropout:
    """Set every dropout probability inside `model` to 0, and return the former values for `restore_dropout`.

    They are in the list `saved`, if one is given, before any of them changes, so that an interruption can be undone.
    """
    saved = [] if saved is None else saved
    found = _find_dropout(model)
    if any(not isinstance(owner, nn.Module) for owner, _name, _value in found):
        copy_configs(model, saved)
        found = _find_dropout(model)
    saved += found
    for owner, name, _value in found:
        setattr(owner, name, 0.0)
    return saved


def _find_dropout(model: nn.Module) -> SavedDropout:
    found: dict[tuple[int, str], tuple[Any, str, float]] = {}  # many modules share a config
    for module in model.modules():
        for owner in (module, vars(module).get("config")):
            names = ["p"] if isinstance(owner, nn.modules.dropout._DropoutNd) else []
            names += [name for name in getattr(owner, "__dict__", ()) if "drop" in name and name != _SCALE]
            for name in names:
                value = getattr(owner, name)
                if isinstance(value, float) and value > 0:
                    found[id(owner), name] = owner, name, value
    return list(found.values())


def restore_dropout(saved: SavedDropout) -> None:
    """Undo `disable_dropout`."""
    _set_probabilities(saved)
    restore_configs([entry for entry in saved if not isinstance(entry[2], float)])


@contextmanager
def dropout_restored(saved: SavedDropout) -> Iterator[None]:
    """Restore the probabilities within the block, so that the model's config can be written as it was."""
    _set_probabilities(saved)
    try:
        yield
    finally:
        _set_probabilities([(owner, name, 0.0) for owner, name, value in saved if isinstance(value, float)])


def _set_probabilities(saved: SavedDropout) -> None:
    for owner, name, value in saved:
        if isinstance(value, float):
            setattr(owner, name, value)


def freeze_batchnorm(model: nn.Module) -> None:
    """Keep every module with running statistics in evaluation mode, whatever the model's mode becomes."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            module.eval()
            module.train = partial(_keep_mode, module)  # type: ignore[method-assign, assignment]


def unfreeze_batchnorm(model: nn.Module) -> None:
    """Undo `freeze_batchnorm`; the modules get the mode of `model`."""
    for module in model.modules():
        replaced = vars(module).get("train")
        if isinstance(replaced, partial) and replaced.func is _keep_mode:
            del module.train
            module.train(model.training)


def _keep_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def repacking_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that would repack their weights in evaluation mode."""
    return [module for module in model.modules() if vars(module).get(REPACKS)]


def keep_unpacked(layer: Any) -> None:
    """Unpack the weight of a 4-bit layer of bitsandbytes, and let it never be repacked again."""
    setattr(layer, REPACKS, False)
    if _is_packed(layer):
        layer.state_dict()  # bitsandbytes unpacks what it saves
    if _is_packed(layer):
        raise TsugikiError(
            "bitsandbytes has repacked its 4-bit weights in an evaluation, no gradient passes through them, and "
            "this version cannot unpack them; load the base again, and train it before you evaluate or generate"
        )


def _is_packed(layer: Any) -> bool:
    return getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False)


def _train_unpacked(layer: nn.Module, mode: bool = True) -> nn.Module:
    if mode:
        keep_unpacked(layer)
    return type(layer).train(layer, mode)


def copy_configs(model: nn.Module, replaced: Replaced) -> None:
    """Replace the configs that the modules of a model hold by copies, which are shared as the configs were.

    Before that, the configs are added to `replaced`, for `restore_configs`.
    """
    copies: dict[int, Any] = {}
    for module in model.modules():
        copy.deepcopy(vars(module).get("config"), copies)
    found = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if id(value) in copies
    ]
    replaced += found
    for module, name, value in found:
        vars(module)[name] = copies[id(value)]


def restore_configs(replaced: Replaced) -> None:
    """Put the configs back, unless a copy has been changed, as by a trainer that sets a token; the copies then stay."""
    if all(getattr(module, name) == value for module, name, value in replaced):
        for module, name, value in replaced:
            setattr(module, name, value)
