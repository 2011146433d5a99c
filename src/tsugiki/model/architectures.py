"""Properties of model types of transformers that cannot be derived from the model: one row for each type.

The layers to adapt are found by a rule (`tsugiki.model.targets_by_rule`), so a model type needs a row only for an
exception, or for its name in llama.cpp.

This module imports only the standard library, so that every package may import it.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """The row of one model type.

    Layer names are the ends of full module names: `mlp.c_proj` selects every `….mlp.c_proj`.
    """

    target_modules: tuple[str, ...] | None = None
    """Layers that get LoRA factors when the config names none. None: the layers that the rule finds."""
    ia3_outputs: tuple[str, ...] | None = None
    """Layers whose output (IA)³ scales when the config names none. None: the layers of keys and values, which the rule
    finds."""
    llama_cpp: str | None = None
    """llama.cpp's name for the architecture (`general.architecture` in a GGUF file); None: it cannot be exported."""
    layers_of_27b: int | None = None
    """Gemma 2 and 3: the number of layers of the 27B model, which scales its attention scores differently."""


_QUERIES_VALUES = ("q_proj", "v_proj")
_QKV = ("q_proj", "k_proj", "v_proj")

ARCHITECTURES: Mapping[str, Architecture] = {
    "gpt2": Architecture(llama_cpp="gpt2"),
    # Where (IA)³ scales queries in place of keys or values, it follows PEFT's table.
    "gpt_neo": Architecture(ia3_outputs=_QUERIES_VALUES),
    "gptj": Architecture(ia3_outputs=_QUERIES_VALUES),
    "gpt_neox": Architecture(llama_cpp="gptneox"),
    "bloom": Architecture(llama_cpp="bloom"),
    "falcon": Architecture(llama_cpp="falcon"),
    "opt": Architecture(ia3_outputs=("q_proj", "k_proj")),
    "phi": Architecture(ia3_outputs=_QUERIES_VALUES, llama_cpp="phi2"),
    "phi3": Architecture(llama_cpp="phi3"),
    "llama": Architecture(llama_cpp="llama"),
    "mistral": Architecture(llama_cpp="llama"),
    "qwen2": Architecture(ia3_outputs=_QUERIES_VALUES, llama_cpp="qwen2"),
    "qwen3": Architecture(ia3_outputs=_QUERIES_VALUES, llama_cpp="qwen3"),
    "gemma": Architecture(ia3_outputs=_QUERIES_VALUES, llama_cpp="gemma"),
    "gemma2": Architecture(ia3_outputs=_QUERIES_VALUES, llama_cpp="gemma2", layers_of_27b=46),
    "gemma3_text": Architecture(ia3_outputs=_QUERIES_VALUES, llama_cpp="gemma3", layers_of_27b=62),
    "granite": Architecture(llama_cpp="granite"),
    "cohere": Architecture(llama_cpp="command-r"),
    "olmo2": Architecture(llama_cpp="olmo2"),
    "smollm3": Architecture(llama_cpp="smollm3"),
    "gemma4_text": Architecture(llama_cpp="gemma4"),
    "lfm2": Architecture(llama_cpp="lfm2"),
    "qwen3_5_text": Architecture(llama_cpp="qwen35"),
    # Without the adapters that are a part of the base: each block holds those of all blocks, and calls one of them.
    "zamba2": Architecture(
        target_modules=("in_proj", "linear", *_QKV, "o_proj", "gate_up_proj", "down_proj"),
    ),
}
"""`model_type` of transformers -> its row."""


def architecture_of(model: object) -> Architecture | None:
    """Return the row for a model, or None if its model type has none."""
    return ARCHITECTURES.get(model_type(model))


def model_type(model: object) -> str:
    """Return `model.config.model_type`, or the name of the model's class if it has no config with a model type."""
    return str(getattr(getattr(model, "config", None), "model_type", None) or type(model).__name__)
