"""Which layers and modules of a model get adapters by default: a rule of some conditions, and tables of words.

A linear layer gets LoRA factors if it

1. is in a block: inside an item of an outermost list of modules that hold linear layers;
2. has an effect on the logits of a text: it is not in an image or sound encoder, in an indexer that only selects
   positions, or in the cross-attention of a decoder without an encoder;
3. is no router, whose outputs, one for each expert, are only compared with each other;
4. is used only by calling it, because factors of a layer whose weight is read elsewhere would not train;
5. has at least eight inputs and outputs: a pair of factors for fewer would not be smaller than the layer;
6. is not behind a fused kernel: of a state-space mixer only the first layer is listed, since the kernels on a GPU read
   the weights of the others directly.

Conditions 2 to 4 are words in the names of layers, and so are attention and feed-forward networks for (IA)³ and
bottleneck adapters. A walk over all types of transformers compares the layers with those that a forward and a backward
pass show (docs/models.md), so a type that needs another word is found there. What no word can tell is a row in
`model.architectures`.
"""

import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tsugiki.language import _
from tsugiki.model.context import decoder_of
from tsugiki.model.linear import features, is_linear
from tsugiki.model.ungrafted import base_modules, with_first_names

_FEWEST_FEATURES = 8
_NO_EFFECT = re.compile(
    r"(.*\.)?(vision_tower|image_encoder|image_embed|audio_embed|indexer|patcher|reformer|\w+_global)(\..*)?"
)
"""Encoders inside the decoder, indexers, attention that only marked tokens have (LED), and Reformer, whose reversible
layers compute no gradients if the embeddings are frozen."""
_CROSS_ATTENTION = re.compile(r"(.*\.)?(encoder_attn|cross_attn)\..*")
_ROUTER = re.compile(r"(.*\.)?(router|gate\.wg|router_mlp\.out_proj)(\..*)?")
_READ_ELSEWHERE = re.compile(r".*\.altup\.correction_coefs")
_MIXER_PARAMETERS = {"A_log", "D"}
"""Decay and skip of a state-space mixer, by Mamba's names."""

_KEYS_AND_VALUES = re.compile(
    r".*\b(c_attn|query_key_value|qkv_proj|Wqkv|kv_proj|kv_a_proj_with_mqa|kv_b_proj|W[kv]|[kv]_lin|project_[kv]|"
    r"(relative_)?k_proj(\.linear)?|v_proj(_current|_delayed|\.linear)?|"
    r"\w*[Aa]tt\w*\.(self\.)?(key|value|[kv]|key_proj|value_proj))"
)
_FEEDFORWARD_ENDS = re.compile(
    r"(?!.*gate\.)(.*\.)?(down_proj|proj_down|fc2|fc_out|dense_4h_to_h|mlp\.c_proj|w2|w_out|wo|mlp\.Wo|lin2|linear2|"
    r"ffn\.2|ff\.layer_2|output_dense|output_linear|dense2|(?<!attention\.)output\.dense|feed_forward\.(value|output))"
)
_ATTENTION = re.compile(
    r"((layer|self_att|norm_attn_norm|mamba_decoder)(\.\d+)?\.)?((self_|encoder_|cross_|linear_)?attn(\.\d+)?|"
    r"(self_|cross_|multi_head_|cross)?attention|(Local)?SelfAttention|EncDecAttention|"
    r"mixer|mamba|conv|temporal_block|mlstm_layer|o_proj|out_lin)"
)
_FEEDFORWARD = re.compile(
    r"(layer\.\d+\.)?(mlp|mlps\.\d+|feed_forward\d?|ffn|ff|block_sparse_moe|shared_mlp|mlp_block|DenseReluDense|"
    r"fc2|lin2|output\.dense)"
)
_ENDS_BEFORE_RESIDUAL = ("output.dense", "ffn", "layer_2")
"""The last parts of modules that add the residual to the output of these parts themselves."""
_ENDS_BEFORE_ARGUMENT = ("dense", "dense_4h_to_h", "down_proj")
"""The last layers of modules that get the residual as an argument and add it themselves (BLOOM, MPT)."""


@dataclass(frozen=True)
class Sublayers:
    """Names of layers and modules, in the model before any graft."""

    keys_and_values: list[str]
    """The layers whose outputs are keys or values of attention; a layer may compute queries as well."""
    feedforward_ends: list[str]
    """The last layer of each feed-forward network."""
    attention: list[str]
    """The modules whose output is what attention, or another mixer of tokens, adds to the residual stream."""
    feedforward: list[str]
    """The modules whose output is what a feed-forward network adds to the residual stream."""


def default_layers(model: nn.Module) -> list[str]:
    """Return the names of the linear layers on which the rule puts adapters, in the order of the model's modules."""
    return [name for name, reason in reasons_against(model).items() if not reason]


