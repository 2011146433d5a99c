"""Models that a benchmark can run: random weights of a known shape, or any model that Tsugiki loads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tsugiki.annotations import PretrainedConfig, PreTrainedModel
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.base.resolve import EMBEDDED, local_folder
from tsugiki.errors import TsugikiError


@dataclass(frozen=True)
class Shape:
    """The sizes of a known model. Its weights are random, which affects neither speed nor memory."""

    summary: str
    model_type: str
    settings: Mapping[str, Any]
    """Config values that differ from the architecture's defaults."""


_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings",
)  # fmt: skip


def _sizes(*values: int) -> dict[str, Any]:
    """Return the config values of a model with grouped queries; the order is that of `_SIZES`."""
    return dict(zip(_SIZES, values, strict=True))


SHAPES: Mapping[str, Shape] = {
    "gpt2-small": Shape("GPT-2 small: 124M parameters, 12 layers, width 768", "gpt2", {}),
    "rinna-medium": Shape(
        "rinna/japanese-gpt2-medium, the chapter's base: 336M parameters, 24 layers, width 1,024",
        "gpt2",
        {"n_layer": 24, "n_embd": 1024, "n_head": 16, "vocab_size": 32_000, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "smollm2-135m": Shape(
        "SmolLM2 135M: a Llama with 30 layers, width 576, vocabulary 49,152",
        "llama",
        {**_sizes(49_152, 576, 1536, 30, 9, 3, 8192), "tie_word_embeddings": True},
    ),
    "gemma3-270m": Shape(
        "Gemma 3 270M: 268M parameters, 18 layers, width 640, vocabulary 262,144",
        "gemma3_text",
        {**_sizes(262_144, 640, 2048, 18, 4, 1, 32_768), "head_dim": 256, "sliding_window": 512},
    ),
    "qwen2.5-0.5b": Shape(
        "Qwen2.5 0.5B: 24 layers, width 896, vocabulary 151,936",
        "qwen2",
        {**_sizes(151_936, 896, 4864, 24, 14, 2, 32_768), "tie_word_embeddings": True},
    ),
    "tinyllama-1.1b": Shape(
        "TinyLlama 1.1B: a Llama with 22 layers, width 2,048, vocabulary 32,000",
        "llama",
        _sizes(32_000, 2048, 5632, 22, 32, 4, 2048),
    ),
    "qwen3-1.7b": Shape(
        "Qwen3 1.7B: 28 layers, width 2,048, vocabulary 151,936",
        "qwen3",
        {**_sizes(151_936, 2048, 6144, 28, 16, 8, 40_960), "head_dim": 128, "tie_word_embeddings": True},
    ),
}


def read_model_config(name: str) -> PretrainedConfig:
    """Return the config of a key of `SHAPES`, a model folder, a GGUF file or a hub id, without loading weights."""
    from transformers import AutoConfig

    if name in SHAPES:
        return AutoConfig.for_model(SHAPES[name].model_type, **SHAPES[name].settings)
    try:
        load_tokenizer(name)  # its errors explain every kind of invalid name
    except TsugikiError as error:
        raise TsugikiError(f"{error}; known shapes are {', '.join(SHAPES)}") from error
    return AutoConfig.from_pretrained(local_folder(name) or name)


def build(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model in the given dtype and in training mode, with all weights in memory instead of memory-mapped."""
    from transformers import AutoModelForCausalLM

    if name in SHAPES:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(read_model_config(name), dtype=dtype)
        model.name_or_path = model.config._name_or_path = name
    else:
        model = load_model(name).to(dtype)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0)  # copies the pages that are mapped from the file
    return model.train()


def known_models() -> dict[str, str]:
    """Return the accepted model names, with a description of each."""
    return {name: shape.summary for name, shape in SHAPES.items()} | {
        EMBEDDED: "the base model that Tsugiki contains",
        "FOLDER or HUB/ID": "any model that Tsugiki loads",
    }
