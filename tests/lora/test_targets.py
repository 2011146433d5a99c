"""The layers that target modules select."""

import pytest
from torch import nn

from tests.tiny import CONFIGS, tiny_model
from tsugiki import (
    LoraConfig,
    TsugikiError,
    graft,
    trainable_parameters,
)
from tsugiki.architectures import ARCHITECTURES


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_table_knows_the_architecture(kind: str):
    model = tiny_model(kind)
    graft(model, LoraConfig(r=2))
    wrapped = {name.split(".lora.")[0].rpartition(".")[2] for name in trainable_parameters(model)}
    assert wrapped == set(ARCHITECTURES[kind].target_modules)


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (LoraConfig(target_modules=["attn.c_proj"]), {"0.attn.c_proj", "1.attn.c_proj"}),
        (LoraConfig(target_modules=r".*\.1\..*c_proj"), {"1.attn.c_proj", "1.mlp.c_proj"}),
        (LoraConfig(target_modules=["c_proj"], layers_to_transform=[1]), {"1.attn.c_proj", "1.mlp.c_proj"}),
        (
            LoraConfig(target_modules=["c_proj"], layers_to_transform=0, layers_pattern="h"),
            {"0.attn.c_proj", "0.mlp.c_proj"},
        ),
        (LoraConfig(target_modules=["c_proj"], exclude_modules=["mlp.c_proj"]), {"0.attn.c_proj", "1.attn.c_proj"}),
        (LoraConfig(target_modules=["c_proj"], exclude_modules=r".*\.0\..*"), {"1.attn.c_proj", "1.mlp.c_proj"}),
        (
            LoraConfig(target_modules="all-linear"),
            {f"{i}.{name}" for i in (0, 1) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")},
        ),
    ],
)
def test_targets(config: LoraConfig, layers: set[str]):
    adapter = graft(tiny_model(), config)
    assert set(adapter.pairs) == {f"transformer.h.{name}" for name in layers}


def test_an_unknown_architecture_requires_targets():
    with pytest.raises(TsugikiError, match="target_modules.*'Sequential'.* 0, 2"):
        graft(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), LoraConfig())
