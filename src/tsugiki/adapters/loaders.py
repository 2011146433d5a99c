"""What other programs make of an adapter: which of them load it, and why the rest do not.

vLLM: its `lora/peft_helper.py` refuses DoRA, modules_to_save, biases and a rank above --max-lora-rank, and scales by
the config's alpha and rank alone; its list of supported models (docs.vllm.ai) has no LoRA for GPT-2.
"""

from typing import Any

from tsugiki.lora.config import LoraConfig
from tsugiki.methods.method import Form
from tsugiki.methods.table import METHODS

_RANKS_OF_VLLM = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes
_DEFAULT_RANK_OF_VLLM = 16


def peft_reads(form: Form) -> bool:
    """Whether PEFT loads adapters of this form."""
    return any(method.peft for method in METHODS.values() if method.form is form)


def can_merge(form: Form) -> bool:
    """Whether adapters of this form can be folded into the base, which is then a model for every program."""
    return any(method.merges for method in METHODS.values() if method.form is form)


def is_plain_lora(config: Any) -> bool:
    """Whether an adapter is pairs of matrices and nothing else, which is what llama.cpp takes."""
    return isinstance(config, LoraConfig) and not (config.use_dora or config.modules_to_save or config.bias != "none")


def refused_by_vllm(config: Any) -> list[str]:
    """Why vLLM does not serve an adapter, or would serve it wrongly, as ends of a sentence that begins with "it"."""
    if not isinstance(config, LoraConfig):
        return ["is no LoRA"]
    reasons = {
        "is for GPT-2's kind of layer (Conv1D), and vLLM has no LoRA for GPT-2": config.fan_in_fan_out,
        "is DoRA": config.use_dora,
        "has whole modules in it (modules_to_save)": bool(config.modules_to_save),
        "trains biases": config.bias != "none",
        "has layers of other ranks or alphas, which vLLM scales all alike": bool(
            config.rank_pattern or config.alpha_pattern
        ),
        f"is of a rank above {_RANKS_OF_VLLM[-1]}": config.r > _RANKS_OF_VLLM[-1],
    }
    return [reason for reason, holds in reasons.items() if holds]


def rank_for_vllm(config: LoraConfig) -> int | None:
    """The --max-lora-rank that vLLM must be told; None where its default is enough, or no rank that it takes is."""
    if config.r <= _DEFAULT_RANK_OF_VLLM:
        return None
    return next((rank for rank in _RANKS_OF_VLLM if rank >= config.r), None)
