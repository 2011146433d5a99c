"""All methods by name, and all adapter formats by the `peft_type` in their files.

The modules of methods other than LoRA are imported when one of them is used.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from tsugiki.language import marked
from tsugiki.lora.config import LoraConfig
from tsugiki.methods.full import prepare_full
from tsugiki.methods.lora_format import LORA
from tsugiki.methods.method import AdapterFormat, Family, Method

_LORA = "tsugiki.lora.config.LoraConfig"
_NEEDS_FLOAT32 = marked("a base in bf16 or int8")  # the selective methods train parameters of the base, in float32

METHODS: Mapping[str, Method] = {
    "prompt-tuning": Method(
        "additive",
        marked("embeddings of virtual tokens before the text"),
        "y = f([P; E(x)])        P [n, d]",
        "Lester et al. 2021, arXiv:2104.08691",
        "tsugiki.methods.prompt_tuning.PromptTuningConfig",
        learning_rate=3e-2,
        mergeable=False,
    ),
    "prefix-tuning": Method(
        "additive",
        marked("keys and values before those of the text, in every layer"),
        "K = [P_K; K(x)],  V = [P_V; V(x)]        P_K, P_V [n, d]",
        "Li and Liang 2021, arXiv:2101.00190",
        "tsugiki.methods.prefix_tuning.PrefixTuningConfig",
        learning_rate=1e-2,
        mergeable=False,
    ),
    "p-tuning": Method(
        "additive",
        marked("a prompt computed by a small network"),
        "y = f([g(E_P); E(x)])        E_P [n, d]",
        "Liu et al. 2021, arXiv:2103.10385",
        "tsugiki.methods.p_tuning.PromptEncoderConfig",
        learning_rate=1e-3,
        mergeable=False,
    ),
    "houlsby": Method(
        "additive",
        marked("a bottleneck after each attention and each feed-forward network"),
        "h + U σ(D h)        D [d / 16, d],  U [d, d / 16]",
        "Houlsby et al. 2019, arXiv:1902.00751",
        "tsugiki.methods.bottleneck.BottleneckConfig",
        {"mh_adapter": True, "output_adapter": True, "original_ln_before": False},
        learning_rate=1e-3,
        readable_by_peft=False,
        mergeable=False,
    ),
    "pfeiffer": Method(
        "additive",
        marked("a bottleneck after each block's feed-forward network"),
        "y + U σ(D y)        D [d / 16, d],  U [d, d / 16]",
        "Pfeiffer et al. 2020, arXiv:2005.00247",
        "tsugiki.methods.bottleneck.BottleneckConfig",
        {"mh_adapter": False, "output_adapter": True, "original_ln_before": True},
        learning_rate=1e-3,
        readable_by_peft=False,
        mergeable=False,
    ),
    "ia3": Method(
        "additive",
        marked("a factor for each key, value and inner feature"),
        "y = l ∘ (W x + b)        l [out]",
        "Liu et al. 2022, arXiv:2205.05638",
        "tsugiki.methods.ia3.IA3Config",
        learning_rate=3e-3,
    ),
    "lora": Method(
        "reparametrised",
        marked("two low-rank factors for each target layer"),
        "y = W x + b + (alpha / r) B A x        A [r, in],  B [out, r]",
        "Hu et al. 2021, arXiv:2106.09685",
        _LORA,
    ),
    "rslora": Method(
        "reparametrised",
        marked("LoRA scaled by alpha / sqrt(r)"),
        "y = W x + b + (alpha / √r) B A x        A [r, in],  B [out, r]",
        "Kalajdzievski 2023, arXiv:2312.03732",
        _LORA,
        {"use_rslora": True},
    ),
    "dora": Method(
        "reparametrised",
        marked("LoRA for the direction of each weight row, and a trained length"),
        "y = m ∘ (W x + s B A x) / ‖W + s B A‖ + b        s = alpha / r,  m [out]",
        "Liu et al. 2024, arXiv:2402.09353",
        _LORA,
        {"use_dora": True},
        not_accelerated=marked(
            "discarding a layer's output after the forward pass; one product per layer with lora_dropout; the "
            "chunked loss with a grafted output head"
        ),
    ),
    "lora+": Method(
        "reparametrised",
        marked("LoRA with a higher learning rate for B than for A, by the factor loraplus_lr_ratio"),
        "y = W x + b + (alpha / r) B A x        η_B = 16 η_A",
        "Hayou et al. 2024, arXiv:2402.12354",
        _LORA,
        learning_rate_factor=1 / 4,  # of A; that of B is 16 times as high
    ),
    "pissa": Method(
        "reparametrised",
        marked("LoRA initialised with the principal components of each weight"),
        "y = W x + b + s (B A - B₀ A₀) x        s B₀ A₀ ≈ W,  s = alpha / r",
        "Meng et al. 2024, arXiv:2404.02948",
        _LORA,
        {"init_lora_weights": "pissa"},
        learning_rate_factor=1 / 3,
    ),
    "orthogonal": Method(
        "reparametrised",
        marked("LoRA initialised with orthogonal factors"),
        "y = W x + b + (alpha / r) B A x        B₀ A₀ = 0,  B₀ ≠ 0",
        "Hu et al. 2021, arXiv:2106.09685",
        _LORA,
        {"init_lora_weights": "orthogonal"},
    ),
    "lora-fa": Method(
        "reparametrised",
        marked("LoRA with A frozen, so that no layer keeps its input"),
        "y = W x + b + (alpha / r) B A x        B [out, r]",
        "Zhang et al. 2023, arXiv:2308.03303",
        _LORA,
        {"freeze_A": True},
    ),
    "bitfit": Method(
        "selective",
        marked("the biases"),
        "y = W x + (b + Δ)        Δ [out]",
        "Ben Zaken et al. 2021, arXiv:2106.10199",
        "tsugiki.methods.selective.SelectiveConfig",
        {"target_parameters": ["bias"]},
        learning_rate=1e-3,
        readable_by_peft=False,
        not_accelerated=_NEEDS_FLOAT32,
    ),
    "norms": Method(
        "selective",
        marked("the normalisation layers"),
        "y = (g + Δ) ∘ norm(x)        Δ [d]",
        "Zhao et al. 2023, arXiv:2312.11420",
        "tsugiki.methods.selective.LNTuningConfig",
        learning_rate=1e-3,
        not_accelerated=marked("a base in bf16 or int8; fused RMSNorm"),
    ),
    "head": Method(
        "selective",
        marked("the output head"),
        "logits = (W + Δ) h        Δ [V, d]",
        "Ben Zaken et al. 2021, arXiv:2106.10199",
        "tsugiki.methods.selective.SelectiveConfig",
        {"target_parameters": "head"},
        learning_rate=1e-4,
        readable_by_peft=False,
        not_accelerated=_NEEDS_FLOAT32,
    ),
    "select": Method(
        "selective",
        marked("the parameters that a pattern selects"),
        "y = f(x; θ_S + Δ, θ_rest)",
        "Ben Zaken et al. 2021, arXiv:2106.10199",
        "tsugiki.methods.selective.SelectiveConfig",
        learning_rate=1e-4,
        readable_by_peft=False,
        not_accelerated=_NEEDS_FLOAT32,
    ),
    "full": Method(
        "full fine-tuning",
        marked("every weight"),
        "y = f(x; θ + Δ)",
        "",
        "tsugiki.methods.full.FullConfig",
        learning_rate_factor=1 / 10,
        readable_by_peft=False,
        mergeable=False,
        prepare=prepare_full,
    ),
}
"""Name -> method, in the order in which they are listed."""


@cache
def formats() -> Mapping[str, AdapterFormat[Any, Any]]:
    """Return `peft_type` -> format."""
    from tsugiki.methods.bottleneck import BOTTLENECK
    from tsugiki.methods.ia3 import IA3
    from tsugiki.methods.p_tuning import P_TUNING
    from tsugiki.methods.prefix_tuning import PREFIX_TUNING
    from tsugiki.methods.prompt_tuning import PROMPT_TUNING
    from tsugiki.methods.selective import LN_TUNING, SELECTIVE

    found = (PROMPT_TUNING, PREFIX_TUNING, P_TUNING, BOTTLENECK, IA3, LORA, SELECTIVE, LN_TUNING)
    return {adapter_format.peft_type: adapter_format for adapter_format in found}


def method_of(config: object) -> Method:
    """Return a method with this kind of config; all of them are alike in what PEFT reads and in what can be merged."""
    return next(method for method in METHODS.values() if method.config is type(config))


def methods_of(config: object) -> list[str]:
    """Return the names of the methods that a config belongs to.

    These are the methods whose fixed settings the config has; a config can combine several, such as `rslora` and
    `dora`. If there is none, it is the method of this config class that fixes no settings.
    """
    candidates = {name: method for name, method in METHODS.items() if type(config) is method.config}
    found = [
        name
        for name, method in candidates.items()
        if method.fixed_settings
        and all(_is_same_setting(getattr(config, key), value) for key, value in method.fixed_settings.items())
    ]
    return found or [name for name, method in candidates.items() if not method.fixed_settings][:1]


def _is_same_setting(value: object, fixed: object) -> bool:
    """Return whether a config's value is the fixed one; `pissa_niter_4` is also PiSSA."""
    return value == fixed or (isinstance(value, str) and value.startswith(f"{fixed}_niter_"))


def family_of(method: str) -> Family:
    """Return the family of the method in a run record; pretraining by an earlier version counts as `full`."""
    return METHODS.get(method, METHODS["full"]).family


def format_of(config: object) -> AdapterFormat[Any, Any]:
    """Return the format of the adapters that have this config."""
    if type(config) is LoraConfig:  # without importing the other methods
        return LORA
    return next(adapter_format for adapter_format in formats().values() if type(config) is adapter_format.config)
