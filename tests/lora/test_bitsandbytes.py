"""Layers that bitsandbytes has quantised: adapters train, are saved and loaded; what reads weights is refused."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from tests.tiny import ids, logits, relative_error, shake, tiny_model
from tsugiki import LoraConfig, TsugikiError, disable_adapter, graft, load_adapter, merge, save_adapter
from tsugiki.lora import is_grafted, merge_quantized

bnb = pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.filterwarnings("ignore")


def quantized(bits: int) -> Any:
    """A tiny Llama whose linear layers inside the blocks are those of bitsandbytes."""
    model = tiny_model("llama", hidden_size=64, intermediate_size=128)
    for name, layer in list(model.model.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        if bits == 8:
            other = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, False, has_fp16_weights=False)
            other.weight = bnb.nn.Int8Params(layer.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
        else:
            other = bnb.nn.Linear4bit(layer.in_features, layer.out_features, False, quant_type="nf4")
            other.weight = bnb.nn.Params4bit(layer.weight.data.clone(), requires_grad=False, quant_type="nf4")
        parent, _, child = name.rpartition(".")
        setattr(model.model.get_submodule(parent), child, other.to("cpu"))
    return model


@pytest.mark.parametrize("bits", [8, 4])
def test_an_adapter_trains_is_saved_and_loaded(bits: int, tmp_path: Path):
    model = quantized(bits)
    base = logits(model)
    graft(model, LoraConfig(r=4))
    assert len(model._tsugiki.adapters["default"].pairs) == 14, "all linear layers in two blocks"
    assert torch.equal(logits(model), base)
    shake(model)(input_ids=ids(), labels=ids()).loss.backward()
    assert all(pair.A.grad.abs().max() > 0 for pair in model._tsugiki.adapters["default"].pairs.values())
    save_adapter(model, tmp_path)
    other = quantized(bits)
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other), logits(model))
    theirs = peft.PeftModel.from_pretrained(quantized(bits), tmp_path).eval()
    assert relative_error(logits(theirs), logits(model)) < 1e-3
    with disable_adapter(model):
        assert torch.equal(logits(model), base)
    for merging in (merge, merge_quantized):
        with pytest.raises(TsugikiError, match=r"layers.0.*quantised"):
            merging(model)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("settings", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_what_reads_the_weights_is_refused(bits: int, settings: dict[str, Any]):
    model = quantized(bits)
    with pytest.raises(TsugikiError, match="quantised by a Linear"):
        graft(model, LoraConfig(r=4, **settings))
    assert not is_grafted(model)
