"""An adapter without a model: read, and written so that PEFT and Tsugiki compute the same with it."""

import copy
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from tests.adapters.test_format import CASES, peft_model, settings
from tests.files import json_of
from tests.tiny import logits, relative_error, save_grafted, shake, tiny_model
from tsugiki import LoraConfig, load_adapter
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
    patterns = {"rank_pattern": {"c_attn": 2}, "alpha_pattern": {"mlp.c_proj": 5}}
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["c_attn", "c_proj"], **patterns)
    adapted = logits(save_grafted(tmp_path / "a", tiny_model(), config))
    write_lora_weights(read_lora_weights(tmp_path / "a"), tmp_path / "b", Provenance(operation="test"))
    fields = json_of(tmp_path / "b" / "adapter_config.json")
    assert (fields["r"], fields["lora_alpha"]) == (4, 12)
    assert fields["rank_pattern"] == {rf"^transformer\.h\.{i}\.attn\.c_attn": 2 for i in range(2)}
    assert json_of(tmp_path / "b" / "tsugiki.json")["provenance"]["operation"] == "test"
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
        path: LayerFactors(torch.randn(2, 6), torch.randn(5, 2), scaling)
        for path, scaling in {"enc.h.0": 1.0, "h.0": 64.0}.items()
    }
    config = LoraConfig(r=2, lora_alpha=1, target_modules=["h.0", "enc.h.0"])
    write_lora_weights(truncated(LoraWeights(config, layers, {}, BaseReference(), None), 2)[0], tmp_path, None)
    again = read_lora_weights(tmp_path).layers
    assert {path: layer.scaling for path, layer in again.items()} == {"enc.h.0": 1.0, "h.0": 64.0}
    model, x = TwoStacks(), torch.randn(4, 6, dtype=torch.float64)
    both = (model.h[0], layers["h.0"]), (model.enc.h[0], layers["enc.h.0"])
    expected = [x @ (layer.weight + one.scaling * one.B.double() @ one.A.double()).T for layer, one in both]
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path)
    for found in (theirs(x), load_adapter(model, tmp_path)(x)):
        assert relative_error(found, torch.cat(expected, -1)) < 1e-6
