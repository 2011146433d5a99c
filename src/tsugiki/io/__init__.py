"""Files (atomic writes, JSON, digests, caches, safetensors), and text for users (progress, sizes, durations)."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "atomic": (
            "check_writable files_into new_file new_folder remove_folder remove_leftovers rename_folder "
            "write_bytes write_text"
        ),
        "cache": "cache_folder folder_size has_entry kept new_entry",
        "digests": (
            "changed_files combined_digest file_sha256 read_chunks read_manifest sha256 sha256_bytes tensor_digest "
            "write_manifest"
        ),
        "file_names": (
            "ADAPTER_CONFIG_FILE ADAPTER_FILE CHAT_TEMPLATE_FILE MANIFEST_FILE METADATA_FILE "
            "MODEL_CONFIG_FILE MODEL_FILE MODEL_INDEX_FILE RECORD_FILE TOKENIZER_CONFIG_FILE"
        ),
        "formatting": "argument_descriptions format_duration format_gigabytes format_size",
        "json": "read_json value_text write_json",
        "locks": "is_in_use locked process_of sole_use",
        "measurements": "kept_seconds",
        "progress": "ProgressDisplay hidden_progress_bars",
        "run_folder": "CHECKPOINTS checkpoint_step checkpoints",
        "shards": "is_float read_shard read_tensor write_shard",
        "yaml": "parse_yaml read_yaml",
    },
)
