"""Load a GGUF file as a base model: it is converted once to a Hugging Face folder in the cache."""
