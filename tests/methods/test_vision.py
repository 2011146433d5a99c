"""Vision models: a ViT of transformers, torchvision's ViT and ResNet."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from tests.lifecycle import assert_lifecycle
from tests.tiny import shake
from tsugiki import LoraConfig, TsugikiError, active_adapter, graft, load_adapter, save_adapter
from tsugiki.lora import trainable_parameters
from tsugiki.methods import METHODS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
        num_labels=5,
        hidden_dropout_prob=0.1,
    )
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(config).eval()


def images(size: int = 16, rows: int = 6) -> Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(1))


def assert_vision_lifecycle(
    make: Any, config: LoraConfig, folder: Path, size: int = 16, start: float = 0.0, steps: int = 25
) -> None:
    """`assert_lifecycle` on a batch of images, with a training that must lower the loss by a fifth."""
    x = images(size)

    def outputs(model: Any) -> Tensor:
        found = model(x)
        logits: Tensor = found if isinstance(found, Tensor) else found.logits
        return logits

    def train(model: Any) -> None:
        optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
        losses = []
        for _ in range(steps):
            loss = F.cross_entropy(outputs(model.train()), torch.arange(len(x)) % 5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.8 * losses[0]

    assert_lifecycle(make, config, folder, outputs, train, start)


@pytest.mark.parametrize("name", ["lora", "dora", "lora-fa"])
def test_a_vit_of_transformers(name: str, tmp_path: Path):
    fields = {"r": 4, "target_modules": ["projection", *_linears(vit())], "modules_to_save": ["classifier"]}
    assert_vision_lifecycle(vit, METHODS[name].configure(fields), tmp_path)


@pytest.mark.parametrize("name", ["pissa", "orthogonal"])
def test_other_initialisations_on_its_linear_layers(name: str, tmp_path: Path):
    config = METHODS[name].configure({"r": 4, "target_modules": "all-linear", "modules_to_save": ["classifier"]})
    assert_vision_lifecycle(vit, config, tmp_path, start=1e-4 if name == "orthogonal" else 0.0)


def _linears(model: Any) -> list[str]:
    found = {name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    return sorted(found - {"classifier"})


def test_all_linear_leaves_convolutions_out():
    adapter = active_adapter(graft(vit(), LoraConfig(target_modules="all-linear")))
    assert not any("projection" in path for path in adapter.pairs)
    assert len(adapter.pairs) == 2 * 6 + 1


# The same shapes as in torchvision, which is not a dependency.


def resnet18() -> Any:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=5).eval()


def vit_b_16() -> Any:
    """The structure of torchvision's ViT, with fewer and narrower layers."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5
    )
    nn.init.normal_(model.heads.head.weight)  # its initial value is zero
    return model.eval()


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_torchvisions_resnet(name: str, tmp_path: Path):
    config = METHODS[name].configure(
        {"r": 4, "target_modules": ["conv1", "conv2", "downsample.0"], "modules_to_save": ["fc"]}
    )
    assert_vision_lifecycle(resnet18, config, tmp_path, size=32, steps=8)


def test_torchvisions_vit(tmp_path: Path):
    config = LoraConfig(r=4, target_modules=["conv_proj", "mlp.0", "mlp.3"], modules_to_save=["heads"])
    assert_vision_lifecycle(vit_b_16, config, tmp_path, size=32)


def test_the_parameter_count_of_vit_b_16():
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
        graft(model, LoraConfig(r=8, target_modules=["conv_proj", "mlp.0", "mlp.3"]))
    trained = sum(p.numel() for p in trainable_parameters(model).values())
    assert trained == 8 * (3 * 16 * 16 + 768) + 12 * 8 * 2 * (768 + 3072)


def test_layers_that_multihead_attention_does_not_call_are_refused():
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    with pytest.raises(TsugikiError, match=r"0\.out_proj.*NonDynamicallyQuantizableLinear"):
        graft(model, LoraConfig(target_modules=["out_proj"]))
    assert set(active_adapter(graft(model, LoraConfig(target_modules="all-linear"))).pairs) == {"1"}


def test_the_default_layers_of_a_vit_are_the_linear_ones_of_its_blocks():
    adapter = active_adapter(graft(vit(), LoraConfig()))
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"}
    assert {path.rpartition(".")[2] for path in adapter.pairs} == names


def test_a_file_of_another_model_is_refused(tmp_path: Path):
    model = vit()
    graft(model, LoraConfig(target_modules=["projection"]))
    save_adapter(shake(model), tmp_path)
    with pytest.raises(TsugikiError, match="projection"):
        load_adapter(nn.Sequential(nn.Conv2d(3, 4, 3)), tmp_path)
