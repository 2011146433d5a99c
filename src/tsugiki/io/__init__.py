"""Files (atomic writes, JSON, digests, caches, safetensors), and text for users (progress, sizes, durations)."""
