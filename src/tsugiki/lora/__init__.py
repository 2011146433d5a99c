"""LoRA from scratch: the layer (`layer`), its settings (`config`), grafting (`graft`) and merging (`merge`).

Read `layer.py` first: it holds the whole method. Its variants have modules of their own: other initial values
(`initialise`), DoRA (`dora`) and convolutions (`conv`).
"""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "config": "LoraConfig",
        "conv": "LoraConv2d",
        "dora": "add_magnitude dora_factor plain_factor",
        "graft": "add_adapter new_adapter remove_adapter trainable_parameters",
        "graft_state": "active_adapter active_name active_names is_grafted is_merged",
        "initialise": "init_orthogonal_ init_pissa_",
        "layer": "LoraEmbedding LoraLinear grafted_layers new_pair updated_weight wrap",
        "low_rank_sum": "LowRankSum",
        "masks": "apply_mask keep_mask masks_from",
        "merge": "merge_quantized",
        "pair": "LowRank",
        "parameters": "LoraParameters",
        "peft_config": "config_of_peft",
        "product": "add_low_rank grafted_product plain_add_low_rank",
        "row_products": "RowPairs plain_rows rows_product",
        "swap": (
            "Undo cast_parameters module_updates parameter_owner replace_module replace_parameter replace_with undo_all"
        ),
        "switch": "base_alone",
        "targets": "base_modules default_layers find_targets reasons_against sublayers_of",
    },
)
