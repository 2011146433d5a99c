"""Predict whether llama.cpp or PEFT would reject an adapter, or load it and give another result.

llama.cpp loads the GGUF file that `tsugiki export --gguf` writes, and PEFT the adapter's folder. The prediction is
possible before training. Tests verify the statements against these programs.
"""

from collections.abc import Collection, Sequence
from typing import Any

from tsugiki.adapters.lora_weights import LoraWeights, parameter_factors, parse_tensors
from tsugiki.adapters.verify import AdapterFiles
from tsugiki.annotations import PreTrainedModel
from tsugiki.base.identity import named_identity, why_different
from tsugiki.base.loading import load_meta_model
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.export import Loader
from tsugiki.export.llama_cpp_layers import gguf_names, llama_cpp_architecture, unsupported_reason
from tsugiki.language import _, marked
from tsugiki.lora.adapter import trained_biases
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.targets import find_target_parameters, find_targets
from tsugiki.methods.full import FullConfig
from tsugiki.methods.method import AdapterFormat
from tsugiki.methods.peft_keys import base_name, is_base_layer_key
from tsugiki.methods.table import METHODS, format_of
from tsugiki.model.token_vectors import find_tokens
from tsugiki.model.trained_copies import find_modules_to_save

_EMBEDDING_AND_HEAD_NAMES = frozenset({"lm_head", "embed_out", "wte", "wpe", "embed_tokens", "embed_in"})
_MERGE = marked("export it merged into its base instead (--merged)")


def incompatibilities(loader: Loader, adapter: AdapterFiles, model: str | None = None) -> list[str]:
    """Return the reasons why a program would reject an adapter or give another result; empty if there are none.

    The files of the adapter have no problems of their own. Without `model`, the base is that which the adapter names.
    """
    config, base = adapter.as_peft, adapter.base
    problems = []
    why = why_different(base, named_identity(model)) if model is not None else ""
    if why:
        message = _("it was trained on another base than {model} ({why}), which {loader} does not check")
        problems.append(message.format(model=model, why=why, loader=loader))
    if loader == "peft":
        return problems + _peft(config)
    if not isinstance(config, LoraConfig):
        return problems + _not_lora(config)
    try:
        shape = load_meta_model(model or base.name or "")
    except TsugikiError as error:
        return [*problems, _("whether llama.cpp can load it depends on its base: {error}").format(error=error)]
    if config.lora_bias:  # such an adapter is not read as the updates of weights alone
        return problems + incompatibilities_before_training(loader, config, shape)
    layers, others, _wrong = parse_tensors(config, adapter.tensors)
    lora = LoraWeights(config, layers, others, base, None)
    return problems + llama_cpp_incompatibilities(lora, shape)


def incompatibilities_before_training(loader: Loader, config: object, model: PreTrainedModel) -> list[str]:
    """Return the reasons that `incompatibilities` will return for the adapter after training with this config.

    The config is that of any method, and the base may be on the meta device.
    """
    if isinstance(config, FullConfig):
        return [_("the run trains every weight, so there will be no adapter; export the model instead")]
    if loader == "peft":
        return _peft(config)
    if not isinstance(config, LoraConfig):
        return _not_lora(config)
    targets = find_targets(model, config)
    experts = list(find_target_parameters(model, config))
    tokens = find_tokens(model, config.trainable_token_indices)
    whole = [*find_modules_to_save(model, config.modules_to_save), *trained_biases(model, config, targets), *tokens]
    whole += [f"{path}.lora_B.bias" for path in targets if config.lora_bias]
    return _llama_cpp(model, targets, experts, whole, config.use_dora)


