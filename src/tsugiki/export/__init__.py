"""Export adapters and models to GGUF, and predict which other programs can load an adapter."""

from typing import Literal, TypeAlias

from tsugiki.lazy import lazy_names

Loader: TypeAlias = Literal["llama.cpp", "ollama", "peft", "vllm"]
"""A program that loads adapters: llama.cpp and Ollama from a GGUF file, PEFT and vLLM from the adapter's folder."""

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "adapter_file": "read_gguf_adapter write_gguf_adapter",
        "architectures": "GGUF_ARCHITECTURES gguf_architecture_of",
        "compatibility": "incompatibilities incompatibilities_before_training llama_cpp_incompatibilities",
        "layout": "llama_cpp_architecture row_order",
        "model": "export_model merged_model stored_model",
        "model_file": "write_model_gguf",
        "ollama": "modelfile",
        "tokens": "PROMPTS compare_tokens",
        "vocabulary": "PRE_TOKENIZERS add_vocabulary read_vocabulary",
    },
)
