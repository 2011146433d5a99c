"""Files and what is shown of them: atomic writes, JSON, digests, caches, shards of safetensors, progress."""
