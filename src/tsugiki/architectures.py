"""What Tsugiki knows about each model architecture: one row per `model_type` of transformers.

A row is plain data and lists only what differs from the most common architecture, Llama's, whose values are the
defaults of `Architecture`. A model type without a row still works: `tsugiki.lora.structure` finds the layers for LoRA.

    architecture_of(model).feedforward      # "mlp" for a Llama

This module imports nothing, so that every package may import it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Architecture:
    """The layer names of one model type. The defaults are those of Llama.

    Layer names are the ends of full module names: `mlp.c_proj` selects every `….mlp.c_proj`.
    """

    target_modules: tuple[str, ...] | None = None
    """Layers that get LoRA factors when the config names none. None: those that `tsugiki.lora.structure` finds."""
    ia3_outputs: tuple[str, ...] = ("k_proj", "v_proj")
    """Layers whose output (IA)³ scales when the config names none: the keys and the values."""
    ia3_inputs: tuple[str, ...] = ("down_proj",)
    """Layers whose input (IA)³ scales: the last layer of each feed-forward network."""
    attention: str = "self_attn"
    """The module that returns the attention's output, before the residual is added."""
    feedforward: str = "mlp"
    """The module that returns the feed-forward network's output, before the residual is added."""
    llama_cpp: str | None = None
    """llama.cpp's name for the architecture (`general.architecture` in a GGUF file); None: it cannot be exported."""
    layers_of_27b: int | None = None
    """Gemma 2 and 3: the number of layers of the 27B model, which scales its attention scores differently."""


_QUERIES_VALUES = ("q_proj", "v_proj")
_GPT2 = ("c_attn", "c_proj")
"""The two names that guides for GPT-2 give. `c_proj` is the last layer of the attention and of the feed-forward
network; the first layer of the latter, `c_fc`, is left out."""

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "gpt2": Architecture(
            target_modules=_GPT2,
            ia3_outputs=("c_attn",),
            ia3_inputs=("mlp.c_proj",),
            attention="attn",
            llama_cpp="gpt2",
        ),
        "gpt_bigcode": Architecture(
            target_modules=_GPT2,
            ia3_outputs=("c_attn",),
            ia3_inputs=("mlp.c_proj",),
            attention="attn",
        ),
        # Where (IA)³ scales queries in place of keys, it follows PEFT's table.
        "gpt_neo": Architecture(
            ia3_outputs=_QUERIES_VALUES,
            ia3_inputs=("c_proj",),
            attention="attn",
        ),
        "gptj": Architecture(
            ia3_outputs=_QUERIES_VALUES,
            ia3_inputs=("fc_out",),
            attention="attn",
        ),
        "gpt_neox": Architecture(
            ia3_outputs=("query_key_value",),
            ia3_inputs=("dense_4h_to_h",),
            attention="attention",
            llama_cpp="gptneox",
        ),
        "bloom": Architecture(
            ia3_outputs=("query_key_value",),
            ia3_inputs=("mlp.dense_4h_to_h",),
            # BLOOM's attention and mlp modules add the residual themselves; their last layers do not.
            attention="self_attention.dense",
            feedforward="mlp.dense_4h_to_h",
            llama_cpp="bloom",
        ),
        "falcon": Architecture(
            ia3_outputs=("query_key_value",),
            ia3_inputs=("dense_4h_to_h",),
            attention="self_attention",
            llama_cpp="falcon",
        ),
        "opt": Architecture(
            ia3_outputs=("q_proj", "k_proj"),
            ia3_inputs=("fc2",),
            feedforward="fc2",
        ),
        "phi": Architecture(
            ia3_outputs=_QUERIES_VALUES,
            ia3_inputs=("fc2",),
            llama_cpp="phi2",
        ),
        "phi3": Architecture(
            ia3_outputs=("qkv_proj",),
            llama_cpp="phi3",
        ),
        "llama": Architecture(llama_cpp="llama"),
        "mistral": Architecture(llama_cpp="llama"),
        "ministral": Architecture(),
        "qwen2": Architecture(ia3_outputs=_QUERIES_VALUES, llama_cpp="qwen2"),
        "qwen3": Architecture(ia3_outputs=_QUERIES_VALUES, llama_cpp="qwen3"),
        "gemma": Architecture(ia3_outputs=_QUERIES_VALUES, llama_cpp="gemma"),
        "gemma2": Architecture(ia3_outputs=_QUERIES_VALUES, llama_cpp="gemma2", layers_of_27b=46),
        "gemma3_text": Architecture(ia3_outputs=_QUERIES_VALUES, llama_cpp="gemma3", layers_of_27b=62),
        "granite": Architecture(llama_cpp="granite"),
        "cohere": Architecture(llama_cpp="command-r"),
        "olmo2": Architecture(llama_cpp="olmo2"),
        "smollm3": Architecture(llama_cpp="smollm3"),
    }
)
"""`model_type` of transformers -> its row."""


def architecture_of(model: object) -> Architecture | None:
    """The row for a model, or None for a model type that has none."""
    return ARCHITECTURES.get(model_type(model))


def model_type(model: object) -> str:
    """`model.config.model_type`, or the name of the model's class if it has no such config."""
    return str(getattr(getattr(model, "config", None), "model_type", None) or type(model).__name__)
