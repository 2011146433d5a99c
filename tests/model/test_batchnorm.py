"""Running statistics of the base, which are used but do not change while an adapter trains."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.lora.test_conv import images, net
from tests.tiny import shake
from tsugiki import LoraConfig, disable_adapter, graft, load_adapter, save_adapter, ungraft


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


def test_a_module_to_save_updates_its_own_statistics(tmp_path: Path):
    def block() -> Any:
        torch.manual_seed(0)
        return nn.ModuleDict({"body": nn.Conv2d(3, 4, 3), "head": nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))})

    def forward(model: Any, x: Tensor) -> Tensor:
        return model["head"](model["body"](x))

    model, x = block().eval(), images()
    base = forward(model, x)
    for name in ("one", "two"):
        graft(model, LoraConfig(r=2, target_modules=["body"], modules_to_save=["head"]), name)
        before = model["head"][0].running_mean.clone()
        forward(model.train(), x)
        assert not torch.equal(model["head"][0].running_mean, before)
    adapted = forward(shake(model.eval()), x)
    save_adapter(model, tmp_path)
    other = block().eval()
    load_adapter(other, tmp_path)
    assert torch.equal(forward(other, x), adapted)
    with disable_adapter(model):
        assert torch.equal(forward(model, x), base)
