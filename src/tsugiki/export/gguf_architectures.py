"""The representation of each architecture in GGUF: hyperparameters, and tensors that differ from transformers'.

A row exists only for an architecture for which a random model gives the same logits in llama.cpp as in transformers
(`tests/export/test_gguf_model.py`). A config field that GGUF cannot represent raises an error that names it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tsugiki.annotations import PretrainedConfig
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.export.llama_cpp_layers import KEY_ORDER, QUERY_ORDER
from tsugiki.language import _, ngettext
from tsugiki.model.architectures import ARCHITECTURES

Hyperparameters: TypeAlias = dict[str, bool | int | float | str]
"""llama.cpp's key, without the architecture's name in front -> value."""

_ROW_ORDERS = {"attn_q": QUERY_ORDER, "attn_k": KEY_ORDER}
_GELU_TANH = ("gelu_new", "gelu_pytorch_tanh")
_SILU: Mapping[str, tuple[Any, ...]] = {"hidden_act": ("silu",)}


def _unchanged(name: str, tensor: Tensor, config: PretrainedConfig) -> Tensor:
    return tensor


def _nothing(config: PretrainedConfig) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True)
class GgufArchitecture:
    """The conversion of a transformers model to one of llama.cpp's architectures."""

    name: str
    """llama.cpp's name for the architecture."""
    hyperparameters: Callable[[PretrainedConfig], Hyperparameters]
    accepted: Mapping[str, tuple[Any, ...]]
    """Config field -> the values that llama.cpp supports, for fields without a hyperparameter in GGUF."""
    convert: Callable[[str, Tensor, PretrainedConfig], Tensor] = _unchanged
    """(llama.cpp's name of a tensor, transformers' tensor, config) -> llama.cpp's tensor."""
    computed: Callable[[PretrainedConfig], dict[str, Tensor]] = _nothing
    """Returns tensors that llama.cpp reads from the file and transformers computes from the config."""
    untied_head: bool = True
    """Whether the output head may have another weight than the token embedding."""


def gguf_architecture_of(config: PretrainedConfig) -> GgufArchitecture:
    """Return the row for a model with this config; an error names what llama.cpp does not support."""
    known = ARCHITECTURES.get(config.model_type)
    row = None if known is None or known.llama_cpp is None else GGUF_ARCHITECTURES.get(known.llama_cpp)
    if row is None:
        known_types = ARCHITECTURES.items()
        model_types = [name for name, architecture in known_types if architecture.llama_cpp in GGUF_ARCHITECTURES]
        message = _("the architecture {name!r} cannot be exported to GGUF; these can: {known}")
        raise TsugikiError(message.format(name=config.model_type, known=", ".join(model_types)))
    if getattr(config, "quantization_config", None):
        raise TsugikiError(_("this model is quantised (quantization_config); export the model that it was made from"))
    problems = [
        _("{field} is {value!r} (llama.cpp supports {values})").format(
            field=field, value=value, values=_(" or ").join(map(repr, values))
        )
        for field, values in row.accepted.items()
        if (value := getattr(config, field, values[0])) not in values
    ]
    if not row.untied_head and not config.tie_word_embeddings:
        problems.append(_("tie_word_embeddings is False (llama.cpp uses the token embedding as the output head)"))
    if problems:
        message = _("llama.cpp's {name} cannot represent this model: {problems}")
        raise TsugikiError(message.format(name=row.name, problems=summarise_list(problems)))
    return row


def _llama_hyperparameters(config: PretrainedConfig) -> Hyperparameters:
    window = getattr(config, "sliding_window", None)  # Mistral has this field
    if window is not None and window < config.max_position_embeddings:
        message = _(
            "llama.cpp's llama cannot represent this model: sliding_window is {window}, shorter than the "
            "context of {context}"
        )
        raise TsugikiError(message.format(window=window, context=config.max_position_embeddings))
    return {
        **_common_hyperparameters(config),
        **_rope(_shared_rope(config.rope_parameters)),
        "rope.dimension_count": _head_dim(config),
    }


def _llama_tensor(name: str, tensor: Tensor, config: PretrainedConfig) -> Tensor:
    """Put rows of queries and keys that rotate together next to each other (see `llama_cpp_layers`)."""
    order = _ROW_ORDERS.get(name.split(".")[-2])
    return tensor if order is None else tensor[order(config, len(tensor))]


def _llama_frequencies(config: PretrainedConfig) -> dict[str, Tensor]:
    """Return the factors by which Llama 3's RoPE scaling divides each frequency, [head_dim / 2]."""
    if config.rope_parameters["rope_type"] != "llama3":
        return {}
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _other = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = config.rope_parameters["rope_theta"] ** -(
        torch.arange(0, _head_dim(config), 2).double() / _head_dim(config)
    )
    return {"rope_freqs.weight": (plain / scaled.double()).float()}


def _qwen_hyperparameters(config: PretrainedConfig) -> Hyperparameters:
    return {**_common_hyperparameters(config), **_rope(_shared_rope(config.rope_parameters), scalings=("linear",))}


def _gpt2_hyperparameters(config: PretrainedConfig) -> Hyperparameters:
    return {
        "block_count": config.n_layer,
        "context_length": config.n_positions,
        "embedding_length": config.n_embd,
        "feed_forward_length": config.n_inner or 4 * config.n_embd,
        "attention.head_count": config.n_head,
        "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
    }


def _gpt2_tensor(name: str, tensor: Tensor, config: PretrainedConfig) -> Tensor:
    """Transpose the weights of the blocks to [out, in]; GPT-2 stores them as [in, out]."""
    return tensor.T if name.startswith("blk.") and tensor.dim() == 2 else tensor


