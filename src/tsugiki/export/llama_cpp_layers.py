"""The names and row orders that llama.cpp uses for the layers of a model.

llama.cpp calls `model.layers.0.self_attn.q_proj` `blk.0.attn_q`, and it stores the rows of some weights in another
order than transformers:

- Llama family: the two rows that rotary embedding rotates together are half a head apart in transformers, and adjacent
  in llama.cpp.
- Fused query, key and value of each head: llama.cpp has the queries of all heads first, then all keys, then all values.

- Qwen 3.5's linear attention: several heads of values share a head of keys. In transformers the heads that share one
  are adjacent; llama.cpp has the first head of every key, then the second ones. The columns of the layer that reads the
  heads, `out_proj`, change their order in the same way.

B of a LoRA pair has the same rows as its weight, and A the same columns, so they change their order as well.

The names are those of the `gguf` package. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tsugiki.annotations import PretrainedConfig, PreTrainedModel
from tsugiki.base.gguf.file import llama_cpp_names
from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.model.architectures import ARCHITECTURES, architecture_of, model_type
from tsugiki.model.linear import is_linear
from tsugiki.model.ungrafted import base_modules, output_head

RowOrder: TypeAlias = Callable[[PretrainedConfig, int], Tensor]
"""(config, number of rows) -> for each row of llama.cpp's weight, the index of that row in transformers' weight."""

TOKEN_EMBEDDING, OUTPUT_HEAD = "token_embd", "output"

# llama.cpp uses every other tensor, such as the position embedding, without looking for an adapter.
_ADAPTABLE = re.compile(
    r"blk\.\d+\.(attn_(q|k|v|qkv|output|gate)|ffn_(gate|up|down)"
    r"|shortconv\.(in|out)_proj|ssm_(alpha|beta|out)|inp_gate|proj)"
    rf"|{TOKEN_EMBEDDING}|{OUTPUT_HEAD}"
)


def _interleaved(heads: str) -> RowOrder:
    """Return the order that interleaves the two halves of each head, so that rows that rotate together are adjacent.

    `heads` is the config's field with the number of heads.
    """

    def order(config: PretrainedConfig, rows: int) -> Tensor:
        return torch.arange(rows).view(getattr(config, heads), 2, -1).transpose(1, 2).reshape(-1)

    return order


def _fused_heads(config: PretrainedConfig, rows: int) -> Tensor:
    """Return the order from (query, key, value) of each head to all queries, all keys, all values."""
    return torch.arange(rows).view(config.num_attention_heads, 3, -1).transpose(0, 1).reshape(-1)


def _fused_groups(config: PretrainedConfig, rows: int) -> Tensor:
    """Return the order from (queries, one key, one value) of each group of heads to all queries, keys, values."""
    heads = config.num_attention_heads
    key_value_heads = 1 if config.multi_query else heads
    groups = config.num_kv_heads if config.new_decoder_architecture else key_value_heads
    grouped = torch.arange(rows).view(groups, heads // groups + 2, -1)
    return torch.cat([grouped[:, :-2].reshape(-1), grouped[:, -2].reshape(-1), grouped[:, -1].reshape(-1)])


def _tiled(config: PretrainedConfig, entries: int) -> Tensor:
    """Return the order from the value heads of each key head to the first head of each, the second, and so on."""
    key_heads = config.linear_num_key_heads
    heads = torch.arange(entries).view(key_heads, config.linear_num_value_heads // key_heads, -1)
    return heads.transpose(0, 1).reshape(-1)


def _tiled_values(config: PretrainedConfig, rows: int) -> Tensor:
    """Return the order of queries, keys and values in one layer: that of the values changes."""
    keys = 2 * config.linear_num_key_heads * config.linear_key_head_dim
    return torch.cat([torch.arange(keys), keys + _tiled(config, rows - keys)])


_LLAMA_ORDERS = {"q_proj": _interleaved("num_attention_heads"), "k_proj": _interleaved("num_key_value_heads")}

_ROW_ORDERS: Mapping[str, Mapping[str, RowOrder]] = {
    "llama": _LLAMA_ORDERS,
    "granite": _LLAMA_ORDERS,
    "smollm3": _LLAMA_ORDERS,
    "gptneox": {"query_key_value": _fused_heads},
    "bloom": {"query_key_value": _fused_heads},
    "falcon": {"query_key_value": _fused_groups},
    "qwen35": {"in_proj_qkv": _tiled_values, **dict.fromkeys(("in_proj_z", "in_proj_b", "in_proj_a"), _tiled)},
}
"""llama.cpp's architecture -> last part of a layer's name -> its row order. All other layers keep transformers' order.

