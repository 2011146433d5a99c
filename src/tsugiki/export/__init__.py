"""Export adapters and models to GGUF, and tell which other programs can load an adapter."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "gguf_adapter": "write_gguf_adapter",
        "gguf_architectures": "GGUF_ARCHITECTURES gguf_architecture_of",
        "gguf_model": "export_model merged_model stored_model write_model_gguf",
        "gguf_tokenizer_check": "PROMPTS compare_tokens",
        "gguf_vocabulary": "PRE_TOKENIZERS add_vocabulary read_vocabulary",
        "llama_cpp_layers": "llama_cpp_architecture row_order",
        "loaders": "llama_cpp_incompatibilities",
        "ollama": "modelfile",
    },
)