def _gemma_hyperparameters(config: PretrainedConfig) -> Hyperparameters:
    return {**_common_hyperparameters(config), **_rope(_shared_rope(config.rope_parameters), scalings=())}


def _gemma_tensor(name: str, tensor: Tensor, config: PretrainedConfig) -> Tensor:
    """Add 1 to the weights of norms; Gemma stores them minus 1."""
    return tensor.float() + 1 if name.endswith("norm.weight") else tensor


def _gemma2_hyperparameters(config: PretrainedConfig) -> Hyperparameters:
    _check_attention_scale(config)
    _check_layer_types(config, period=2)
    return {
        **_gemma_hyperparameters(config),
        "attention.sliding_window": config.sliding_window,
        "attn_logit_softcapping": float(config.attn_logit_softcapping or 0),
        "final_logit_softcapping": float(config.final_logit_softcapping or 0),
    }


def _gemma3_hyperparameters(config: PretrainedConfig) -> Hyperparameters:
    _check_attention_scale(config)
    _check_layer_types(config, period=6)
    local = config.rope_parameters["sliding_attention"]
    if local["rope_type"] != "default":
        message = _(
            "llama.cpp's gemma3 cannot represent this model: the RoPE parameters of its sliding layers are {local!r}"
        )
        raise TsugikiError(message.format(local=local))
    return {
        **_common_hyperparameters(config),
        **_rope(config.rope_parameters["full_attention"], scalings=("linear",)),
        "rope.freq_base_swa": float(local["rope_theta"]),
        "attention.sliding_window": config.sliding_window,
        **({"final_logit_softcapping": float(softcap)} if (softcap := config.final_logit_softcapping) else {}),
    }


def _common_hyperparameters(config: PretrainedConfig) -> Hyperparameters:
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": _head_dim(config),
        "attention.value_length": _head_dim(config),
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "vocab_size": config.vocab_size,
    }


def _head_dim(config: PretrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope(parameters: Mapping[str, Any], scalings: tuple[str, ...] = ("linear", "llama3")) -> Hyperparameters:
    kind = parameters["rope_type"]
    if kind != "default" and kind not in scalings:
        message = _("llama.cpp cannot represent this model: rope_type is {kind!r}; {known} are supported")
        raise TsugikiError(message.format(kind=kind, known=", ".join(("default", *scalings))))
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        message = _("llama.cpp cannot represent this model: partial_rotary_factor is {factor}")
        raise TsugikiError(message.format(factor=parameters["partial_rotary_factor"]))
    base: Hyperparameters = {"rope.freq_base": float(parameters["rope_theta"])}
    if kind == "linear":
        base |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(parameters["factor"])}
    return base


def _shared_rope(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the RoPE parameters of a model in which they are the same for all layers."""
    return next(iter(parameters.values())) if "rope_type" not in parameters else parameters


def _check_attention_scale(config: PretrainedConfig) -> None:
    """Check the scale of Gemma's attention scores, which llama.cpp derives from the number of layers."""
    large = config.num_hidden_layers == ARCHITECTURES[config.model_type].layers_of_27b
    scale = config.hidden_size // config.num_attention_heads if large else _head_dim(config)
    if config.query_pre_attn_scalar != scale:
        message = _(
            "llama.cpp cannot represent this model: query_pre_attn_scalar is {value}, and llama.cpp uses {scale}"
        )
        raise TsugikiError(message.format(value=config.query_pre_attn_scalar, scale=scale))


def _check_layer_types(config: PretrainedConfig, period: int) -> None:
    """Check that every `period`-th layer has full attention and the others a sliding window, as in llama.cpp."""
    expected = [
        "full_attention" if (layer + 1) % period == 0 else "sliding_attention"
        for layer in range(config.num_hidden_layers)
    ]
    if list(config.layer_types) != expected:
        raise TsugikiError(
            ngettext(
                "llama.cpp cannot represent this model: layer_types must be {count} sliding layer before each full one",
                "llama.cpp cannot represent this model: layer_types must be {count} sliding layers before each "
                "full one",
                period - 1,
            ).format(count=period - 1)
        )


GGUF_ARCHITECTURES: Mapping[str, GgufArchitecture] = {
    row.name: row
    for row in (
        GgufArchitecture(
            "gpt2",
            _gpt2_hyperparameters,
            {
                "activation_function": _GELU_TANH,
                "scale_attn_weights": (True,),
                "scale_attn_by_inverse_layer_idx": (False,),
                "add_cross_attention": (False,),
            },
            _gpt2_tensor,
        ),
        GgufArchitecture("llama", _llama_hyperparameters, _SILU, _llama_tensor, _llama_frequencies),
        GgufArchitecture("qwen2", _qwen_hyperparameters, {**_SILU, "use_sliding_window": (False,)}),
        GgufArchitecture(
            "qwen3", _qwen_hyperparameters, {**_SILU, "use_sliding_window": (False,), "attention_bias": (False,)}
        ),
        GgufArchitecture(
            "gemma",
            _gemma_hyperparameters,
            {"hidden_act": _GELU_TANH, "attention_bias": (False,)},
            _gemma_tensor,
            untied_head=False,
        ),
        GgufArchitecture(
            "gemma2",
            _gemma2_hyperparameters,
            {"hidden_activation": _GELU_TANH, "attention_bias": (False,)},
            _gemma_tensor,
            untied_head=False,
        ),
        GgufArchitecture(
            "gemma3",
            _gemma3_hyperparameters,
            {
                "hidden_activation": _GELU_TANH,
                "attention_bias": (False,),
                "attn_logit_softcapping": (None,),
                "use_bidirectional_attention": (False, None),
            },
            _gemma_tensor,
        ),
    )
}
"""llama.cpp's name of an architecture -> its row."""
