"""LoRA on convolutions, compared with PEFT and with the merged kernel."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from tests.tiny import relative_error, shake
from tsugiki import (
    LoraConfig,
    TsugikiError,
    disable_adapter,
    graft,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
    ungraft,
    unmerge,
)
from tsugiki.io import ADAPTER_FILE
from tsugiki.lora import LoraConv2d, is_grafted

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
    return torch.randn(rows, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


FIELDS: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["first", "second", "one", "fc"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "biases": {"bias": "lora_only"},
    "ranks": {"rank_pattern": {"first": 2}, "alpha_pattern": {"one": 3}},
    "saved": {"target_modules": ["first", "second"], "modules_to_save": ["fc"]},
}


def theirs_like(model: Any, variant: str) -> Any:
    return peft.get_peft_model(model, peft.LoraConfig(**{**FIELDS, **VARIANTS[variant]})).eval()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("groups", [1, 2])
def test_peft_reads_our_files_and_we_read_its(groups: int, variant: str, tmp_path: Path):
    if variant == "dora" and groups > 1:
        pytest.skip("refused")
    model, x = net(groups=groups), images()
    base = model(x)
    graft(model, LoraConfig(**{**FIELDS, **VARIANTS[variant]}))
    assert torch.equal(model(x), base)
    assert torch.equal(model.train()(x), base)
    adapted = shake(model.eval())(x)
    assert relative_error(adapted, base) > 1e-2
    save_adapter(model, tmp_path / "ours")
    other = peft.PeftModel.from_pretrained(net(groups=groups), tmp_path / "ours").eval()
    assert relative_error(other(x), adapted) < 1e-5
    again = net(groups=groups)
    load_adapter(again, tmp_path / "ours")
    assert torch.equal(again(x), adapted)

    theirs = shake(theirs_like(net(groups=groups), variant), seed=4)
    theirs.save_pretrained(tmp_path / "theirs")
    mine = net(groups=groups)
    load_adapter(mine, tmp_path / "theirs")
    assert relative_error(mine(x), theirs(x)) < 1e-5
    stored, given = (load_file(tmp_path / who / ADAPTER_FILE) for who in ("ours", "theirs"))
    assert {key: t.shape for key, t in stored.items()} == {key: t.shape for key, t in given.items()}
    with disable_adapter(mine):
        assert torch.equal(mine(x), base)


@pytest.mark.parametrize("variant", ["plain", "dora"])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_training_steps_equal_pefts(p: float, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def same(x: Tensor, p: float = 0.5) -> Tensor:  # the same mask for both
        return x * (torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(x.shape[1])) >= p) / (1 - p)

    monkeypatch.setitem(
        VARIANTS, "here", {**VARIANTS[variant], "lora_dropout": p, "target_modules": ["first", "second"]}
    )
    theirs = shake(theirs_like(net(), "here"))
    theirs.save_pretrained(tmp_path / "start")
    ours = net()
    load_adapter(ours, tmp_path / "start")
    monkeypatch.setattr("tsugiki.fast.layers.dropout", lambda x, p: same(x, p) if p else x)
    if p:
        theirs.train()
        for module in theirs.modules():
            if hasattr(module, "lora_dropout"):
                module.lora_dropout.default.forward = same
    ours.train()
    for model in (theirs, ours):
        optimizer = torch.optim.AdamW([q for q in model.parameters() if q.requires_grad], lr=1e-2)
        for seed in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(images(seed=seed)), torch.tensor([0, 1, 2, 3, 0])).backward()
            optimizer.step()
    for module in theirs.modules():
        vars(module).pop("forward", None)
    assert relative_error(ours.eval()(images()), theirs.eval()(images())) < 1e-4
    theirs.save_pretrained(tmp_path / "theirs")
    save_adapter(ours, tmp_path / "ours")
    mine, other = (load_file(tmp_path / who / ADAPTER_FILE) for who in ("ours", "theirs"))
    for key, tensor in mine.items():
        assert relative_error(tensor, other[key]) < 1e-4, key


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_weights_equal_pefts(variant: str, tmp_path: Path):
    theirs = shake(theirs_like(net(), variant))
    theirs.save_pretrained(tmp_path)
    model, x = net(), images()
    base = model(x)
    load_adapter(model, tmp_path)
    adapted = model(x)
    assert relative_error(merge(model)(x), adapted) < 1e-5
    assert torch.equal(unmerge(model)(x), adapted)
    with disable_adapter(model):
        assert torch.equal(model(x), base)
    ours = dict(ungraft(merge(model)).named_parameters())
    assert type(model.first) is nn.Conv2d
    for name, weight in theirs.merge_and_unload().named_parameters():
        assert relative_error(ours[name], weight) < 1e-5, name


def test_exactly_the_pairs_train():
    model = net(groups=2)
    graft(model, LoraConfig(r=4, target_modules=["first", "second", "one"]))
    assert {name: tuple(p.shape) for name, p in trainable_parameters(model).items()} == {
        "first.lora.A": (4, 3, 3, 3),
        "first.lora.B": (8, 4, 1, 1),
        "second.lora.A": (4, 8, 3, 5),
        "second.lora.B": (12, 2, 1, 1),
        "one.lora.A": (4, 12, 1, 1),
        "one.lora.B": (6, 4, 1, 1),
    }


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 6, 3, padding=2, dilation=2),
        nn.Conv2d(3, 6, (2, 3), stride=(2, 1), padding="valid"),
        nn.Conv2d(3, 6, 3, padding="same", dilation=3, bias=False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_computes_the_convolution_with_the_merged_kernel(layer: nn.Conv2d, dtype: torch.dtype):
    torch.manual_seed(0)
    model = nn.Sequential(copy.deepcopy(layer)).to(dtype)
    graft(model, LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    assert isinstance(model[0], LoraConv2d)
    x = torch.randn(2, 3, 9, 9).to(dtype)
    adapted = model(x)
    assert adapted.dtype == dtype
    assert model[0].lora.A.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert relative_error(merge(model)(x), adapted) < tolerance
    assert model[0].weight is model[0].base_layer.weight


def test_dropout_applies_to_the_low_rank_path_in_training_only():
    model = net()
    graft(model, LoraConfig(r=4, target_modules=["second"], lora_dropout=0.5))
    x = images()
    shake(model)
    assert torch.equal(model(x), model(x))
    assert not torch.equal(model.train()(x), model(x))
    ungraft(model)
    assert torch.equal(model(x), net()(x))


@pytest.mark.parametrize(
    ("layer", "fields", "message"),
    [
        (nn.Conv2d(4, 4, 3, groups=4), {"r": 6}, "0 .*Conv2d .*4 groups.*rank 6"),
        (nn.Conv2d(4, 4, 3, groups=2), {"use_dora": True}, "use_dora.* 0 .*Conv2d .*2 groups"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), {}, "0 is a Conv2d .*circular"),
        (nn.Conv2d(4, 4, 3), {"init_lora_weights": "pissa"}, "'pissa' .*linear.* 0 .*Conv2d"),
        (nn.Conv2d(4, 4, 3), {"init_lora_weights": "orthogonal"}, "'orthogonal' .*linear"),
        (nn.ConvTranspose2d(4, 4, 3), {}, " 0.*ConvTranspose2d"),
    ],
)
def test_settings_that_do_not_fit_a_layer_are_refused(layer: nn.Module, fields: dict[str, Any], message: str):
    model = nn.Sequential(layer)
    with pytest.raises(TsugikiError, match=message):
        graft(model, LoraConfig(target_modules=["0"], **fields))
    assert not is_grafted(model)


def test_a_convolution_with_groups_cannot_be_merged():
    model = net(groups=2)
    graft(model, LoraConfig(**FIELDS))
    adapted = shake(model)(images())
    with pytest.raises(TsugikiError, match="second .*2 groups"):
        merge(model)
    assert torch.equal(model(images()), adapted)


def test_a_model_without_a_config_requires_target_names():
    with pytest.raises(TsugikiError, match="target_modules.* fc, first, one, second"):
        graft(net(), LoraConfig())
