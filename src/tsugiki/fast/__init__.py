"""Faster equivalents of parts of a model's forward and backward pass, each beside its plain definition."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "activations": "GELU_TANH QUICK_GELU SILU Swish gated plain_gated plain_swish swish value_and_slope",
        "attention": "NAME attention_forward causal_blocks plain_attention",
        "document_masks": (
            "FLASH attends_to_later_tokens detect_document_masking flash_arguments has_unknown_window "
            "keeps_apart_by_flash mask_documents packed_masks shares_prompts"
        ),
        "forward": "answer_log_probabilities enable_chunked_loss has_chunked_loss head_of",
        "head": "Head find_head",
        "huge_pages": "use_huge_pages",
        "layers": "use_fast_products",
        "loss": "AnswerTokens chunked_answer_losses chunked_loss plain_answer_losses plain_loss token_losses",
        "low_rank_sum": "LowRankSum",
        "masks": "apply_mask keep_mask masks_from",
        "modules": "fast_generation use_fused_modules",
        "norms": "generated_rms_norm plain_rms_norm rms_norm",
        "product": "add_low_rank grafted_product plain_add_low_rank",
        "paths": "use_fast_paths use_plain_paths",
        "recomputation": "recompute_blocks recomputed_blocks",
        "row_products": "RowPairs plain_rows rows_product",
        "vocabulary_sample": "VocabularySample can_sample draw_sample plain_sampled_loss sampled_loss",
    },
)
