"""Fine-tuning methods: a module for each kind of adapter, and a table with a row for each method."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "bottleneck": "Bottleneck BottleneckConfig NON_LINEARITIES",
        "full": "FullConfig load_weights_into prepare_full save_model",
        "ia3": "IA3Config",
        "lora_format": "FIELDS_OF_PEFT config_of_peft",
        "p_tuning": "PromptEncoderConfig",
        "prefix_tuning": "PrefixTuningConfig",
        "prompt_tuning": "PromptTuningConfig",
        "selective": "LNTuningConfig SelectiveConfig",
        "table": "METHODS family_of format_of formats methods_of",
    },
)
