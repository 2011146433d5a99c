"""What llama.cpp wants to know of each architecture: its settings, and its tensors where they are not the stored ones.

A row is here only if a random model of its kind gives the same logits in llama.cpp as in Transformers
(`tests/export/test_model_file.py`). What a row cannot carry is refused by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tsugiki.architectures import ARCHITECTURES
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.export.layout import neighbours

Config: TypeAlias = Any
"""A `transformers.PretrainedConfig`."""
Setting: TypeAlias = bool | int | float | str

_ROTATED = {"attn_q": neighbours("num_attention_heads"), "attn_k": neighbours("num_key_value_heads")}
_GELU_TANH = ("gelu_new", "gelu_pytorch_tanh")


def _as_stored(name: str, tensor: Tensor, config: Config) -> Tensor:
    return tensor


def _nothing_more(config: Config) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True)
class GgufArchitecture:
    """One architecture of llama.cpp, seen from the config of a Transformers model."""

    name: str
    """llama.cpp's."""
    settings: Callable[[Config], dict[str, Setting]]
    """Its hyperparameters; keys without the architecture's name before them."""
    accepted: Mapping[str, tuple[Any, ...]]
    """Field of the config -> the values that llama.cpp computes with, since it has no setting for it."""
    change: Callable[[str, Tensor, Config], Tensor] = _as_stored
    """(llama.cpp's name, the stored tensor, config) -> the tensor as llama.cpp has it."""
    more: Callable[[Config], dict[str, Tensor]] = _nothing_more
    """Tensors that a Transformers model computes and does not store."""
    own_head: bool = True
    """Whether the head may be another weight than the embedding."""


def gguf_architecture_of(config: Config) -> GgufArchitecture:
    """The row for a model's config.

    Raises:
        TsugikiError: an architecture that is not known here, a model held in few bits, or a value that llama.cpp has
            no place for.
    """
    known = ARCHITECTURES.get(config.model_type)
    row = None if known is None or known.llama_cpp is None else GGUF_ARCHITECTURES.get(known.llama_cpp)
    if row is None:
        model_types = [name for name, one in ARCHITECTURES.items() if one.llama_cpp in GGUF_ARCHITECTURES]
        raise TsugikiError(
            f"no GGUF for the architecture {config.model_type!r}; those known here are {', '.join(model_types)}"
        )
    if getattr(config, "quantization_config", None):
        raise TsugikiError("this model is held in few bits (quantization_config); export the one that it was made from")
    problems = [
        f"{field} is {value!r} (llama.cpp computes with {' or '.join(map(repr, values))})"
        for field, values in row.accepted.items()
        if (value := getattr(config, field, values[0])) not in values
    ]
    if not row.own_head and not config.tie_word_embeddings:
        problems.append("tie_word_embeddings is False (llama.cpp takes the embedding as its head)")
    if problems:
        raise TsugikiError(f"llama.cpp's {row.name} cannot carry this model: {summarise_list(problems)}")
    return row


def _llama(config: Config) -> dict[str, Setting]:
    window = getattr(config, "sliding_window", None)  # Mistral's
    if window is not None and window < config.max_position_embeddings:
        raise TsugikiError(
            f"llama.cpp's llama cannot carry this model: sliding_window is {window}, shorter than its "
            f"context of {config.max_position_embeddings}"
        )
    return {**_transformer(config), **_rope(_only(config.rope_parameters)), "rope.dimension_count": _head(config)}


def _llama_tensor(name: str, tensor: Tensor, config: Config) -> Tensor:
    """Rows of queries and keys that rotate together beside each other (see `layout`)."""
    order = _ROTATED.get(name.split(".")[-2])
    return tensor if order is None else tensor[order(config, len(tensor))]


def _llama_more(config: Config) -> dict[str, Tensor]:
    """How much slower each frequency turns than without Llama 3's scaling, [head / 2]."""
    if config.rope_parameters["rope_type"] != "llama3":
        return {}
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, _head(config), 2).double() / _head(config))
    return {"rope_freqs.weight": (plain / scaled.double()).float()}


def _qwen(config: Config) -> dict[str, Setting]:
    return {**_transformer(config), **_rope(_only(config.rope_parameters), scalings=("linear",))}


def _gpt2(config: Config) -> dict[str, Setting]:
    return {
        "block_count": config.n_layer,
        "context_length": config.n_positions,
        "embedding_length": config.n_embd,
        "feed_forward_length": config.n_inner or 4 * config.n_embd,
        "attention.head_count": config.n_head,
        "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
    }


def _gpt2_tensor(name: str, tensor: Tensor, config: Config) -> Tensor:
    """Weights of the blocks as [out, in]; GPT-2's own are [in, out]."""
    return tensor.T if name.startswith("blk.") and tensor.dim() == 2 else tensor


def _gemma(config: Config) -> dict[str, Setting]:
    return {**_transformer(config), **_rope(_only(config.rope_parameters), scalings=())}


