"""A run begins with an adapter: the same logits at first, also at a larger rank."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from tests import tiny
from tests.errors import assert_refused
from tests.runs import assert_resumes, run_config
from tests.tiny_types import lively_model as tiny_type
from tsugiki import LoraConfig, active_adapter, graft, load_adapter
from tsugiki.adapters import start_from
from tsugiki.base import load_model
from tsugiki.training import make_trainable, train

LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["c_attn", "wte"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the base, the texts and the run of `first`."""
    return tmp_path_factory.mktemp("first")


@pytest.fixture
def first(place: Path) -> str:
    """An adapter that is trained once."""
    if not (place / "first").exists():
        train(run_config(place, "first", lora=LORA, base_dtype="fp32"))
    return str(place / "first")


@pytest.mark.parametrize(("method", "given"), [("lora", {}), ("rslora", {"r": 9}), ("dora", {"r": 9})])
def test_the_first_logits_are_those_of_the_adapter(method: str, given: dict[str, Any], tmp_path: Path):
    lora = {**LORA, "target_modules": ["c_attn"]} if method == "dora" else LORA
    folder = train(run_config(tmp_path, "first", method=method, lora=lora, base_dtype="fp32")).folder()
    config = run_config(tmp_path, "next", start_from=str(folder), lora=given, base_dtype="fp32")
    assert config.method == method
    assert config.lora.lora_alpha == 8
    assert config.lora.r == given.get("r", 4)
    model = load_model(config.model)
    make_trainable(model, config)
    start_from(model, str(folder))
    expected = load_adapter(load_model(config.model), folder)
    torch.testing.assert_close(tiny.logits(model), tiny.logits(expected), rtol=1e-5, atol=1e-6)
    assert (tiny.logits(expected) - tiny.logits(load_model(config.model))).abs().max() > 1e-3


WIDENED: dict[str, dict[str, Any]] = {
    "lora_bias": {"lora_bias": True},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "random B": {"init_lora_weights": False},
    "biases": {"bias": "all", "target_modules": ["c_attn", "wte"]},
    "patterns": {"rank_pattern": {"h.0.attn.c_attn": 3}, "alpha_pattern": {"h.1.attn.c_attn": 5}},
}


def widened(model: Any, folder: Path, settings: dict[str, Any], r: int) -> Any:
    """Begin with the adapter in a folder at rank r."""
    graft(model, LoraConfig(**{**settings, "r": r}))
    start_from(model, str(folder))
    return model


@pytest.mark.parametrize("kind", WIDENED)
def test_a_larger_rank_computes_the_old_adapter_at_first(kind: str, tmp_path: Path):
    settings = {"r": 2, "lora_alpha": 8, "target_modules": ["c_attn"], **WIDENED[kind]}
    old = tiny.logits(tiny.save_grafted(tmp_path, tiny.tiny_model(), LoraConfig(**settings)))
    new = widened(tiny.tiny_model(), tmp_path, settings, 6)
    assert tiny.relative_error(tiny.logits(new), old) < 1e-5
    assert tiny.relative_error(tiny.logits(tiny.tiny_model()), old) > 1e-2
    assert {pair.A.shape[0] for pair in active_adapter(new).pairs.values()} <= {3, 6}


def test_each_expert_and_each_group_keeps_its_own_factors_at_a_larger_rank(tmp_path: Path):
    settings = {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj"]}
    old = tiny.logits(tiny.save_grafted(tmp_path / "a", tiny_type("qwen2_moe"), LoraConfig(**settings)))
    assert tiny.relative_error(tiny.logits(widened(tiny_type("qwen2_moe"), tmp_path / "a", settings, 5)), old) < 1e-5

    def convolutions() -> Any:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 4, 1)).eval()

    settings, x = {"r": 2, "target_modules": ["0", "1"]}, torch.randn(2, 4, 5, 5)
    old = tiny.save_grafted(tmp_path / "b", convolutions(), LoraConfig(**settings))(x)
    torch.testing.assert_close(widened(convolutions(), tmp_path / "b", settings, 8)(x), old)


def test_the_new_directions_of_an_embedding_train(tmp_path: Path):
    settings = {"r": 2, "target_modules": ["wte"]}
    tiny.save_grafted(tmp_path, tiny.tiny_model(), LoraConfig(**settings))
    model = widened(tiny.tiny_model(), tmp_path, settings, 4)
    tiny.train_steps(model, 1)
    (pair,) = active_adapter(model).pairs.values()
    assert pair.A.grad[2:].abs().sum() > 0


def test_a_run_goes_on_from_an_adapter_and_is_resumed(first: str, place: Path):
    config = run_config(place, "next", start_from=first, lora={"r": 6}, base_dtype="fp32")
    record = assert_resumes(train, config, 3)
    assert record.started_from is not None
    assert record.started_from.name == "first"
    assert record.config.to_dict()["start_from"] == first
    assert record.config.lora is not None
    assert record.config.lora.r == 6
    whole = Path(config.out) / "whole"
    model = load_model(config.model)
    theirs = PeftModel.from_pretrained(load_model(config.model), str(whole))
    load_adapter(model, whole)
    torch.testing.assert_close(tiny.logits(model), tiny.logits(theirs), rtol=1e-5, atol=1e-5)


def test_other_methods_begin_with_their_own_adapters(tmp_path: Path):
    settings = {"method": "prompt-tuning", "method_config": {"num_virtual_tokens": 4}, "base_dtype": "fp32"}
    folder = train(run_config(tmp_path, "first", **settings)).folder()
    config = run_config(tmp_path, "next", start_from=str(folder))
    assert (config.method, config.adapter_config.num_virtual_tokens) == ("prompt-tuning", 4)
    assert train(config).started_from is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora": {"r": 2}}, r"first has other settings than this run \(lora.r\): .* r can be 4 or more"),
        ({"lora": {"lora_alpha": 3}}, "lora.lora_alpha"),
        ({"method": "full"}, r"\(method\)"),
        ({"start_from": "nowhere"}, "no adapter 'nowhere'"),
    ],
)
def test_settings_that_do_not_fit_the_adapter(changes: dict[str, Any], said: str, first: str, place: Path):
    with pytest.raises(ValueError, match=said):
        run_config(place, "next", **{"start_from": first, **changes})


def test_an_adapter_of_another_base_is_refused(first: str, tmp_path: Path):
    other = run_config(tmp_path, "other", start_from=first, model=tiny.save_tiny(tmp_path / "base", seed=1))
    assert_refused("was trained on", train, other)
    assert not Path(other.out).exists()