A test verifies each architecture against llama.cpp.
"""
_COLUMN_ORDERS: Mapping[str, Mapping[str, RowOrder]] = {"qwen35": {"out_proj": _tiled}}
"""The same for the columns of a weight."""


def llama_cpp_architecture(model: nn.Module) -> str:
    """Return llama.cpp's name for the architecture of a model."""
    architecture = architecture_of(model)
    if architecture is None or architecture.llama_cpp is None:
        known = [name for name, row in ARCHITECTURES.items() if row.llama_cpp is not None]
        raise TsugikiError(
            "the layout of {name} in llama.cpp is not known here; known architectures: {known}",
            name=model_type(model),
            known=", ".join(known),
        )
    return architecture.llama_cpp


def gguf_names(model: PreTrainedModel) -> dict[str, str]:
    """Map each layer that llama.cpp can adapt to its name in GGUF, without `.weight`."""
    return {path: name for path, name in layer_names(model).items() if _ADAPTABLE.fullmatch(name)}


def unsupported_reason(model: PreTrainedModel, path: str) -> str:
    """Return why llama.cpp cannot adapt a layer that is not in `gguf_names`, as a relative clause."""
    layers = dict(base_modules(model))
    if path not in layers:
        return _("which the base does not have")
    if not is_linear(layers[path]) and not isinstance(layers[path], nn.Embedding):
        return _("which is a {kind}", kind=type(layers[path]).__name__)
    names = layer_names(model)
    if path not in names:
        return _("whose weight is shared by the token embedding and the output head")
    name = names[path] or _("it has no name for this layer")
    return _("whose adapter llama.cpp ignores ({name})", name=name)


def layer_names(model: PreTrainedModel) -> dict[str, str]:
    """Map every linear layer and embedding to its name in GGUF, without `.weight`, or to "" if it has none.

    An embedding and a head that share a weight are left out.
    """
    layers = {
        f"{path}.weight": layer
        for path, layer in base_modules(model)
        if is_linear(layer) or isinstance(layer, nn.Embedding)
    }
    names = llama_cpp_names(llama_cpp_architecture(model), model.config.num_hidden_layers, layers)
    head = output_head(model)
    head_is_known = any(layer is head for name, layer in layers.items() if name in names)  # Gemma's head has no name
    is_tied = model.config.tie_word_embeddings or not head_is_known
    tied = {id(model.get_input_embeddings()), id(head)} if is_tied else set()
    return {
        name.removesuffix(".weight"): names.get(name, "").removesuffix(".weight")
        for name, layer in layers.items()
        if id(layer) not in tied
    }


def in_llama_cpp_order(model: PreTrainedModel, path: str, B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of a layer, B [rows, r] and A [r, columns], in the order of llama.cpp's weight."""
    architecture, layer = llama_cpp_architecture(model), path.rpartition(".")[2]
    rows = _ROW_ORDERS.get(architecture, {}).get(layer)
    columns = _COLUMN_ORDERS.get(architecture, {}).get(layer)
    return (
        B if rows is None else B[rows(model.config, len(B))],
        A if columns is None else A[:, columns(model.config, A.shape[1])],
    )
