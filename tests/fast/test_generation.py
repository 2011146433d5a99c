"""Fast products while text is generated."""

import pytest
import torch
from torch import nn

from tests.tiny import tiny_model
from tsugiki import LoraConfig, disable_adapter, graft, mixed_batch, trainable_parameters, ungraft
from tsugiki.fast import fast_generation, generated_rms_norm, modules
from tsugiki.lowbit import few_rows_product
from tsugiki.model import is_conv1d
from tsugiki.native import native

IDS = torch.arange(3, 10)[None]


@pytest.fixture(params=["bfloat16", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if native("few_rows", request.param) is None:
        pytest.skip("no compiler, or not this processor")
    return getattr(torch, request.param)


def model_in(dtype: torch.dtype, kind: str = "llama") -> nn.Module:
    model = tiny_model(kind).to(dtype).eval()
    model.config.dtype = dtype
    return model


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 1e-4 if expected.dtype == torch.float32 else 0.1
    torch.testing.assert_close(found, expected, rtol=tolerance / 2, atol=tolerance)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of rows of the fast products from now on."""
    rows: list[int] = []

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows.append(x.numel() // x.shape[-1])
        return few_rows_product(x, weight, bias)

    monkeypatch.setattr(modules, "few_rows_product", product)
    return rows


def replaced(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if "forward" in vars(layer)]


@torch.no_grad()
@pytest.mark.parametrize("grafted", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # GPT-2's weights are stored transposed
def test_every_linear_layer_is_multiplied_fast_and_logits_stay(
    kind: str, grafted: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    model = model_in(dtype, kind)
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
    assert_close(found, expected)
    assert torch.equal(model(IDS[:, :4]).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "count"), [("llama", 5), ("gemma3_text", 13), ("gpt2", 0)])
def test_norms_are_computed_in_one_pass(kind: str, count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    model, seen = model_in(dtype, kind), []

    def norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        seen.append(x.shape)
        return generated_rms_norm(x, weight, eps, offset)

    monkeypatch.setattr(modules, "generated_rms_norm", norm)
    expected, state = model(IDS).logits, torch.get_rng_state()
    with fast_generation(model):
        found = model(IDS).logits
    assert len(seen) == count
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(found, expected)
    assert replaced(model) == []


@torch.no_grad()
def test_adapters_come_and_go_within_the_block(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    model = model_in(dtype)
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
        assert_close(mixed[0], with_adapter[0])
        assert_close(mixed[1], base[0])
        assert rows == [], "the layers were replaced before"
        ungraft(model)
        assert torch.equal(model(IDS[:, :2]).logits, base)
    assert replaced(model) == []


@torch.no_grad()
def test_layers_that_compute_something_else_stay_as_they_are(dtype: torch.dtype):
    model = model_in(dtype)
    hooked, own = model.model.layers[0].self_attn.q_proj, model.model.layers[0].self_attn.k_proj
    calls = []
    hooked.register_forward_hook(lambda *call: calls.append(call))
    own.forward = torch.relu  # some other function

    with fast_generation(model):
        assert "forward" not in vars(hooked)
        assert own.forward is torch.relu
        assert "forward" in vars(model.lm_head)
    assert own.forward is torch.relu


def test_a_model_in_float64_stays_as_it_is():
    model = tiny_model("llama").double()
    with fast_generation(model):
        assert replaced(model) == []
