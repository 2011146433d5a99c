"""How llama.cpp names and orders the layers of a model, for each architecture that is known here.

`model.layers.0.self_attn.q_proj` is `blk.0.attn_q` there, and the rows of some weights stand in another order: rows
that rotate together are half a head apart in transformers, and neighbours there (the `llama` family); where queries,
keys and values of one head stand together, all queries come first there. B of a pair has the rows of its weight.

The names are the `gguf` package's. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tsugiki.architectures import ARCHITECTURES, architecture_of, model_type
from tsugiki.base.gguf.names import llama_cpp_names
from tsugiki.errors import TsugikiError
from tsugiki.lora.frozen_layer import is_linear
from tsugiki.lora.targets import base_modules, output_head

RowOrder: TypeAlias = Callable[[Any, int], Tensor]
"""A model's config and the rows of a weight -> for each row of llama.cpp's weight, which row of transformers' it is."""

TABLE, HEAD = "token_embd", "output"
"""The table of embeddings and the output head."""
# All others, such as a table of positions, llama.cpp uses without asking for an adapter.
_ADAPTED = re.compile(rf"blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down))|{TABLE}|{HEAD}")


def neighbours(heads: str) -> RowOrder:
    """Rows that rotate together beside each other; `heads` names the config's number of them."""

    def order(config: Any, rows: int) -> Tensor:
        return torch.arange(rows).view(getattr(config, heads), 2, -1).transpose(1, 2).reshape(-1)

    return order


def _kinds_apart(config: Any, rows: int) -> Tensor:
    """All queries, all keys, all values, from the three of each head."""
    return torch.arange(rows).view(config.num_attention_heads, 3, -1).transpose(0, 1).reshape(-1)


def _groups_apart(config: Any, rows: int) -> Tensor:
    """The same, from groups of queries with one key and one value."""
    heads = config.num_attention_heads
    one = 1 if config.multi_query else heads
    groups = config.num_kv_heads if config.new_decoder_architecture else one
    grouped = torch.arange(rows).view(groups, heads // groups + 2, -1)
    return torch.cat([grouped[:, :-2].reshape(-1), grouped[:, -2].reshape(-1), grouped[:, -1].reshape(-1)])


_ROTATED = {"q_proj": neighbours("num_attention_heads"), "k_proj": neighbours("num_key_value_heads")}

_ROW_ORDERS: Mapping[str, Mapping[str, RowOrder]] = MappingProxyType(
    {
        "llama": _ROTATED,
        "granite": _ROTATED,
        "smollm3": _ROTATED,
        "gptneox": {"query_key_value": _kinds_apart},
        "bloom": {"query_key_value": _kinds_apart},
        "falcon": {"query_key_value": _groups_apart},
    }
)
"""llama.cpp's architecture -> last part of a layer's name -> the order of its rows; all other layers keep theirs.

Every architecture is held to llama.cpp itself by a test.
"""


def llama_cpp_architecture(model: nn.Module) -> str:
    """llama.cpp's name for the architecture of this model.

    Raises:
        TsugikiError: none that is known here.
    """
    architecture = architecture_of(model)
    if architecture is None or architecture.llama_cpp is None:
        known = [name for name, row in ARCHITECTURES.items() if row.llama_cpp is not None]
        raise TsugikiError(
            f"{model_type(model)} is not among the architectures whose layout in llama.cpp is known here: "
            f"{', '.join(known)}"
        )
    return architecture.llama_cpp


def gguf_names(model: Any) -> dict[str, str]:
    """Layer -> its name in GGUF, without `.weight`, for every layer of which llama.cpp computes an adapter.

    Raises:
        TsugikiError: an architecture that is not known here.
    """
    return {path: name for path, name in _all_names(model).items() if _ADAPTED.fullmatch(name)}


def unsupported_reason(model: Any, path: str) -> str:
    """Why llama.cpp computes no adapter of this layer, which is not among `gguf_names`.

    Raises:
        TsugikiError: an architecture that is not known here.
    """
    layers = dict(base_modules(model))
    if path not in layers:
        return "which the base does not have"
    if not is_linear(layers[path]) and not isinstance(layers[path], nn.Embedding):
        return f"which is a {type(layers[path]).__name__}"
    if path not in _all_names(model):
        return "which is one tensor with the output head or the table of embeddings"
    return f"whose adapter llama.cpp passes over ({_all_names(model)[path] or 'no tensor of that name'})"


def _all_names(model: Any) -> dict[str, str]:
    """Every linear layer and embedding, those that share their tensor with another left out; "" for an unknown name."""
    layers = {
        f"{path}.weight": layer
        for path, layer in base_modules(model)
        if is_linear(layer) or isinstance(layer, nn.Embedding)
    }
    names = llama_cpp_names(llama_cpp_architecture(model), model.config.num_hidden_layers, layers)
    head = output_head(model)
    known = any(layer is head for name, layer in layers.items() if name in names)  # Gemma's has no name there
    tied = model.config.tie_word_embeddings or not known
    shared = {id(model.get_input_embeddings()), id(head)} if tied else set()
    return {
        name.removesuffix(".weight"): names.get(name, "").removesuffix(".weight")
        for name, layer in layers.items()
        if id(layer) not in shared
    }


def row_order(model: Any, path: str, rows: int) -> Tensor | None:
    """For each row of a layer's weight in llama.cpp, which row of transformers' it is; None where all are the same.

    Raises:
        TsugikiError: an architecture that is not known here.
    """
    order = _ROW_ORDERS.get(llama_cpp_architecture(model), {}).get(path.rpartition(".")[2])
    return None if order is None else order(model.config, rows)
