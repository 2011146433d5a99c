import dataclasses
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tests.adapters.folders import edit_config, write
from tests.errors import refused
from tests.tiny import tiny_model
from tsugiki import (
    LoraConfig,
    active_adapter,
    graft,
    print_trainable_parameters,
    use_fast_paths,
)
from tsugiki.adapters import read_adapter_config
from tsugiki.lowbit import quantize
from tsugiki.methods import FIELDS_OF_PEFT, config_of_peft

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "the chapter's": {
        "task_type": peft.TaskType.CAUSAL_LM,
        "r": 4,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "target_modules": ["c_attn", "c_proj"],
        "inference_mode": False,
        "fan_in_fan_out": True,
    },
    "patterns": {"rank_pattern": {"c_attn": 2}, "alpha_pattern": {"c_attn": 5}, "target_modules": "all-linear"},
    "dora, biases": {"use_dora": True, "bias": "lora_only", "use_rslora": True, "layers_to_transform": [1]},
    "pissa": {"init_lora_weights": "pissa_niter_4", "exclude_modules": ["mlp.c_proj"], "target_modules": ["c_proj"]},
    "modules": {"modules_to_save": ["ln_f"], "init_lora_weights": False},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_config_of_peft_grafts_what_peft_does(name: str):
    settings = {"target_modules": ["c_attn"]} | SETTINGS[name]
    config = peft.LoraConfig(**settings)
    theirs = peft.get_peft_model(tiny_model(), config)
    ours = graft(tiny_model(), peft.LoraConfig(**settings))
    trained = [[p.numel() for p in model.parameters() if p.requires_grad] for model in (ours, theirs)]
    assert sorted(trained[0]) == sorted(trained[1])
    scalings = {
        path.removeprefix("base_model.model."): module.scaling["default"]
        for path, module in theirs.named_modules()
        if isinstance(getattr(module, "scaling", None), dict)
    }
    assert {path: pair.scaling for path, pair in active_adapter(ours).pairs.items()} == pytest.approx(scalings)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (peft.IA3Config(), "IA3Config"),
        (peft.LoraConfig(inference_mode=True), "inference_mode"),
        (peft.LoraConfig(init_lora_weights="olora"), "olora"),
        (peft.LoraConfig(layer_replication=[(0, 2)]), "layer_replication"),
        (peft.LoraConfig(alora_invocation_tokens=[3]), "alora_invocation_tokens"),
    ],
)
def test_what_would_change_the_result_is_refused(config: Any, words: str):
    model = tiny_model()
    with refused(words):
        graft(model, config)
    assert all(p.requires_grad for p in model.parameters())


def test_every_field_of_pefts_config_is_known():
    """A field that a release of PEFT adds belongs in one of the tables of `methods.lora_format`, or into our config."""
    ours = {field.name for field in dataclasses.fields(LoraConfig)}
    assert {field.name for field in dataclasses.fields(peft.LoraConfig)} - ours == FIELDS_OF_PEFT


@pytest.mark.parametrize(
    "field",
    [
        {"runtime_config": {"ephemeral_gpu_offload": False}}, {"unsloth_fixed": True}, {"lora_dtype": "float32"},
        {"lorap_lr_ratio": 16.0}, {"lorap_emb_lr": 1e-6},
    ],
)  # fmt: skip
def test_a_field_that_peft_ignores_stops_no_adapter(tmp_path: Path, field: dict[str, Any]):
    saved = read_adapter_config(write(tmp_path))
    edit_config(tmp_path, **field)
    assert read_adapter_config(tmp_path) == saved


def test_peft_names_who_has_grafted_the_layer_that_it_cannot_adapt_again():
    model = graft(tiny_model(), LoraConfig(r=4, target_modules=["c_attn"]))
    with pytest.raises(ValueError, match=r"grafted already, by tsugiki\.graft"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_attn"]))


def test_settings_of_peft_that_change_nothing_are_accepted():
    expected = LoraConfig(
        r=4, lora_alpha=32, lora_dropout=0.1, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True
    )
    assert config_of_peft(peft.LoraConfig(**SETTINGS["the chapter's"])) == expected
    names = {"base_model_name_or_path": "gpt2", "revision": "main"}
    assert LoraConfig(**SETTINGS["the chapter's"], **names) == expected
    with refused("inference_mode"):
        LoraConfig(inference_mode=True)


FIELDS: dict[str, tuple[Any, str]] = {
    "kasa_config": ({"beta": 1e-4}, "merge"),
    "arrow_config": ({"top_k": 2}, "load it with PEFT"),
    "use_qalora": (True, "load it with PEFT"),
    "of_a_later_release": ({"depth": 1}, "is not known to Tsugiki, so it cannot tell.*merge"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_a_file_that_changes_the_result_is_refused_and_an_empty_one_is_not(name: str, tmp_path: Path):
    value, instead = FIELDS[name]
    edit_config(write(tmp_path), **{name: value})
    with refused(rf"{name}=.*{instead}"):
        read_adapter_config(tmp_path)
    edit_config(tmp_path, **{name: None})
    assert read_adapter_config(tmp_path).r == 4


@pytest.mark.parametrize("name", ["corda_config", "lora_ga_config", "eva_config", "velora_config"])
def test_how_the_factors_began_is_accepted_once_the_base_is_unchanged(name: str, tmp_path: Path):
    """PEFT leaves the field in a file that it has converted to an ordinary LoRA."""
    edit_config(write(tmp_path), **{name: {"direction": "ArB2r"}})
    assert read_adapter_config(tmp_path).r == 4
    edit_config(tmp_path, init_lora_weights="corda")
    with refused("init_lora_weights"):
        read_adapter_config(tmp_path)


@pytest.mark.parametrize("quantised", [False, True])
def test_the_counts_are_those_of_peft(quantised: bool, capsys: pytest.CaptureFixture[str]):
    peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj"])).print_trainable_parameters()
    model = tiny_model("llama")
    if quantised:
        quantize(model, torch.float32)
    print_trainable_parameters(graft(model, LoraConfig(target_modules=["q_proj"])))
    theirs, ours = capsys.readouterr().out.splitlines()
    assert ours == theirs


@pytest.mark.parametrize("prepare", [lambda model: graft(model, LoraConfig(r=2)), lambda model: model])
def test_float16_on_a_processor_is_warned_of_once(prepare: Any, monkeypatch: pytest.MonkeyPatch):
    with pytest.warns(UserWarning, match="bfloat16 or float32") as warned:
        use_fast_paths(prepare(tiny_model().to(torch.float16)))
    assert len(warned) == 1
    assert warned[0].filename == __file__
    with warnings.catch_warnings(action="error"):
        use_fast_paths(prepare(tiny_model().to(torch.bfloat16)))
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        prepare(tiny_model().to(torch.float16))
