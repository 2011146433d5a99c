"""Which programs can load an adapter, or only the model that it is merged into: PEFT and llama.cpp."""

from tsugiki.adapters.lora_weights import LoraWeights, parameter_factors
from tsugiki.annotations import PreTrainedModel
from tsugiki.errors import summarise_list
from tsugiki.export.llama_cpp_layers import gguf_names, unsupported_reason
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.targets import find_target_parameters
from tsugiki.methods.peft_keys import base_name, is_base_layer_key

_EMBEDDING_AND_HEAD_NAMES = frozenset({"lm_head", "embed_out", "wte", "wpe", "embed_tokens", "embed_in"})


def llama_cpp_incompatibilities(lora: LoraWeights, model: PreTrainedModel) -> list[str]:
    """Return why llama.cpp cannot compute this adapter of `model`, which may be on the meta device; empty if it can.

    An architecture that llama.cpp does not have is an error. Tests compare the statements with llama.cpp.
    """
    experts, factors = list(find_target_parameters(model, lora.config)), parameter_factors(lora.others)
    whole = [base_name(key) for key in lora.others if key not in factors and not _is_frozen_copy(key, lora)]
    names = gguf_names(model)
    unsupported: dict[str, list[str]] = {}
    for path in lora.layers:
        if path not in names and f"{path}.weight" not in experts:
            unsupported.setdefault(unsupported_reason(model, path), []).append(path)
    problems = [
        _("it adapts {paths}, {reason}", paths=summarise_list(paths), reason=reason)
        for reason, paths in unsupported.items()
    ]
    if experts:
        message = _(
            "it adapts parameters such as the weights of experts ({experts}), whose factors are not exported",
            experts=summarise_list(experts),
        )
        problems.append(message)
    if whole:
        message = _(
            "it trains parameters without LoRA factors ({whole}), which llama.cpp cannot load",
            whole=summarise_list(whole),
        )
        problems.append(message)
    if any(layer.magnitude is not None for layer in lora.layers.values()):
        problems.append(_("llama.cpp does not support the magnitudes of DoRA"))
    return problems


def is_plain_lora(config: object) -> bool:
    """Return whether an adapter is LoRA on layers inside the blocks only, which llama.cpp supports for every base.

    llama.cpp supports LoRA on embeddings and output heads for some bases only; `llama_cpp_incompatibilities` decides.
    """
    if not isinstance(config, LoraConfig) or config.use_dora or config.bias != "none" or config.lora_bias:
        return False
    if config.target_parameters or config.modules_to_save or config.trainable_token_indices:
        return False
    targets = [config.target_modules] if isinstance(config.target_modules, str) else config.target_modules or ()
    return not any(target.rpartition(".")[2] in _EMBEDDING_AND_HEAD_NAMES for target in targets)


def _is_frozen_copy(key: str, lora: LoraWeights) -> bool:
    """Return whether a tensor is the frozen weight that PEFT may store with the LoRA factors of an embedding."""
    path, _dot, attribute = base_name(key).rpartition(".")
    return is_base_layer_key(key) and attribute == "weight" and path in lora.layers
