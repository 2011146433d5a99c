"""Dropout and running statistics of the base while an adapter trains."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.lora.test_conv import images, net
from tests.tiny import CONFIGS, ids, shake, tiny_model
from tests.tiny_types import lively_model, tiny_of
from tsugiki import LoraConfig, graft, ungraft
from tsugiki.fast import use_fast_paths
from tsugiki.model import disable_dropout, dropout_restored


def with_dropout(kind: str) -> Any:
    """A tiny model in which every dropout probability that its config or a part of it has is 0.3."""
    config = tiny_of(kind).config
    for part in (config, *vars(config).values()):
        for name, value in vars(part).items() if isinstance(part, transformers.PretrainedConfig) else ():
            if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(part, name, 0.3)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids(), use_cache=False).logits
    return logits


@pytest.mark.parametrize("kind", [*CONFIGS, "persimmon", "blt"])
def test_two_training_passes_of_the_base_are_equal(kind: str):
    model = with_dropout(kind).train()
    assert not torch.equal(output(model), output(model))
    saved = disable_dropout(model)
    first = output(model)
    assert torch.equal(first, output(model))
    assert torch.equal(first, output(model.eval()))
    model.train()
    with dropout_restored(saved):
        assert not torch.equal(first, output(model))
    assert torch.equal(first, output(model))


@pytest.mark.parametrize("kind", ["gpt2", "falcon", "blt"])
def test_another_model_of_the_same_config_object_keeps_its_dropout(kind: str):
    config = with_dropout(kind).config
    model, before = (type(with_dropout(kind))(config) for _ in range(2))
    as_dict = config.to_dict()
    assert model.config is before.config is config
    graft(model, LoraConfig(target_modules="all-linear"))
    first = output(model.train())
    assert torch.equal(first, output(model))
    assert config.to_dict() == as_dict
    for other in (before, type(model)(config)):
        assert not torch.equal(output(other.train()), output(other))
    model.config.pad_token_id = 5  # as trainers do
    ungraft(model)
    assert model.config.to_dict() == {**as_dict, "pad_token_id": 5}
    assert not torch.equal(output(model), output(model))


def test_a_probability_that_scales_outputs_in_evaluation_stays():
    model = lively_model("nllb-moe", "seq2seq")
    inputs = {"input_ids": ids(), "decoder_input_ids": ids(seed=2)}
    with torch.no_grad():
        before = model(**inputs).logits
        graft(model, LoraConfig())
        assert torch.equal(model(**inputs).logits, before)
    assert not [module for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.p]


def test_running_statistics_are_used_but_not_updated():
    model, x = net(norm=True), images()
    with torch.no_grad():
        model.train()(3 * x + 1)  # so that the running statistics differ from their initial values
    base, state = model.eval()(x), copy.deepcopy(model.state_dict())
    graft(model, LoraConfig(r=2, target_modules=["first"], modules_to_save=["fc"]))
    assert torch.equal(model.train()(x), base)
    twin = copy.deepcopy(model).train()
    twin(x)
    assert not twin.norm.training
    assert model.norm.training is False
    shake(model)
    model(5 * x)
    ungraft(model)
    assert model.norm.training, "the mode of the model again"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    model(x)
    assert not torch.equal(model.norm.running_mean, state["norm.running_mean"])


@pytest.mark.parametrize(
    "prepare", [lambda model: graft(model, LoraConfig(r=2)), use_fast_paths], ids=["graft", "fast"]
)
def test_the_mode_of_a_model_gives_no_layer_another_function(prepare: Callable[[Any], object], tmp_path: Path):
    """As transformers 5.25 does with a model that may have kernels of the hub, which is its default."""
    tiny_model("llama").save_pretrained(tmp_path)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    prepare(model)
    assert not getattr(model, "use_kernels", False)
    before = {name: vars(module).get("forward") for name, module in model.named_modules()}
    assert any(before.values())
    for training in (True, False):
        model.train(training)
        assert {name: vars(module).get("forward") for name, module in model.named_modules()} == before