def llama_cpp_incompatibilities(lora: LoraWeights, model: PreTrainedModel) -> list[str]:
    """Return why llama.cpp cannot compute this adapter of `model`, which may be on the meta device; empty if it can."""
    experts, factors = list(find_target_parameters(model, lora.config)), parameter_factors(lora.others)
    whole = [base_name(key) for key in lora.others if key not in factors and not _is_frozen_copy(key, lora)]
    dora = any(layer.magnitude is not None for layer in lora.layers.values())
    layers = [path for path in lora.layers if f"{path}.weight" not in experts]
    return _llama_cpp(model, layers, experts, whole, dora)


def peft_reads(adapter_format: AdapterFormat[Any, Any]) -> bool:
    """Return whether PEFT loads adapters of this format."""
    return any(method.readable_by_peft for method in METHODS.values() if method.config is adapter_format.config)


def can_merge(adapter_format: AdapterFormat[Any, Any]) -> bool:
    """Return whether adapters of this format can be merged into the base, which every program can then load."""
    return any(method.mergeable for method in METHODS.values() if method.config is adapter_format.config)


def is_plain_lora(config: object) -> bool:
    """Return whether an adapter is LoRA on layers inside the blocks only, which llama.cpp supports for every base.

    llama.cpp supports LoRA on embeddings and output heads for some bases only; `incompatibilities` decides that.
    """
    if not isinstance(config, LoraConfig) or config.use_dora or config.bias != "none" or config.lora_bias:
        return False
    if config.target_parameters or config.modules_to_save or config.trainable_token_indices:
        return False
    targets = [config.target_modules] if isinstance(config.target_modules, str) else config.target_modules or ()
    return not any(target.rpartition(".")[2] in _EMBEDDING_AND_HEAD_NAMES for target in targets)


def _peft(config: object) -> list[str]:
    adapter_format = format_of(config)
    if peft_reads(adapter_format):
        return []
    return [_("PEFT has no such method ({kind})").format(kind=adapter_format.peft_type)]


def _not_lora(config: object) -> list[str]:
    adapter_format = format_of(config)
    instead = _("; {merge}").format(merge=_(_MERGE)) if can_merge(adapter_format) else ""
    return [
        _("llama.cpp supports only LoRA, and this is {kind}{instead}").format(
            kind=adapter_format.peft_type, instead=instead
        )
    ]


def _llama_cpp(
    model: PreTrainedModel, layers: Collection[str], experts: Sequence[str], whole: Collection[str], dora: bool
) -> list[str]:
    """Return the incompatibilities of a LoRA adapter of `model` with llama.cpp, from names in the model.

    `layers` have LoRA factors; `experts` are parameters with factors that are not the weights of linear layers; `whole`
    are parameters and modules that are trained without factors.
    """
    try:
        llama_cpp_architecture(model)
    except TsugikiError as error:
        return [str(error)]
    names = gguf_names(model)
    unsupported: dict[str, list[str]] = {}
    for path in layers:
        if path not in names:
            unsupported.setdefault(unsupported_reason(model, path), []).append(path)
    problems = [
        _("it adapts {paths}, {reason}").format(paths=summarise_list(paths), reason=reason)
        for reason, paths in unsupported.items()
    ]
    if experts:
        message = _(
            "it adapts parameters such as the weights of experts ({experts}), whose factors are not exported; {merge}"
        )
        problems.append(message.format(experts=summarise_list(experts), merge=_(_MERGE)))
    if whole:
        message = _("it trains parameters without LoRA factors ({whole}), which llama.cpp cannot load; {merge}")
        problems.append(message.format(whole=summarise_list(list(whole)), merge=_(_MERGE)))
    if dora:
        problems.append(_("llama.cpp does not support the magnitudes of DoRA; {merge}").format(merge=_(_MERGE)))
    return problems


def _is_frozen_copy(key: str, lora: LoraWeights) -> bool:
    """Return whether a tensor is the frozen weight that PEFT may store with the LoRA factors of an embedding."""
    path, _dot, attribute = base_name(key).rpartition(".")
    return is_base_layer_key(key) and attribute == "weight" and path in lora.layers
