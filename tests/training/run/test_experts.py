"""A run that adapts the experts of a mixture, from the settings to the merged model."""

from pathlib import Path

import peft
import pytest
from transformers import AutoModelForCausalLM

from tests.runs import assert_resumes, run_config
from tests.tiny import byte_tokenizer, logits, relative_error
from tests.tiny_types import lively_model
from tsugiki import load_adapter
from tsugiki.adapters import plan_merge, write_merged
from tsugiki.training import train


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_adapts_experts_and_its_result_is_read_and_merged(tmp_path: Path):
    base = tmp_path / "base"
    lively_model("qwen3_moe", vocab_size=257).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    lora = {
        "r": 2,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj"],
        "target_parameters": ["gate_up_proj", "down_proj"],
    }
    record = assert_resumes(train, run_config(tmp_path, model=str(base), lora=lora), 3)
    assert record.evaluations[-1].loss < record.evaluations[0].loss
    assert record.parameters.trainable == 2 * (2 * 64 + 4 * 2 * (32 + 96 + 48 + 32))
    adapter = tmp_path / "run" / "whole"
    model, twin = (AutoModelForCausalLM.from_pretrained(base) for _ in range(2))
    unadapted = logits(model)
    load_adapter(model, adapter)
    expected = logits(model)
    assert relative_error(expected, unadapted) > 1e-3
    assert relative_error(logits(peft.PeftModel.from_pretrained(twin, adapter).eval()), expected) < 1e-5
    (tmp_path / "merged").mkdir()
    write_merged(plan_merge(str(base), [adapter]), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=model.dtype)
    assert relative_error(logits(merged), expected) < 1e-5
