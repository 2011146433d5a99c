"""Selective methods: norms compared with PEFT, the others with plain training of the selected weights."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.files import json_of
from tests.methods.beside_peft import assert_merged_alike, assert_trained_alike
from tests.tiny import logits, relative_error, shake, tiny_model, train_steps
from tsugiki import (
    active_adapter,
    graft,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
    ungraft,
    unmerge,
)
from tsugiki.methods import METHODS, LNTuningConfig, SelectiveConfig
from tsugiki.training import RunConfig

NORMS = {
    "gpt2": ["ln_1", "ln_2", "ln_f"],
    "llama": ["input_layernorm", "post_attention_layernorm", "norm"],
    "gemma3_text": [
        *("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
        *("q_norm", "k_norm", "norm"),
    ],
}
BITFIT, HEAD = METHODS["bitfit"].configure({}), METHODS["head"].configure({})
LAST_BLOCK = SelectiveConfig(r".*\.(h|layers)\.1\..*")
CONFIGS: dict[str, Any] = {"bitfit": BITFIT, "norms": LNTuningConfig(), "head": HEAD, "select": LAST_BLOCK}
CASES = [("gpt2", "bitfit"), ("gpt2", "norms"), ("llama", "head"), ("llama", "select"), ("gpt2", "head")]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_only_the_selected_parameters_train():
    names = {name for name, _ in tiny_model().named_parameters()}
    wanted = {
        "bitfit": {name for name in names if name.endswith("bias")},
        "norms": {name for name in names if ".ln_" in name},
        "head": {"lm_head.weight"},
        "select": {name for name in names if ".h.1." in name},
    }
    for name, config in CONFIGS.items():
        trained = trainable_parameters(graft(tiny_model(), config))
        assert set(trained) == wanted[name]
        assert all(p.dtype == torch.float32 for p in trained.values())


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (SelectiveConfig(["ln_f.weight"]), {"transformer.ln_f.weight"}),
        (SelectiveConfig(["c_attn.bias"]), {f"transformer.h.{i}.attn.c_attn.bias" for i in (0, 1)}),
        (SelectiveConfig(r".*h\.0\.ln_1\..*"), {"transformer.h.0.ln_1.weight", "transformer.h.0.ln_1.bias"}),
        (LNTuningConfig(["ln_f"]), {"transformer.ln_f.weight", "transformer.ln_f.bias"}),
        (LNTuningConfig(exclude_modules=r".*\.h\..*"), {"transformer.ln_f.weight", "transformer.ln_f.bias"}),
    ],
)
def test_which_parameters_a_pattern_selects(config: Any, found: set[str]):
    assert set(active_adapter(graft(tiny_model(), config)).copies) == found


@pytest.mark.parametrize("kind", NORMS)
def test_norms_are_stored_trained_and_merged_as_in_peft(kind: str, tmp_path: Path):
    config = peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=NORMS[kind])
    theirs = shake(peft.get_peft_model(tiny_model(kind), config).eval(), seed=5)
    theirs.save_pretrained(tmp_path / "start")
    model = load_adapter(tiny_model(kind), tmp_path / "start")
    assert relative_error(logits(model), logits(theirs)) < 1e-5

    def peft_name(name: str) -> str:
        layer, _, attribute = name.rpartition(".")
        return f"{layer}.ln_tuning_layers.{attribute}"

    assert_trained_alike(model, theirs, tmp_path, peft_name, steps=1, gradient=1e-5, stored=1e-5)
    fields = [json_of(tmp_path / who / "adapter_config.json") for who in ("ours", "theirs")]
    assert set(fields[0]["target_modules"]) == set(NORMS[kind])
    assert set(fields[0]) <= set(fields[1])
    assert_merged_alike(load_adapter(tiny_model(kind), tmp_path / "theirs"), theirs, 0)


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[1] != "norms"])
def test_a_training_step_equals_that_of_the_weights_themselves(kind: str, name: str):
    ours, plain = tiny_model(kind), tiny_model(kind)
    if name == "head":
        for model in (ours, plain):
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    adapter = active_adapter(graft(ours, CONFIGS[name]))
    for path, p in plain.named_parameters():
        p.requires_grad_(path in adapter.copies)
    for model in (ours.eval(), plain.eval()):
        train_steps(model, 1)
    mine, theirs = (
        {path: p.grad for path, p in model.named_parameters() if p.requires_grad} for model in (ours, plain)
    )
    assert set(mine) == set(theirs)
    after = dict(plain.named_parameters())
    for path, gradient in mine.items():
        assert relative_error(gradient, theirs[path]) < 1e-5, path
        assert relative_error(ours.get_parameter(path), after[path]) < 1e-5, path


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_merged_model_is_saved_with_the_ties_that_it_has(kind: str, name: str, tmp_path: Path):
    model = tiny_model(kind)
    graft(model, CONFIGS[name])
    adapted = logits(shake(model))
    assert torch.equal(logits(merge(model)), adapted)
    ungraft(model).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert relative_error(logits(again), adapted) < 1e-6
    tied = kind != "llama" and name != "head"
    assert again.config.tie_word_embeddings is tied
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) is tied


def test_a_shared_weight_stays_shared_if_all_its_names_are_selected(tmp_path: Path):
    model = tiny_model()
    graft(model, SelectiveConfig(["wte.weight", "lm_head.weight"]))
    assert model.lm_head.weight is model.transformer.wte.weight
    adapted = logits(shake(model))
    save_adapter(model, tmp_path / "adapter")
    assert list(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) == [
        "base_model.model.transformer.wte.weight"
    ]
    again = tiny_model()
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(logits(again), adapted)
    ungraft(merge(again))
    assert again.lm_head.weight is again.transformer.wte.weight
    assert again.config.tie_word_embeddings is True


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_copies_of_a_16_bit_base_are_stored_in_float32_and_merged_in_16_bits(kind: str, name: str, tmp_path: Path):
    model = graft(tiny_model(kind).bfloat16(), CONFIGS[name])
    adapted = logits(shake(model))
    save_adapter(model, tmp_path)
    assert all(t.dtype == torch.float32 for t in load_file(tmp_path / "adapter_model.safetensors").values())
    assert torch.equal(logits(merge(model)), adapted)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(unmerge(model)), adapted)


@pytest.mark.parametrize("base_dtype", ["bf16", "int8"])
def test_a_run_on_a_16_bit_or_int8_base_is_refused(base_dtype: str):
    with pytest.raises(ValueError, match=rf"base_dtype {base_dtype}"):
        RunConfig(model="-", data="-", out="-", method="bitfit", base_dtype=base_dtype)  # type: ignore[arg-type]
