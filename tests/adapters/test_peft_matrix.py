"""The matrix of `peft_matrix`: no case may be wrong or raise anything but a `TsugikiError` of one line."""

import pytest

from tests.adapters.peft_matrix import cases, kind_of, run

ALLOWED = {"equal", "refused", "no setting", "peft cannot"}
SHORT = [
    "gpt2: lora, targets",
    "gpt2: lora, saved embedding and head",
    "gpt2: lora, layers_to_transform, none",
    "opt: lora, embedding and head",
    "t5: lora, saved norm",
    "t5: lora, default targets",
    "bart: lora, all-linear",
    "whisper: lora, targets",
    "bert for sequences: lora, targets",
    "roberta for sequences: lora, bias all",
    "llama for sequences: ia3",
    "llama for sequences: prompt",
    "llama: norms, saved embedding",
    "llama: prompt, saved norm",
    "qwen3 for tokens: p-tuning",
    "bert for tokens: norms",
    "bert for questions: lora, saved norm",
    "bert: lora, rank_pattern",
    "gpt2: lora, tokens of embedding and head",
    "gemma3_text: lora, tokens, tying ensured",
    "t5: lora, tokens by name",
    "gpt2: lora, lora_bias",
    "gpt2: lora, all-linear",
    "gpt2: lora, rslora, rank_pattern",
    "gpt2: lora, alpha_pattern",
    "gpt2: lora, bias lora_only",
    "gpt2: lora, exclude by expression",
    "llama: lora, rank_pattern",
    "llama: lora, embedding and head",
    "llama: lora, layers_to_transform",
    "gemma3_text: lora, a regular expression",
    "gemma3_text: lora, exclude by name",
    "gemma3_text: lora, embedding",
]
"""Cases that are equal in both directions."""

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", SHORT)
def test_a_case_is_equal_in_both_directions(name: str):
    assert run(name) == ("equal", "equal")


def test_what_is_not_supported_is_refused_in_one_line():
    here, in_peft = run("llama: lora, monteclora")
    assert here.startswith("refused: FOLDER/adapter_config.json: monteclora_config")
    assert in_peft == "no setting"


@pytest.mark.slow
@pytest.mark.parametrize("name", cases())
def test_no_case_is_wrong(name: str):
    outcomes = run(name)
    assert {kind_of(outcome) for outcome in outcomes} <= ALLOWED, outcomes
