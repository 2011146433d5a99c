"""Export adapters and models to GGUF, and predict which other programs can load an adapter."""

from typing import Literal, TypeAlias

Loader: TypeAlias = Literal["llama.cpp", "ollama", "peft", "vllm"]
"""A program that loads adapters: llama.cpp and Ollama from a GGUF file, PEFT and vLLM from the adapter's folder."""
