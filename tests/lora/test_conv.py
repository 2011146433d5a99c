"""LoRA on convolutions, compared with PEFT and with the merged kernel."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tsugiki
from tests.errors import refused
from tests.lifecycle import assert_lifecycle
from tests.methods.beside_peft import assert_files_equal, assert_merged_alike
from tests.tiny import relative_error, seeded, shake
from tsugiki import LoraConfig, graft, load_adapter, merge, save_adapter
from tsugiki.lora import LoraConv2d

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Net(nn.Module):
    """A network of several kinds of convolutions with normalisation and a linear head."""

    def __init__(self, groups: int = 1, norm: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.second = nn.Conv2d(8, 12, (3, 5), padding=(0, 2), bias=False, groups=groups)
        self.one = nn.Conv2d(12, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.one(F.relu(self.second(x))))
        return self.fc(x.mean((2, 3)))


def net(**settings: Any) -> Any:
    torch.manual_seed(0)
    return Net(**settings).eval()


def images(rows: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(rows, 3, 12, 12, generator=seeded(seed))


FIELDS: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["first", "second", "one", "fc"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "biases": {"bias": "lora_only"},
    "ranks": {"rank_pattern": {"first": 2}, "alpha_pattern": {"one": 3}},
    "saved": {"target_modules": ["first", "second"], "modules_to_save": ["fc"]},
}


def config_of(library: Any, variant: str, **more: Any) -> Any:
    return library.LoraConfig(**{**FIELDS, **VARIANTS[variant], **more})


@pytest.mark.parametrize(("variant", "groups"), [*((variant, 1) for variant in VARIANTS), ("plain", 2), ("saved", 2)])
def test_files_of_peft_are_read_stored_and_merged_alike(variant: str, groups: int, tmp_path: Path):
    theirs = shake(peft.get_peft_model(net(groups=groups), config_of(peft, variant)).eval(), seed=4)
    theirs.save_pretrained(tmp_path / "theirs")
    model, x = load_adapter(net(groups=groups), tmp_path / "theirs"), images()
    adapted = model(x)
    assert relative_error(adapted, theirs(x)) < 1e-5
    save_adapter(model, tmp_path / "ours")
    assert_files_equal(tmp_path, 1e-6)
    if groups > 1:
        with refused("second .*2 groups"):
            merge(model)
        assert torch.equal(model(x), adapted)
    else:
        assert_merged_alike(model, theirs)
        assert type(model.first) is nn.Conv2d


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_life_of_an_adapter(variant: str, tmp_path: Path):
    assert_lifecycle(net, config_of(tsugiki, variant), tmp_path, lambda model: model(images()))


@pytest.mark.parametrize("variant", ["plain", "dora"])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_training_steps_equal_pefts(p: float, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def same(x: Tensor, p: float = 0.5) -> Tensor:  # the same mask for both
        return x * (torch.rand(x.shape[1:], generator=seeded(x.shape[1])) >= p) / (1 - p)

    config = config_of(peft, variant, lora_dropout=p, target_modules=["first", "second"])
    theirs = shake(peft.get_peft_model(net(), config).train(p > 0))
    theirs.save_pretrained(tmp_path / "start")
    ours = load_adapter(net(), tmp_path / "start").train()
    monkeypatch.setattr("tsugiki.fast.layers.dropout", lambda x, p: same(x, p) if p else x)
    for module in theirs.modules():
        if p and hasattr(module, "lora_dropout"):
            module.lora_dropout.default.forward = same
    for model in (theirs, ours):
        optimizer = torch.optim.AdamW([q for q in model.parameters() if q.requires_grad], lr=1e-2)
        for seed in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(images(seed=seed)), torch.tensor([0, 1, 2, 3, 0])).backward()
            optimizer.step()
    theirs.save_pretrained(tmp_path / "theirs")
    save_adapter(ours, tmp_path / "ours")
    assert_files_equal(tmp_path, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": (2, 3), "stride": (2, 1), "padding": "valid"},
        {"kernel_size": 3, "padding": "same", "dilation": 3, "bias": False},
    ],
)
def test_it_computes_the_convolution_with_the_merged_kernel(settings: dict[str, Any], dtype: torch.dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, **settings)).to(dtype)
    graft(model, LoraConfig(r=2, target_modules=["0"], init_lora_weights=False, lora_dropout=0.5))
    assert isinstance(model[0], LoraConv2d)
    x = torch.randn(2, 3, 9, 9).to(dtype)
    assert not torch.equal(model.train()(x), model(x))
    adapted = model.eval()(x)
    assert adapted.dtype == dtype
    assert model[0].lora.A.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert relative_error(merge(model)(x), adapted) < tolerance
    assert model[0].weight is model[0].base_layer.weight
