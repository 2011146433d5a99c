"""Vision models: a ViT of transformers, torchvision's ViT and ResNet."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from tests.tiny import relative_error, shake
from tsugiki import LoraConfig, TsugikiError, disable_adapter, graft, load_adapter, merge, save_adapter, ungraft
from tsugiki.lora.graft import trainable_parameters
from tsugiki.methods.table import METHODS

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


def outputs(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        found = model.eval()(x)
    logits: Tensor = found if isinstance(found, Tensor) else found.logits
    return logits


def train(model: Any, x: Tensor, steps: int) -> list[float]:
    labels = torch.arange(len(x)) % 5
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
    losses = []
    for _ in range(steps):
        found = model.train()(x)
        loss = F.cross_entropy(found if isinstance(found, Tensor) else found.logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def whole_life(make: Any, config: LoraConfig, folder: Path, size: int = 16, start: float = 0.0, steps: int = 25) -> Any:
    """Graft, train, save, load here and in PEFT, disable and merge an adapter; return the loaded model."""
    model, x = make(), images(size)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    base = outputs(model, x)
    graft(model, config)
    assert relative_error(outputs(model, x), base) <= start
    losses = train(model, x, steps)
    assert losses[-1] < 0.8 * losses[0]
    adapted = outputs(model, x)
    assert relative_error(adapted, base) > 1e-2
    save_adapter(model, folder)
    with disable_adapter(model):
        assert torch.equal(outputs(model, x), base)
    again = make()
    load_adapter(again, folder)
    assert torch.equal(outputs(again, x), adapted)
    theirs = peft.PeftModel.from_pretrained(make(), folder).eval()
    assert relative_error(outputs(theirs, x), adapted) < 1e-4
    assert relative_error(outputs(merge(model), x), adapted) < 1e-4
    ungraft(again)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    return model


@pytest.mark.parametrize("name", ["lora", "dora", "lora-fa"])
def test_a_vit_of_transformers(name: str, tmp_path: Path):
    fields = {"r": 4, "target_modules": ["projection", *_linears(vit())], "modules_to_save": ["classifier"]}
    model = whole_life(vit, METHODS[name].configure(fields), tmp_path)
    assert model.vit.embeddings.patch_embeddings.projection.lora is None, "merged"


@pytest.mark.parametrize("name", ["pissa", "orthogonal"])
def test_other_initialisations_on_its_linear_layers(name: str, tmp_path: Path):
    config = METHODS[name].configure({"r": 4, "target_modules": "all-linear", "modules_to_save": ["classifier"]})
    whole_life(vit, config, tmp_path, start=1e-4 if name == "orthogonal" else 0.0)


def _linears(model: Any) -> list[str]:
    found = {name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    return sorted(found - {"classifier"})


def test_all_linear_leaves_convolutions_out():
    adapter = graft(vit(), LoraConfig(target_modules="all-linear"))
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
    whole_life(resnet18, config, tmp_path, size=32, steps=8)


def test_torchvisions_vit(tmp_path: Path):
    config = LoraConfig(r=4, target_modules=["conv_proj", "mlp.0", "mlp.3"], modules_to_save=["heads"])
    whole_life(vit_b_16, config, tmp_path, size=32)


def test_the_parameter_count_of_vit_b_16():
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
        graft(model, LoraConfig(r=8, target_modules=["conv_proj", "mlp.0", "mlp.3"]))
    trained = sum(p.numel() for p in trainable_parameters(model).values())
    assert trained == 8 * (3 * 16 * 16 + 768) + 12 * 8 * 2 * (768 + 3072)


def test_layers_that_multihead_attention_does_not_call_are_refused():
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    with pytest.raises(
        TsugikiError, match=r"matches 0\.out_proj, a NonDynamicallyQuantizableLinear, which cannot be grafted"
    ):
        graft(model, LoraConfig(target_modules=["out_proj"]))
    assert set(graft(model, LoraConfig(target_modules="all-linear")).pairs) == {"1"}


def test_a_vit_without_target_modules_is_refused():
    with pytest.raises(TsugikiError, match="no default target_modules for 'vit'; name them"):
        graft(vit(), LoraConfig())


def test_a_file_of_another_model_is_refused(tmp_path: Path):
    model = vit()
    graft(model, LoraConfig(target_modules=["projection"]))
    save_adapter(shake(model), tmp_path)
    with pytest.raises(TsugikiError, match="does not fit this model"):
        load_adapter(nn.Sequential(nn.Conv2d(3, 4, 3)), tmp_path)
