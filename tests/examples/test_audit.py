"""Every number of the audit, compared with a calculation by hand and with PEFT where PEFT has it."""

import warnings
from collections import Counter

import audit
import peft
import torch
from audit import CHAPTERS_TARGETS, MEDIUM, SMALL
from gpt2 import ATTENTION, count_parameters
from safetensors.torch import save


def parameters_of_gpt2(vocabulary: int, width: int, blocks: int) -> int:
    """Count embeddings of tokens and 1,024 positions, blocks, and the last norm; the head is the token embedding."""
    norm = 2 * width
    attention = (width * 3 * width + 3 * width) + (width * width + width)
    feed_forward = (width * 4 * width + 4 * width) + (4 * width * width + width)
    return (vocabulary + 1024) * width + blocks * (2 * norm + attention + feed_forward) + norm


def test_gpt2_small_has_124_439_808_parameters_and_rinna_medium_336_128_000():
    assert count_parameters(audit.shape_only(SMALL))[1] == parameters_of_gpt2(50257, 768, 12) == 124_439_808
    assert count_parameters(audit.shape_only(MEDIUM))[1] == parameters_of_gpt2(32000, 1024, 24) == 336_128_000


def with_peft(targets: list[str]) -> peft.PeftModel:
    """Build the model with PEFT and the chapter's other settings, on the meta device."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=32, lora_dropout=0.1, target_modules=targets)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it sets fan_in_fan_out for Conv1D
        return peft.get_peft_model(audit.shape_only(MEDIUM), config)


def test_peft_counts_the_same():
    as_configured, attention_alone = with_peft(["c_attn", "c_proj"]), with_peft(["c_attn", "attn.c_proj"])
    assert as_configured.get_nb_trainable_parameters() == (audit.lora_parameters(MEDIUM, CHAPTERS_TARGETS), 338_290_688)
    assert Counter(name.split(".")[-2] for name in as_configured.targeted_module_names) == {"attn": 48, "mlp": 24}
    assert attention_alone.get_nb_trainable_parameters() == (audit.lora_parameters(MEDIUM, ATTENTION), 337_307_648)
    assert peft.LoraConfig().lora_alpha / peft.LoraConfig().r == 1, "by default, as the chapter's alpha of one"


def test_the_file_is_as_long_as_pefts_to_the_byte():
    tensors = peft.get_peft_model_state_dict(with_peft(["c_attn", "c_proj"]))
    stored = {name: torch.zeros(tensor.shape) for name, tensor in tensors.items()}
    assert audit.adapter_file(MEDIUM, CHAPTERS_TARGETS) == len(save(stored, metadata={"format": "pt"}))
