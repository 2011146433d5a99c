"""What is known about any model, without LoRA: layers, names, and how a part is replaced and put back."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "architectures": "ARCHITECTURES Architecture architecture_of model_type",
        "context": (
            "IGNORE_INDEX PROMPT_ATTRIBUTE context_length decoder_of max_positions possible_windows "
            "rope_depends_on_length virtual_tokens"
        ),
        "freeze": "disable_dropout dropout_restored",
        "inference": "decoder_blocks evaluating on_first_blocks probe_ids probe_logits same_to_rounding seeded",
        "linear": (
            "CHANGED_WEIGHTS QuantizedLinear device_of factor_dtype features frozen_input_gradient frozen_product "
            "has_product is_conv1d is_graftable is_linear is_quantized is_stored_in_out linear_of_matrix oriented "
            "select_outputs"
        ),
        "meta": "NoRandomValues meta_model replica_in",
        "names": "PatternTable compile_pattern compile_search matches name_pattern shortest_endings split_block",
        "setting_checks": "check_types",
        "targets_by_rule": "default_layers reasons_against sublayers_of",
        "token_vectors": "TokenVectors new_token_vectors",
        "trained_copies": "copies_to_save",
        "undo": ("Undo cast_parameters parameter_owner replace_forward replace_module replace_parameter undo_all"),
        "ungrafted": "base_modules",
        "weights": "is_replacement module_updates replace_with",
    },
)
