"""Fast products while text is generated."""

import pytest
import torch
from torch import nn

from tests.tiny import tiny_model
from tsugiki import LoraConfig, disable_adapter, graft, mixed_batch, trainable_parameters, ungraft
from tsugiki.fast import fast_generation, generated_rms_norm, modules
from tsugiki.lowbit import few_rows_product
from tsugiki.model import is_conv1d, linear_of_matrix
from tsugiki.native import native

pytestmark = pytest.mark.skipif(native("few_rows", "bfloat16") is None, reason="no compiler, or not this processor")
IDS = torch.arange(3, 10)[None]


def bfloat16_model(kind: str = "llama") -> nn.Module:
    model = tiny_model(kind).bfloat16().eval()
    model.config.dtype = torch.bfloat16
    return model


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of rows of the fast products from now on."""
    rows: list[int] = []

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows.append(len(x))
        return few_rows_product(x, weight, bias)

    monkeypatch.setattr(modules, "few_rows_product", product)
    return rows


def replaced(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if "forward" in vars(layer)]


@torch.no_grad()
@pytest.mark.parametrize("grafted", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # GPT-2's weights are stored transposed
def test_every_linear_layer_is_multiplied_fast_and_logits_stay(
    kind: str, grafted: bool, monkeypatch: pytest.MonkeyPatch
):
    model = bfloat16_model(kind)
    if grafted:
        graft(model, LoraConfig(r=2, target_modules="all-linear"))
        for parameter in trainable_parameters(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    layers = sum(type(layer) is nn.Linear or is_conv1d(layer) for layer in model.modules())
    before, expected = replaced(model), model(IDS[:, :4]).logits
    rows = counted(monkeypatch)
    with fast_generation(model):
        found = model(IDS[:, :4]).logits
        assert rows == [4] * layers
        model(IDS)
    assert replaced(model) == before
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    assert torch.equal(model(IDS[:, :4]).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "count"), [("llama", 5), ("gemma3_text", 13), ("gpt2", 0)])
def test_norms_are_computed_in_one_pass(kind: str, count: int, monkeypatch: pytest.MonkeyPatch):
    model, seen = bfloat16_model(kind), []

    def norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        seen.append(x.shape)
        return generated_rms_norm(x, weight, eps, offset)

    monkeypatch.setattr(modules, "generated_rms_norm", norm)
    expected, state = model(IDS).logits, torch.get_rng_state()
    with fast_generation(model):
        found = model(IDS).logits
    assert len(seen) == count
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    assert replaced(model) == []


@torch.no_grad()
def test_adapters_come_and_go_within_the_block(monkeypatch: pytest.MonkeyPatch):
    model = bfloat16_model()
    with fast_generation(model):
        base = model(IDS[:, :2]).logits
        graft(model, LoraConfig(r=2, target_modules="all-linear"), "a")
        for parameter in trainable_parameters(model).values():
            parameter.add_(torch.randn_like(parameter))
        model.eval()
        rows = counted(monkeypatch)
        with disable_adapter(model):
            assert torch.equal(model(IDS[:, :2]).logits, base)
        with_adapter = model(IDS[:, :2]).logits
        with mixed_batch(model, ["a", None]):
            mixed = model(IDS[:, :2].expand(2, 2)).logits
        assert not torch.equal(with_adapter, base)
        torch.testing.assert_close(mixed[0], with_adapter[0], rtol=0.05, atol=0.1)
        torch.testing.assert_close(mixed[1], base[0], rtol=0.05, atol=0.05)
        assert rows == [], "the layers were replaced before"
        ungraft(model)
        assert torch.equal(model(IDS[:, :2]).logits, base)
    assert replaced(model) == []


@torch.no_grad()
def test_layers_that_compute_something_else_stay_as_they_are():
    model = bfloat16_model()
    hooked, own = model.model.layers[0].self_attn.q_proj, model.model.layers[0].self_attn.k_proj
    calls = []
    hooked.register_forward_hook(lambda *call: calls.append(call))
    own.forward = linear_of_matrix  # some other function

    with fast_generation(model):
        assert "forward" not in vars(hooked)
        assert own.forward is linear_of_matrix
        assert "forward" in vars(model.lm_head)
    assert own.forward is linear_of_matrix


def test_a_model_in_float32_stays_as_it_is():
    model = tiny_model("llama")
    with fast_generation(model):
        assert replaced(model) == []
