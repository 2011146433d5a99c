"""GGUF files compared with llama.cpp."""
