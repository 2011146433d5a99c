"""Models to measure: shapes by name, with random weights, and every model that Tsugiki loads."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tsugiki.base.loading import EMBEDDED, load_model, load_tokenizer, local_folder
from tsugiki.errors import TsugikiError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """A model's sizes; its weights are random, which changes neither speed nor memory."""

    about: str
    model_type: str
    """Of transformers."""
    settings: Mapping[str, Any]
    """Where they differ from the architecture's defaults."""
    float32: bool = True
    """Whether it is small enough to be held in float32."""


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "gpt2-small": Shape("GPT-2 small: 124M weights, 12 layers of 768", "gpt2", {}),
        "rinna-medium": Shape(
            "rinna/japanese-gpt2-medium, the chapter's: 336M weights, 24 layers of 1,024",
            "gpt2",
            {"n_layer": 24, "n_embd": 1024, "n_head": 16, "vocab_size": 32_000},
        ),
        "smollm2-135m": Shape(
            "SmolLM2 135M: a Llama of 30 layers of 576, a vocabulary of 49,152",
            "llama",
            {
                "vocab_size": 49_152,
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "max_position_embeddings": 8192,
                "tie_word_embeddings": True,
            },
        ),
        "qwen3-1.7b": Shape(
            "Qwen3 1.7B: 28 layers of 2,048, a vocabulary of 151,936; bf16 and int8 only",
            "qwen3",
            {
                "vocab_size": 151_936,
                "hidden_size": 2048,
                "intermediate_size": 6144,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "max_position_embeddings": 40_960,
                "tie_word_embeddings": True,
            },
            float32=False,
        ),
    }
)


def read_config(name: str) -> "PretrainedConfig":
    """The config of the model called `name`; nothing but that is loaded.

    Raises:
        TsugikiError: no such model; the message names the shapes that there are.
    """
    from transformers import AutoConfig

    if name in SHAPES:
        return AutoConfig.for_model(SHAPES[name].model_type, **SHAPES[name].settings)
    try:
        load_tokenizer(name)  # says what is wrong with a name, whatever it is
    except TsugikiError as error:
        raise TsugikiError(f"{error}; shapes by name are {', '.join(SHAPES)}") from error
    return AutoConfig.from_pretrained(local_folder(name) or name)


def build(name: str, dtype: "torch.dtype") -> "PreTrainedModel":
    """The model called `name` in a dtype, in training mode; every weight is in memory, not merely mapped.

    Raises:
        TsugikiError: as for `read_config`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if name in SHAPES:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(read_config(name), dtype=dtype)
        model.name_or_path = model.config._name_or_path = name
    else:
        model = load_model(name).to(dtype)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0)  # a copy of a page that the file's mapping shares
    return model.train()


def known_models() -> dict[str, str]:
    """Names, and a line about each."""
    return {name: shape.about for name, shape in SHAPES.items()} | {
        EMBEDDED: "the base that comes with Tsugiki",
        "FOLDER or HUB/ID": "any model that Tsugiki loads",
    }
