"""The base model: loading, device and precision, quantised layers, GGUF files."""
