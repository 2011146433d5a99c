"""A GGUF file as a base model: its header (`file`), what Transformers makes of it (`model`, `tokenizer`), the cache."""