def reasons_against(model: nn.Module) -> dict[str, str]:
    """Return, for each linear layer, a short reason why no adapter is put on it; an empty string if one is put on it.

    The keys are the layers' names in the model before any graft.
    """
    modules = with_first_names(dict(base_modules(model)))
    blocks = _blocks_of(modules)
    has_encoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    inside = "" if has_encoder else _decoder_prefix(model, modules, blocks)

    def reason(name: str, layer: nn.Module) -> str:
        owner, _dot, last = name.rpartition(".")
        block = blocks.get(name)
        if block is None or block == name:
            return _("outside of the blocks")
        if not name.startswith(inside) or _NO_EFFECT.fullmatch(name):
            return _("no effect on the logits of a text")
        if not has_encoder and (_CROSS_ATTENTION.fullmatch(name) or _reads_only_images(modules[block])):
            return _("no effect on the logits of a text")
        if _ROUTER.fullmatch(name) or (last == "gate" and "experts" in modules[owner]._modules):
            return "router"
        if _READ_ELSEWHERE.fullmatch(name):
            return _("its weight is read without calling the layer")
        if min(features(layer)) < _FEWEST_FEATURES:
            return _("fewer than {count} inputs or outputs", count=_FEWEST_FEATURES)
        if modules[owner]._parameters.keys() >= _MIXER_PARAMETERS and last != "in_proj":
            return _("its weight is read by a fused kernel on GPUs")
        return ""

    return {name: reason(name, layer) for name, layer in modules.items() if is_linear(layer)}


def sublayers_of(model: nn.Module) -> Sublayers:
    """Return the layers and modules on which (IA)³ and bottleneck adapters are put."""
    modules, layers = with_first_names(dict(base_modules(model))), default_layers(model)
    ends = [name for name in layers if _FEEDFORWARD_ENDS.fullmatch(name)]
    attention: list[str] = []
    feedforward: list[str] = []
    for name, kind in _outermost(modules, layers):
        # Nemotron-H calls attention, state-space mixers and feed-forward networks by one name.
        mixes = kind is _ATTENTION and not (name.endswith(".mixer") and _holds(name, modules, ends))
        (attention if mixes else feedforward).append(_before_residual(name, modules))
    keys_and_values = [name for name in layers if _KEYS_AND_VALUES.fullmatch(name)]
    return Sublayers(keys_and_values, ends, attention, feedforward)


def _outermost(modules: Mapping[str, nn.Module], layers: Collection[str]) -> Iterator[tuple[str, re.Pattern[str]]]:
    """Yield the outermost modules in blocks that are called as attention or feed-forward networks, with the words."""
    blocks, before = _blocks_of(modules), "\n"
    for name in modules:
        block = blocks.get(name)
        if block is None or name.startswith(before):
            continue
        kind = next((one for one in (_ATTENTION, _FEEDFORWARD) if one.fullmatch(name[len(block) + 1 :])), None)
        if kind is None or isinstance(modules[name], nn.ModuleList) or _NO_EFFECT.fullmatch(name):
            continue
        if _holds(name, modules, layers):
            before = f"{name}."
            yield name, kind


def _before_residual(name: str, modules: Mapping[str, nn.Module]) -> str:
    """Return the name of a module; if it adds the residual itself, that of its last part before the addition."""
    takes_residual = "residual" in inspect.signature(type(modules[name]).forward).parameters
    ends = _ENDS_BEFORE_RESIDUAL + takes_residual * _ENDS_BEFORE_ARGUMENT
    return next((f"{name}.{end}" for end in ends if f"{name}.{end}" in modules), name)


def _holds(name: str, modules: Mapping[str, nn.Module], layers: Collection[str]) -> bool:
    """Return whether a module is or has one of these layers, or has experts in one parameter."""
    return any(layer == name or layer.startswith(f"{name}.") for layer in layers) or any(
        weight.dim() == 3
        for part in modules[name].modules()
        if not isinstance(part, nn.modules.conv._ConvNd)
        for weight in part._parameters.values()
        if weight is not None
    )


def _blocks_of(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return, for each module in a block or that is one, the name of the block.

    Blocks are the items of the outermost lists with an item that contains linear layers and is not itself one.
    """
    blocks: dict[str, str] = {}
    outer = "\n"
    for name, module in modules.items():  # a list comes before its items
        if name.startswith(outer):
            blocks[name] = outer + name[len(outer) :].partition(".")[0]
        elif isinstance(module, nn.ModuleList | nn.Sequential) and any(map(_holds_linear, module)):
            outer = f"{name}."
    return blocks


def _holds_linear(item: nn.Module) -> bool:
    return not is_linear(item) and any(map(is_linear, item.modules()))


def _decoder_prefix(model: Any, modules: Mapping[str, nn.Module], blocks: Collection[str]) -> str:
    """Return how the names of modules in the decoder of a text begin; empty if it is not known to hold the blocks."""
    decoder = decoder_of(model)
    prefix = next((f"{name}." for name, module in modules.items() if module is decoder), "")
    return prefix if any(name.startswith(prefix) for name in blocks) else ""


def _reads_only_images(block: nn.Module) -> bool:
    """Return whether a block of a decoder without an encoder has cross-attention alone, and is left out for a text."""
    return "cross_attn" in block._modules and "self_attn" not in block._modules
