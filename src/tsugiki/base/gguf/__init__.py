"""A GGUF file as a base model."""
