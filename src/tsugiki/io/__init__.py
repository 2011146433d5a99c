"""Files (atomic writes, JSON, digests, caches, safetensors shards), and progress, sizes and times shown to users."""
