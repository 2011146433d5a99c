"""Several adapters read as one for a model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny import logits, relative_error, shake, tiny_model
from tsugiki import LoraConfig, TsugikiError, graft, load_adapter, save_adapter
from tsugiki.adapters import load_weighted_sum, read_lora_weights
from tsugiki.lora import add_adapter


def saved(folder: Path, seed: int, **settings: object) -> Path:
    model = tiny_model()
    torch.manual_seed(seed)
    graft(model, LoraConfig(target_modules=["c_attn", "c_fc"], **settings))  # type: ignore[arg-type]
    shake(model)
    save_adapter(model, folder)
    return folder


def update(folder: Path, layer: str) -> Tensor:
    factors = read_lora_weights(folder).layers[layer]
    return factors.scaling * (factors.B @ factors.A)


def test_the_weighted_updates_are_added(tmp_path: Path):
    folders = [saved(tmp_path / "a", 0, r=2), saved(tmp_path / "b", 1, r=3, lora_alpha=5)]
    model = tiny_model()
    for weights, factors in ((None, (1, 1)), ([0.5, -2.0], (0.5, -2.0))):
        adapter = load_weighted_sum(model, folders, weights)
        for layer, pair in adapter.pairs.items():
            expected = sum(factor * update(folder, layer) for factor, folder in zip(factors, folders, strict=True))
            assert relative_error(pair.delta(), expected) < 1e-6
            assert len(pair.A) == 5


def test_one_adapter_alone_is_itself(tmp_path: Path):
    model, other = tiny_model(), tiny_model()
    add_adapter(model, load_weighted_sum(model, [saved(tmp_path / "a", 0, r=2, use_dora=True)]), "default")
    load_adapter(other, tmp_path / "a")
    assert torch.equal(logits(model), logits(other))


def test_more_than_updates_cannot_be_weighted(tmp_path: Path):
    folder = saved(tmp_path / "a", 0, r=2, use_dora=True)
    with pytest.raises(TsugikiError, match="--weights"):
        load_weighted_sum(tiny_model(), [folder], [2.0])
    with pytest.raises(TsugikiError, match="each of the 1 adapters"):
        load_weighted_sum(tiny_model(), [folder], [2.0, 1.0])
