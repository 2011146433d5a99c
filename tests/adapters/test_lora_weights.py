"""An adapter without a model: read, and written so that PEFT and Tsugiki compute the same with it."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from tests.adapters.test_format import CASES, peft_model, settings
from tests.tiny import logits, relative_error, save_grafted, shake, tiny_model
from tsugiki import LoraConfig, TsugikiError, load_adapter
from tsugiki.adapters import (
    BaseReference,
    LayerFactors,
    LoraWeights,
    Provenance,
    read_lora_weights,
    truncated,
    write_lora_weights,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def saved(folder: Path, **fields: Any) -> torch.Tensor:
    """Save a shaken adapter of a tiny GPT-2; returns its logits."""
    return logits(save_grafted(folder, tiny_model(), LoraConfig(**{"r": 4, "lora_alpha": 12, **fields})))


@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_what_is_written_again_is_the_same_adapter(kind: str, variant: str, tmp_path: Path):
    theirs = shake(peft_model(kind, settings(kind, variant)))
    theirs.save_pretrained(tmp_path / "theirs")
    write_lora_weights(read_lora_weights(tmp_path / "theirs"), tmp_path / "ours", None)
    again = peft.PeftModel.from_pretrained(tiny_model(kind), tmp_path / "ours").eval()
    assert relative_error(logits(again), logits(theirs)) < 1e-6
    model = load_adapter(tiny_model(kind), tmp_path / "ours")
    assert relative_error(logits(model), logits(theirs)) < 1e-5


def test_ranks_and_scalings_are_the_layers(tmp_path: Path):
    adapted = saved(
        tmp_path / "a", target_modules=["c_attn", "c_proj"], rank_pattern={"c_attn": 2}, alpha_pattern={"mlp.c_proj": 5}
    )
    write_lora_weights(read_lora_weights(tmp_path / "a"), tmp_path / "b", Provenance(operation="test"))
    fields = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert (fields["r"], fields["lora_alpha"]) == (4, 12)
    assert fields["rank_pattern"] == {rf"^transformer\.h\.{i}\.attn\.c_attn": 2 for i in range(2)}
    assert json.loads((tmp_path / "b" / "tsugiki.json").read_text())["provenance"]["operation"] == "test"
    model = load_adapter(tiny_model(), tmp_path / "b")
    assert torch.equal(logits(model), adapted)


class TwoStacks(nn.Module):
    """The name of each layer of `h` is the end of the name of a layer of `enc.h`."""

    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList([nn.Linear(6, 5, bias=False, dtype=torch.float64)])
        self.enc = nn.Module()
        self.enc.h = nn.ModuleList([nn.Linear(6, 5, bias=False, dtype=torch.float64)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.h[0](x), self.enc.h[0](x)], -1)


def test_the_settings_of_a_layer_are_not_those_of_a_layer_whose_name_ends_alike(tmp_path: Path):
    torch.manual_seed(0)
    layers = {
        "enc.h.0": LayerFactors(torch.randn(2, 6), torch.randn(5, 2), 0.5),
        "h.0": LayerFactors(torch.randn(2, 6), torch.randn(5, 2), 32.0),
    }
    config = LoraConfig(r=2, lora_alpha=1, target_modules=["h.0", "enc.h.0"])
    lora = LoraWeights(config, layers, {}, BaseReference(), None)
    doubled = {path: replace(layer, scaling=2 * layer.scaling) for path, layer in layers.items()}
    updates = truncated(replace(lora, layers=doubled), 2)[0], lora
    for number, (written, factor) in enumerate(zip(updates, (2.0, 1.0), strict=True)):
        folder = tmp_path / str(number)
        write_lora_weights(written, folder, None)
        again = read_lora_weights(folder).layers
        model, x = TwoStacks(), torch.randn(4, 6, dtype=torch.float64)
        expected = torch.cat(
            [
                x @ (layer.weight + factor * one.scaling * one.B.double() @ one.A.double()).T
                for layer, one in ((model.h[0], layers["h.0"]), (model.enc.h[0], layers["enc.h.0"]))
            ],
            -1,
        )
        assert {path: layer.scaling for path, layer in again.items()} == {
            path: factor * layer.scaling for path, layer in layers.items()
        }
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder)
        assert relative_error(theirs(x), expected) < 1e-6
        load_adapter(model, folder)
        assert relative_error(model(x), expected) < 1e-6


@pytest.mark.parametrize("fields", [{"use_dora": True}, {"use_rslora": True}, {"init_lora_weights": "pissa"}])
def test_relatives(fields: dict[str, Any], tmp_path: Path):
    adapted = saved(tmp_path / "a", **fields)
    write_lora_weights(read_lora_weights(tmp_path / "a"), tmp_path / "b", None)
    model = load_adapter(tiny_model(), tmp_path / "b")
    assert relative_error(logits(model), adapted) < 1e-5


def test_nothing_is_left_of_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved(tmp_path / "a")
    lora = read_lora_weights(tmp_path / "a")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tsugiki.adapters.files.write_json", full)
    with pytest.raises(TsugikiError, match="cannot write .*: No space left"):
        write_lora_weights(lora, tmp_path / "b", None)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("x")
    with pytest.raises(TsugikiError, match="exists"):
        write_lora_weights(lora, tmp_path / "b", None)
    assert (tmp_path / "b" / "mine").read_text() == "x"


def test_weights_can_be_read_by_whoever_reads_the_config(tmp_path: Path):
    saved(tmp_path / "a")
    write_lora_weights(read_lora_weights(tmp_path / "a"), tmp_path / "b", None)
    for folder in ("a", "b"):
        modes = {path.stat().st_mode for path in (tmp_path / folder).iterdir()}
        assert len(modes) == 1
