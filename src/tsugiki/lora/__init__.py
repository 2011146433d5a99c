"""LoRA from scratch: the layer (`layer`), its settings (`config`), grafting (`graft`) and merging (`merge`).

Read `layer.py` first: it holds the whole method. `pair`, `init` and `variants` belong to it; `graft`, `adapter` and
`hold` put adapters into a model and take them out again. Nothing here is there for speed: that is `tsugiki.fast`.
"""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "adapter": "LoraAdapter",
        "config": "LoraConfig",
        "experts": "LoraParameters ParameterPair",
        "graft": "add_adapter remove_adapter trainable_parameters",
        "hold": "active_adapter active_names base_alone is_grafted is_merged",
        "init": "init_orthogonal_ init_pissa_",
        "layer": "LoraEmbedding LoraLinear grafted_layers new_pair updated_weight wrap",
        "pair": "LowRank",
        "targets": "find_targets",
        "variants": "LoraConv2d add_magnitude dora dora_factor plain_factor",
    },
)
