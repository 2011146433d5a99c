"""Every method by its name, and the forms of adapter by what they are called in a file."""

from collections.abc import Mapping
from types import MappingProxyType

from tsugiki.methods.bottleneck import BOTTLENECK
from tsugiki.methods.ia3 import IA3
from tsugiki.methods.lora import LORA
from tsugiki.methods.method import AdapterFormat, Method
from tsugiki.methods.p_tuning import P_TUNING
from tsugiki.methods.prefix_tuning import PREFIX_TUNING
from tsugiki.methods.prompt_tuning import PROMPT_TUNING
from tsugiki.methods.selective import HEAD, LN_TUNING, SELECTIVE

_IN_FLOAT32 = "a base in bf16 or int8"  # of which parts train

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "prompt-tuning": Method(
            "additive",
            "embeddings of virtual tokens before the text",
            PROMPT_TUNING,
            merges=False,
            explained="tsugiki.methods.prompt_tuning",
            learning_rate=3e-2,
        ),
        "prefix-tuning": Method(
            "additive",
            "keys and values before the text's, in every layer",
            PREFIX_TUNING,
            merges=False,
            explained="tsugiki.methods.prefix_tuning",
            learning_rate=1e-2,
        ),
        "p-tuning": Method(
            "additive",
            "a prompt that a small network writes",
            P_TUNING,
            merges=False,
            explained="tsugiki.methods.p_tuning",
            learning_rate=1e-3,
        ),
        "houlsby": Method(
            "additive",
            "a bottleneck after attention and after feed-forward",
            BOTTLENECK,
            {"mh_adapter": True, "output_adapter": True, "original_ln_before": False},
            peft=False,
            merges=False,
            learning_rate=1e-3,
        ),
        "pfeiffer": Method(
            "additive",
            "a bottleneck after each block's feed-forward",
            BOTTLENECK,
            {"mh_adapter": False, "output_adapter": True, "original_ln_before": True},
            peft=False,
            merges=False,
            learning_rate=1e-3,
        ),
        "ia3": Method("additive", "a factor for each key, value and inner feature", IA3, learning_rate=3e-3),
        "lora": Method("reparametrised", "a low-rank pair beside each target layer", LORA),
        "rslora": Method("reparametrised", "LoRA scaled by alpha / sqrt(r)", LORA, {"use_rslora": True}),
        "dora": Method(
            "reparametrised",
            "LoRA that turns each row of the weight, whose length trains apart",
            LORA,
            {"use_dora": True},
            explained="tsugiki.lora.dora",
            slow="keeps each layer's product, and takes two under lora_dropout; a grafted head makes whole logits",
        ),
        "lora+": Method(
            "reparametrised",
            "LoRA whose B learns faster than A, by loraplus_lr_ratio",
            LORA,
            explained="tsugiki.train.optimizers.loraplus",
        ),
        "pissa": Method(
            "reparametrised",
            "LoRA that begins with the principal part of each weight",
            LORA,
            {"init_lora_weights": "pissa"},
            explained="tsugiki.lora.initialise",
        ),
        "orthogonal": Method(
            "reparametrised",
            "LoRA that begins with factors at right angles",
            LORA,
            {"init_lora_weights": "orthogonal"},
            explained="tsugiki.lora.initialise",
        ),
        "lora-fa": Method("reparametrised", "LoRA with A frozen: no layer keeps its input", LORA, {"freeze_A": True}),
        "bitfit": Method(
            "selective",
            "the biases alone",
            SELECTIVE,
            {"target_parameters": ["bias"]},
            learning_rate=1e-3,
            peft=False,
            slow=_IN_FLOAT32,
        ),
        "norms": Method(
            "selective",
            "the normalisation layers alone",
            LN_TUNING,
            learning_rate=1e-3,
            slow=f"{_IN_FLOAT32}; RMSNorm in one step",
        ),
        "head": Method(
            "selective", "the output head alone", SELECTIVE, {"target_parameters": HEAD}, peft=False, slow=_IN_FLOAT32
        ),
        "select": Method("selective", "the parameters that a pattern names", SELECTIVE, peft=False, slow=_IN_FLOAT32),
    }
)
"""In the order in which they are shown."""

FORMATS: Mapping[str, AdapterFormat] = MappingProxyType(
    {method.form.peft_type: method.form for method in METHODS.values()}
)
"""`peft_type` -> form."""


def methods_of(config: object) -> list[str]:
    """The names of the methods that this config is of, as far as it tells: several where it mixes their settings."""
    own = {name: method for name, method in METHODS.items() if type(config) is method.form.config}
    decided = [
        name
        for name, method in own.items()
        if method.settings and all(_is(getattr(config, key), value) for key, value in method.settings.items())
    ]
    return decided or [name for name, method in own.items() if not method.settings][:1]


def _is(value: object, decided: object) -> bool:
    """Whether a config's value is a method's; a start by PiSSA may say how it is computed."""
    return value == decided or (isinstance(value, str) and value.startswith(f"{decided}_niter_"))


ALL = "all"
"""In place of a family, where every weight trains."""


def family_of(method: str) -> str:
    """The family of a run's method."""
    return METHODS[method].family if method in METHODS else ALL


def format_of(config: object) -> AdapterFormat:
    """The form of adapter that has this config."""
    return next(form for form in FORMATS.values() if type(config) is form.config)
