"""Merging in memory."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from tests.errors import refused
from tests.tiny import logits, shake, tiny_model
from tsugiki import (
    LoraConfig,
    disable_adapter,
    graft,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
    ungraft,
    unmerge,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Quantized(nn.Linear):
    """A layer as quantisation libraries have them: codes called `weight`, and scales beside them."""

    def __init__(self, dtype: torch.dtype, as_buffer: bool) -> None:
        super().__init__(6, 6, bias=False)
        codes = (torch.randn(6, 6) * 20).to(dtype)
        del self.weight
        if as_buffer:
            self.register_buffer("weight", codes)
        else:
            self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scale", torch.rand(6, 1) / 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.float() * self.scale).T


@pytest.mark.parametrize(("dtype", "as_buffer"), [(torch.int8, True), (torch.float8_e4m3fn, False)])
def test_codes_are_not_merged_into(dtype: torch.dtype, as_buffer: bool):
    torch.manual_seed(0)
    model, x = nn.Sequential(Quantized(dtype, as_buffer)), torch.randn(2, 6)
    base = model(x)
    graft(model, LoraConfig(r=2, lora_alpha=4, target_modules=["0"]))
    pair = shake(model)[0].lora
    expected = base + x @ (2 * pair.B @ pair.A).T
    torch.testing.assert_close(model(x), expected)
    with refused(r"0\.weight is quantised"):
        merge(model)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerge_is_bit_identical(dtype: torch.dtype):
    model = graft(tiny_model().to(dtype), LoraConfig(r=4, target_modules=["c_attn", "mlp.c_proj", "wte"]))
    adapted = logits(shake(model))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not torch.equal(logits(merge(model)), adapted)
    assert torch.equal(logits(unmerge(model)), adapted)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_refused_merge_leaves_the_adapter_active():
    model = tiny_model()
    graft(model, LoraConfig(r=4, target_modules=["c_attn"], modules_to_save=["ln_f"]))
    names = set(trainable_parameters(shake(model)))
    last = model.transformer.ln_f.weight
    kept, last.data = last.data, torch.full_like(last, torch.inf)
    with refused("ln_f"):
        merge(model)
    last.data = kept
    model.transformer.h[0].attn.c_attn.lora.B.data.fill_(torch.inf)
    with refused("not finite in transformer"):
        merge(model)
    assert set(trainable_parameters(model)) == names
    with refused("nothing is grafted"):
        merge(tiny_model())


@pytest.mark.parametrize("shared", [False, True])
def test_statistics_and_shared_weights_of_saved_modules_are_kept(shared: bool, tmp_path: Path):
    class Saved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm = nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3)
            self.two = nn.Linear(3, 3, bias=False)
            self.two.weight = self.one.weight if shared else self.two.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.norm(self.one(x)))

    def made() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 3), Saved()).eval()

    model, x = made(), torch.randn(8, 3)
    base = model(x)
    for name in ("one", "two"):
        graft(model, LoraConfig(r=2, target_modules=["0"], modules_to_save=["1"]), name)
        model.train()(x)
        assert model[1].norm.num_batches_tracked == 1, "each copy has statistics of its own"
    adapted = shake(model.eval())(x)
    if not shared:  # safetensors does not store shared weights
        save_adapter(model, tmp_path)
        assert torch.equal(load_adapter(made(), tmp_path)(x), adapted)
    with disable_adapter(model):
        assert torch.equal(model(x), base)
    merged = ungraft(merge(model))
    torch.testing.assert_close(merged(x), adapted)
    assert (merged[1].one.weight is merged[1].two.weight) == shared
    assert merged[1].norm.num_batches_tracked == 1


@pytest.mark.parametrize("target", ["lm_head", "wte", "c_attn"])
def test_merging_into_a_shared_weight_unties_it_with_a_warning(target: str, tmp_path: Path):
    model = tiny_model()
    config, tied = model.config, target == "c_attn"
    adapted = logits(shake(graft(model, LoraConfig(r=4, target_modules=[target]))))
    with nullcontext() if tied else pytest.warns(UserWarning, match="two weights"):
        merge(model)
    assert config.tie_word_embeddings  # of other models, too
    torch.testing.assert_close(logits(model), adapted, rtol=1e-4, atol=1e-4)
    unmerge(model)
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    ungraft(merge(model)).save_pretrained(tmp_path)
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.tie_word_embeddings is tied
    torch.testing.assert_close(logits(again), adapted, rtol=1e-4, atol=1e-4)
