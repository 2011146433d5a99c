"""(IA)³: compared with PEFT, merging, and use in a model."""

from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.lifecycle import assert_lifecycle
from tests.methods.beside_peft import assert_merged_alike, assert_trained_alike
from tests.tiny import CONFIGS, logits, relative_error, shake, tiny_model
from tests.tiny_types import tiny_of
from tsugiki import (
    active_adapter,
    disable_adapter,
    graft,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
    ungraft,
)
from tsugiki.methods import IA3Config

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SHAPES = ["gpt2", "llama", "gemma3_text", "opt"]
KEYS = {"gpt2": "c_attn", "llama": "k_proj", "gemma3_text": "k_proj", "opt": "k_proj"}
INNER = {"gpt2": "mlp.c_proj", "llama": "down_proj", "gemma3_text": "down_proj", "opt": "fc2"}
VARIANTS: dict[str, Any] = {
    "default": lambda kind: {},
    "inputs alone": lambda kind: {"target_modules": [INNER[kind]], "feedforward_modules": [INNER[kind]]},
    "regex": lambda kind: {
        "target_modules": rf".*\.1\..*({KEYS[kind]}|{INNER[kind]})",
        "feedforward_modules": r".*(c_proj|down_proj|fc2)",
    },
    "exclude": lambda kind: {"exclude_modules": r".*\.0\..*"},
    "all-linear": lambda kind: {"target_modules": "all-linear"},
    "saved head": lambda kind: {"modules_to_save": ["lm_head"]},
    "head": lambda kind: {"target_modules": [KEYS[kind], "lm_head"], "feedforward_modules": []},
}
CASES = [(SHAPES[i % 4], variant) for i, variant in enumerate(VARIANTS)]
CASES += [("llama", "default"), ("opt", "default"), ("gpt2", "head"), ("gemma3_text", "head"), ("opt", "head")]


def peft_model(kind: str, variant: str) -> Any:
    config = peft.IA3Config(task_type="CAUSAL_LM", **VARIANTS[variant](kind))
    return peft.get_peft_model(tiny_model(kind), config).eval()


@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_files_are_exchanged_with_peft_both_ways_and_merged_weights_are_equal(kind: str, variant: str, tmp_path: Path):
    model, base = tiny_model(kind), logits(tiny_model(kind))
    adapted = logits(shake(graft(model, IA3Config(**VARIANTS[variant](kind)))))
    save_adapter(model, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(tiny_model(kind), tmp_path / "ours").eval()
    assert relative_error(adapted, base) > 1e-5  # scaled keys alone change little
    assert relative_error(logits(theirs), adapted) < 1e-6

    theirs = shake(peft_model(kind, variant))
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_adapter(tiny_model(kind), tmp_path / "theirs")
    adapted = logits(model)
    assert relative_error(adapted, logits(theirs)) < 1e-6
    with disable_adapter(model):
        assert torch.equal(logits(model), base)
    if variant != "head":
        assert_merged_alike(model, theirs, 1e-6)
        return
    # PEFT scales the weight that head and embedding share, and so changes the embedding, too.
    ungraft(merge(model)).save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert relative_error(logits(model), adapted) < 1e-5
    assert relative_error(logits(again), adapted) < 1e-5


def peft_name(name: str) -> str:
    return name.replace(".tsugiki.ia3_l", ".ia3_l")


@pytest.mark.parametrize("kind", SHAPES)
def test_gradients_and_steps_equal_pefts(kind: str, tmp_path: Path):
    theirs = shake(peft_model(kind, "default"))
    theirs.save_pretrained(tmp_path / "start")
    # Our base has its dropout off; PEFT's model is in evaluation mode instead.
    ours = load_adapter(tiny_model(kind), tmp_path / "start").train()
    assert_trained_alike(ours, theirs, tmp_path, peft_name, steps=3, gradient=1e-5, stored=1e-5)


def test_a_file_that_peft_writes_but_does_not_read(tmp_path: Path):
    # PEFT replaces "all-linear" by full names, and then misses the ending of feedforward_modules among them. We write
    # full names for both.
    peft_model("gpt2", "all-linear").save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match="subset"):
        peft.PeftModel.from_pretrained(tiny_model(), tmp_path / "theirs")
    model = tiny_model()
    with pytest.warns(UserWarning, match="no effect"):
        load_adapter(model, tmp_path / "theirs")
    save_adapter(model, tmp_path / "ours")
    peft.PeftModel.from_pretrained(tiny_model(), tmp_path / "ours")


@pytest.mark.parametrize(
    "kind", [kind for kind in CONFIGS if kind in peft.utils.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING]
)
def test_the_default_layers_equal_pefts(kind: str):
    theirs, ours = peft_model(kind, "default"), graft(tiny_model(kind), IA3Config())
    expected = {name: p.shape for name, p in theirs.base_model.model.named_parameters() if p.requires_grad}
    found = {f"{peft_name(name)}.default": p.shape for name, p in trainable_parameters(ours).items()}
    assert found == expected


def test_random_factors_are_initialised_as_in_peft():
    adapter = active_adapter(graft(tiny_model(n_embd=256), IA3Config(init_ia3_weights=False)))
    values = torch.cat([s.ia3_l.detach().flatten() for s in adapter.scalings.values()])
    assert abs(float(values.mean())) < 0.05
    assert abs(float(values.std()) - 1) < 0.05


@pytest.mark.parametrize("kind", ["bert", "ctrl"])
def test_ia3_works_without_a_row(kind: str, tmp_path: Path):
    assert_lifecycle(partial(tiny_of, kind), IA3Config(), tmp_path)
