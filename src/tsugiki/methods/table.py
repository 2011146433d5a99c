"""Every method by its name, and the forms of adapter by what they are called in a file."""

from collections.abc import Mapping
from types import MappingProxyType

from tsugiki.methods.lora import LORA
from tsugiki.methods.method import Form, Method
from tsugiki.methods.p_tuning import P_TUNING
from tsugiki.methods.prefix_tuning import PREFIX_TUNING
from tsugiki.methods.prompt_tuning import PROMPT_TUNING

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "prompt-tuning": Method(
            "additive", "embeddings of virtual tokens before the text", PROMPT_TUNING, merges=False
        ),
        "prefix-tuning": Method(
            "additive", "keys and values before the text's, in every layer", PREFIX_TUNING, merges=False
        ),
        "p-tuning": Method("additive", "a prompt that a small network writes", P_TUNING, merges=False),
        "lora": Method("reparametrised", "a low-rank pair beside each target layer", LORA),
        "rslora": Method("reparametrised", "LoRA scaled by alpha / sqrt(r)", LORA, {"use_rslora": True}),
    }
)
"""In the order in which they are shown."""

FORMS: Mapping[str, Form] = MappingProxyType({method.form.peft_type: method.form for method in METHODS.values()})
"""`peft_type` -> form."""


def form_of(config: object) -> Form:
    """The form of adapter that has this config."""
    return next(form for form in FORMS.values() if type(config) is form.config)