def _gemma_tensor(name: str, tensor: Tensor, config: Config) -> Tensor:
    """Norms as they multiply: Gemma stores their distance from one."""
    return tensor.float() + 1 if name.endswith("norm.weight") else tensor


def _gemma2(config: Config) -> dict[str, Setting]:
    _refuse_other_scale(config)
    _refuse_other_pattern(config, period=2)
    return {
        **_gemma(config),
        "attention.sliding_window": config.sliding_window,
        "attn_logit_softcapping": float(config.attn_logit_softcapping or 0),
        "final_logit_softcapping": float(config.final_logit_softcapping or 0),
    }


def _gemma3(config: Config) -> dict[str, Setting]:
    _refuse_other_scale(config)
    _refuse_other_pattern(config, period=6)
    local = config.rope_parameters["sliding_attention"]
    if local["rope_type"] != "default":
        raise TsugikiError(f"llama.cpp's gemma3 cannot carry this model: rope_type of its sliding layers is {local!r}")
    return {
        **_transformer(config),
        **_rope(config.rope_parameters["full_attention"], scalings=("linear",)),
        "rope.freq_base_swa": float(local["rope_theta"]),
        "attention.sliding_window": config.sliding_window,
        **({"final_logit_softcapping": float(softcap)} if (softcap := config.final_logit_softcapping) else {}),
    }


def _transformer(config: Config) -> dict[str, Setting]:
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": _head(config),
        "attention.value_length": _head(config),
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "vocab_size": config.vocab_size,
    }


def _head(config: Config) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope(parameters: Mapping[str, Any], scalings: tuple[str, ...] = ("linear", "llama3")) -> dict[str, Setting]:
    kind = parameters["rope_type"]
    if kind != "default" and kind not in scalings:
        raise TsugikiError(
            f"llama.cpp cannot carry this model: rope_type {kind!r} is not known here; "
            f"{', '.join(('default', *scalings))} would be"
        )
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise TsugikiError(
            f"llama.cpp cannot carry this model: partial_rotary_factor is {parameters['partial_rotary_factor']}"
        )
    base: dict[str, Setting] = {"rope.freq_base": float(parameters["rope_theta"])}
    if kind == "linear":
        base |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(parameters["factor"])}
    return base


def _only(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a model whose layers all rotate alike."""
    return next(iter(parameters.values())) if "rope_type" not in parameters else parameters


def _refuse_other_scale(config: Config) -> None:
    """llama.cpp knows the scale of Gemma's attention from the number of layers."""
    large = config.num_hidden_layers == ARCHITECTURES[config.model_type].layers_of_27b
    scale = config.hidden_size // config.num_attention_heads if large else _head(config)
    if config.query_pre_attn_scalar != scale:
        raise TsugikiError(
            f"llama.cpp cannot carry this model: query_pre_attn_scalar is {config.query_pre_attn_scalar}, and it "
            f"computes with {scale}"
        )


def _refuse_other_pattern(config: Config, period: int) -> None:
    """llama.cpp takes every layer of Gemma but the last of each period as a sliding one."""
    expected = [
        "full_attention" if (layer + 1) % period == 0 else "sliding_attention"
        for layer in range(config.num_hidden_layers)
    ]
    if list(config.layer_types) != expected:
        raise TsugikiError(
            f"llama.cpp cannot carry this model: layer_types are not {period - 1} sliding layers before each full one"
        )


_SILU: Mapping[str, tuple[Any, ...]] = {"hidden_act": ("silu",)}

GGUF_ARCHITECTURES: Mapping[str, GgufArchitecture] = MappingProxyType(
    {
        row.name: row
        for row in (
            GgufArchitecture(
                "gpt2",
                _gpt2,
                {
                    "activation_function": _GELU_TANH,
                    "scale_attn_weights": (True,),
                    "scale_attn_by_inverse_layer_idx": (False,),
                    "add_cross_attention": (False,),
                },
                _gpt2_tensor,
            ),
            GgufArchitecture("llama", _llama, _SILU, _llama_tensor, _llama_more),
            GgufArchitecture("qwen2", _qwen, {**_SILU, "use_sliding_window": (False,)}),
            GgufArchitecture("qwen3", _qwen, {**_SILU, "use_sliding_window": (False,), "attention_bias": (False,)}),
            GgufArchitecture(
                "gemma",
                _gemma,
                {"hidden_act": _GELU_TANH, "attention_bias": (False,)},
                _gemma_tensor,
                own_head=False,
            ),
            GgufArchitecture(
                "gemma2",
                _gemma2,
                {"hidden_activation": _GELU_TANH, "attention_bias": (False,)},
                _gemma_tensor,
                own_head=False,
            ),
            GgufArchitecture(
                "gemma3",
                _gemma3,
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
)
"""llama.cpp's name of an architecture -> its row."""
