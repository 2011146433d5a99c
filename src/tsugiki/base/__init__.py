"""The base model: found by its name, checked, loaded, and kept in few bits; GGUF files."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "checks": "code_digest",
        "gguf.conversion": "VERIFIED read_model_header",
        "gguf.conversion_cache": "converted_folder gguf_fingerprint",
        "gguf.file": "is_gguf read_header",
        "identity": "BaseIdentity identity_of named_fingerprint named_identity why_different",
        "loading": "default_device load_meta_model load_model load_tokenizer placeholder_model",
        "model_folder": "LazyTensors copy_other_files map_keys read_shards write_index",
        "new_words": "add_rows add_words read_words",
        "recommended": "RECOMMENDED describe_base recommended_bases",
        "resolve": "folder_entries local_folder settings_folder split_revision weight_entries",
        "streaming": "LIMIT_VARIABLE entries",
    },
)
