"""Export adapters and models to GGUF, and predict which other programs can load an adapter."""

from typing import Literal, TypeAlias

from tsugiki.lazy import lazy_names

Loader: TypeAlias = Literal["llama.cpp", "peft"]
"""A program that loads adapters: llama.cpp from a GGUF file, PEFT from the adapter's folder."""

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "gguf_adapter": "write_gguf_adapter",
        "gguf_architectures": "GGUF_ARCHITECTURES gguf_architecture_of",
        "gguf_model": "export_model merged_model stored_model write_model_gguf",
        "gguf_tokenizer_check": "PROMPTS compare_tokens",
        "gguf_vocabulary": "PRE_TOKENIZERS add_vocabulary read_vocabulary",
        "llama_cpp_layers": "llama_cpp_architecture row_order",
        "loaders": "incompatibilities incompatibilities_before_training llama_cpp_incompatibilities",
        "ollama": "modelfile",
    },
)
