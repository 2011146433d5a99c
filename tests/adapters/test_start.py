"""A run begins with an adapter: the same logits at first, also at a larger rank."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from tests.runs import assert_resumes, run_config
from tsugiki import TsugikiError, load_adapter
from tsugiki.adapters.start import start_from
from tsugiki.base.inference import probe_logits
from tsugiki.base.loading import load_model
from tsugiki.train.model import prepare_model
from tsugiki.train.run import train

LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["c_attn", "wte"]}


@pytest.fixture
def first(tmp_path: Path) -> str:
    return str(train(run_config(tmp_path, "first", lora=LORA, base_dtype="fp32")).folder())


def logits(model: Any) -> torch.Tensor:
    found = probe_logits(model)
    assert found is not None
    return found


@pytest.mark.parametrize("given", [{}, {"r": 4}, {"r": 9}])
@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_the_first_logits_are_those_of_the_adapter(method: str, given: dict[str, Any], tmp_path: Path):
    lora = {**LORA, "target_modules": ["c_attn"]} if method == "dora" else LORA
    folder = train(run_config(tmp_path, "first", method=method, lora=lora, base_dtype="fp32")).folder()
    config = run_config(tmp_path, "next", start_from=str(folder), lora=given, base_dtype="fp32")
    assert config.method == method
    assert config.lora.lora_alpha == 8
    assert config.lora.r == given.get("r", 4)
    model = load_model(config.model)
    prepare_model(model, config)
    start_from(model, str(folder))
    expected = load_model(config.model)
    load_adapter(expected, folder)
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-5, atol=1e-6)
    assert (logits(expected) - logits(load_model(config.model))).abs().max() > 1e-3


def test_a_run_goes_on_from_an_adapter_and_is_resumed(first: str, tmp_path: Path):
    config = run_config(tmp_path, "next", start_from=first, lora={"r": 6}, base_dtype="fp32")
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
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)


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
def test_settings_that_do_not_fit_the_adapter(changes: dict[str, Any], said: str, first: str, tmp_path: Path):
    with pytest.raises(ValueError, match=said):
        run_config(tmp_path, "next", **{"start_from": first, **changes})


def test_an_adapter_of_another_base_is_refused(first: str, tmp_path: Path):
    other = run_config(tmp_path, "other", start_from=first, model=str(Path(first).parent / "base-llama"))
    with pytest.raises(TsugikiError):
        train(other)
    assert not Path(other.out).exists()
