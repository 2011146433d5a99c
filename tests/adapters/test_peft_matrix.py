"""The matrix of `peft_matrix`: no case may be wrong or raise anything but a `TsugikiError` of one line."""

import pytest

from tests.adapters.peft_matrix import cases, kind_of, run

ALLOWED = {"equal", "refused", "no setting", "peft cannot"}
LORA = {
    "gpt2": [
        *(
            "targets",
            "saved embedding and head",
            "layers_to_transform, none",
            "tokens of embedding and head",
            "lora_bias",
        ),
        *("all-linear", "rslora, rank_pattern", "alpha_pattern", "bias lora_only", "exclude by expression"),
    ],
    "opt": ["embedding and head"],
    "t5": ["saved norm", "default targets", "tokens by name"],
    "bart": ["all-linear"],
    "whisper": ["targets"],
    "bert for sequences": ["targets"],
    "roberta for sequences": ["bias all"],
    "bert for questions": ["saved norm"],
    "bert": ["rank_pattern"],
    "llama": ["rank_pattern", "embedding and head", "layers_to_transform"],
    "gemma3_text": ["a regular expression", "exclude by name", "embedding", "tokens, tying ensured"],
}
SHORT = [
    *(f"{kind}: lora, {name}" for kind, names in LORA.items() for name in names),
    *("llama for sequences: ia3", "llama for sequences: prompt", "llama: norms, saved embedding"),
    *("llama: prompt, saved norm", "qwen3 for tokens: p-tuning", "bert for tokens: norms"),
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
