"""Adapters in files: reading and writing PEFT's format, a library of adapters, operations on them, and merging."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "algebra.combine": (
            "Combination WeightedAdapter combine distance load_weighted_adapters norm weights_or_ones write_combined"
        ),
        "algebra.difference": "compare_layers compare_tensors overall",
        "algebra.matrices": (
            "difference_norm effective_rank inner_product kept_energy singular_values svd truncated "
            "truncated_to_energy update_norm update_shape"
        ),
        "files": "read_adapter_config read_base read_config_fields read_weights",
        "foreign": "import_adapter read_tensors",
        "format": "check_can_save load_adapter_weights",
        "library": (
            "adapter_folder check_name copy_into_library library_folder library_names member "
            "read_adapter_info read_library rename_adapter"
        ),
        "lora_weights": "LayerFactors LoraWeights read_lora_weights write_lora_weights",
        "merge_files": "RoundingLoss plan_merge write_merged",
        "metadata": "BaseReference Metadata Provenance Source read_metadata write_metadata",
        "pretrained": "load_adapter",
        "saved_tokenizer": "saved_chat_template with_chat_template with_new_words",
        "start": "start_from",
        "verify": "KnownBase check_adapter find_misfits known_base logit_shift read_adapter_files",
    },
)
