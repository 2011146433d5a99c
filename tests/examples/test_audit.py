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


def test_the_chapters_29_346_440_are_new_attention_layers_and_lora_on_the_head():
    attention, head = audit.chapters_attention(SMALL), audit.chapters_head(SMALL)
    assert attention == 12 * 4 * (768 * 768 + 768 + 8 * (768 + 768)) == 28_938_240
    assert head == 8 * (768 + 50257) == 408_200
    assert attention + head == 29_346_440


def test_the_attention_alone_has_1_179_648_and_the_chapters_targets_2_162_688():
    narrow, wide = audit.lora_parameters(MEDIUM, ATTENTION), audit.lora_parameters(MEDIUM, CHAPTERS_TARGETS)
    assert narrow == 24 * 8 * ((1024 + 3072) + (1024 + 1024)) == 1_179_648
    assert wide == narrow + 24 * 8 * (4096 + 1024) == 2_162_688


def with_peft(targets: list[str]) -> peft.PeftModel:
    """Build the model with PEFT and the chapter's other settings, on the meta device."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=32, lora_dropout=0.1, target_modules=targets)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it sets fan_in_fan_out for Conv1D
        return peft.get_peft_model(audit.shape_only(MEDIUM), config)


def test_peft_counts_the_same():
    as_configured, attention_alone = with_peft(["c_attn", "c_proj"]), with_peft(["c_attn", "attn.c_proj"])
    assert as_configured.get_nb_trainable_parameters() == (2_162_688, 338_290_688)
    assert Counter(name.split(".")[-2] for name in as_configured.targeted_module_names) == {"attn": 48, "mlp": 24}
    assert attention_alone.get_nb_trainable_parameters() == (1_179_648, 337_307_648)


def test_pefts_default_is_a_factor_of_one_as_the_chapters_alpha_of_one():
    assert peft.LoraConfig().lora_alpha / peft.LoraConfig().r == 1


def test_the_file_is_as_long_as_pefts_to_the_byte():
    tensors = peft.get_peft_model_state_dict(with_peft(["c_attn", "c_proj"]))
    stored = {name: torch.zeros(tensor.shape) for name, tensor in tensors.items()}
    assert audit.adapter_file(MEDIUM, CHAPTERS_TARGETS) == len(save(stored, metadata={"format": "pt"}))
