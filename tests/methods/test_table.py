"""The table of methods: rows, families, and which methods a config belongs to."""

from importlib import import_module

import pytest
import torch

from tests.tiny import tiny_model
from tsugiki import LoraConfig, TsugikiError, trainable_parameters
from tsugiki.methods.table import FORMATS, METHODS, family_of, format_of, methods_of

NEEDED = {"select": {"target_parameters": ["bias"]}}


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_complete(name: str):
    method = METHODS[name]
    config = method.configure(NEEDED.get(name, {}))
    assert type(config) is method.config
    assert all(getattr(config, setting) == value for setting, value in method.fixed_settings.items())
    assert "trade-off" in (import_module(method.doc_module or method.config.__module__).__doc__ or "").lower()
    if method.trains_adapter:
        assert FORMATS[format_of(config).peft_type].config is method.config
    assert method.trains_adapter == (name != "full")
    assert method.trains_base_weights == (method.family in ("selective", "full fine-tuning"))


@pytest.mark.filterwarnings("ignore:lm_head shares")
@pytest.mark.parametrize("name", METHODS)
def test_prepare_makes_trainable_what_the_method_trains(name: str):
    model = tiny_model("gpt2")
    total = sum(p.numel() for p in model.parameters())
    method = METHODS[name]
    method.prepare(model, method.configure(NEEDED.get(name, {})), False)
    trained = sum(p.numel() for p in trainable_parameters(model).values())
    assert trained == total if name == "full" else 0 < trained < total


@pytest.mark.parametrize("name", ["full", "bitfit"])
@pytest.mark.parametrize("base_dropout", [True, False])
def test_prepare_turns_dropout_off_unless_told_otherwise(name: str, base_dropout: bool):
    model = tiny_model("gpt2")
    before = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    METHODS[name].prepare(model, METHODS[name].configure({}), base_dropout)
    after = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert any(before)
    assert after == (before if base_dropout else [0] * len(before))


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (LoraConfig(), ["lora"]),
        (LoraConfig(use_rslora=True), ["rslora"]),
        (LoraConfig(use_rslora=True, use_dora=True), ["rslora", "dora"]),
        (LoraConfig(init_lora_weights="pissa_niter_4"), ["pissa"]),
        (METHODS["bitfit"].configure({}), ["bitfit"]),
        (METHODS["select"].configure({"target_parameters": ["ln_f.bias"]}), ["select"]),
        (object(), []),
    ],
)
def test_methods_of_a_config(config: object, names: list[str]):
    assert methods_of(config) == names


def test_families():
    assert family_of("ia3") == "additive"
    assert family_of("pretrain") == family_of("full") == "full fine-tuning"


def test_fixed_and_unknown_settings_are_refused_by_name():
    with pytest.raises(TsugikiError, match="use_dora is True"):
        METHODS["dora"].check_fixed_settings({"use_dora": False})
    METHODS["dora"].check_fixed_settings({"use_dora": True, "r": 3})
    with pytest.raises(TsugikiError, match=r"^r: .*none"):
        METHODS["full"].configure({"r": 3})
