"""Every method by its name, and the forms of adapter by what they are called in a file."""

from collections.abc import Mapping
from types import MappingProxyType

from tsugiki.methods.lora import LORA
from tsugiki.methods.method import Form, Method

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "lora": Method("reparametrised", "a low-rank pair beside each target layer", LORA),
        "rslora": Method("reparametrised", "LoRA scaled by alpha / sqrt(r)", LORA, {"use_rslora": True}),
        "dora": Method(
            "reparametrised",
            "LoRA that turns each row of the weight, whose length trains apart",
            LORA,
            {"use_dora": True},
            slow="keeps each layer's product, and takes two under lora_dropout; a grafted head makes whole logits",
        ),
        "lora+": Method("reparametrised", "LoRA whose B learns faster than A, by loraplus_lr_ratio", LORA),
        "pissa": Method(
            "reparametrised",
            "LoRA that begins with the principal part of each weight",
            LORA,
            {"init_lora_weights": "pissa"},
        ),
        "orthogonal": Method(
            "reparametrised",
            "LoRA that begins with factors at right angles",
            LORA,
            {"init_lora_weights": "orthogonal"},
        ),
        "lora-fa": Method("reparametrised", "LoRA with A frozen: no layer keeps its input", LORA, {"freeze_A": True}),
    }
)
"""In the order in which they are shown."""

FORMS: Mapping[str, Form] = MappingProxyType({method.form.peft_type: method.form for method in METHODS.values()})
"""`peft_type` -> form."""


def form_of(config: object) -> Form:
    """The form of adapter that has this config."""
    return next(form for form in FORMS.values() if type(config) is form.config)
