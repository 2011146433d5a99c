"""DoRA: the fused product against the definition, and edge cases of both."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tests.fast.kept import kept_bytes
from tests.tiny import relative_error
from tsugiki.fast import keep_mask, use_fast_products
from tsugiki.lora import LoraLinear, add_magnitude, dora_factor, new_pair, plain_factor, variants, wrap
from tsugiki.lowbit import Int8Linear
from tsugiki.model import oriented

LAYERS = {
    "linear": nn.Linear,
    "no bias": functools.partial(nn.Linear, bias=False),
    "conv1d": lambda wide, out: Conv1D(out, wide),
}


def grafted(
    kind: str = "linear", dtype: torch.dtype = torch.float32, p: float = 0.0, shape: tuple[int, int] = (24, 40)
) -> Any:
    """A frozen layer in training mode with a DoRA pair of rank 3, moved away from its initial values."""
    torch.manual_seed(0)
    base = LAYERS[kind](*shape).to(dtype).requires_grad_(False)
    if base.bias is not None:
        nn.init.normal_(base.bias)
    module: Any = LoraLinear(base).train()
    module.lora = new_pair(base, 3, 0.7, p, False)
    add_magnitude(module.lora, oriented(base))
    with torch.no_grad():
        for parameter in trained(module.lora):
            parameter.add_(torch.randn_like(parameter) * 0.2)
    use_fast_products(module)
    return module


def plain(module: Any) -> Any:
    """The definition."""
    return functools.partial(LoraLinear.forward, module)


def trained(pair: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in pair.parameters() if parameter.requires_grad]


def results(module: Any, forward: Any, x: Tensor) -> dict[str, Tensor]:
    for tensor in (x, *module.parameters()):
        tensor.grad = None
    y = forward(x)
    (y * torch.arange(1.0, y.numel() + 1).view(y.shape).sin()).sum().backward()
    pair = module.lora
    return {"y": y.detach(), "x": x.grad, "A": pair.A.grad, "B": pair.B.grad, "magnitude": pair.magnitude.grad}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_fused_product_equals_the_definition(kind: str, dtype: torch.dtype):
    module = grafted(kind, dtype)
    x = torch.randn(2, 7, 24).to(dtype).requires_grad_()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    expected = results(module, plain(module), x)
    for name, value in results(module, module, x).items():
        assert value.dtype == expected[name].dtype
        assert relative_error(value, expected[name]) < tolerance, name


@pytest.mark.parametrize("kind", LAYERS)
def test_the_definition_equals_the_formula(kind: str):
    module = grafted(kind, torch.float64)
    pair, layer = module.lora, module.base_layer
    whole = oriented(layer) + 0.7 * pair.B @ pair.A
    factor = pair.magnitude / whole.detach().norm(dim=1)
    x = torch.randn(5, 24, dtype=torch.float64)
    expected = factor * (x @ whole.T) + (0 if layer.bias is None else layer.bias)
    torch.testing.assert_close(plain(module)(x), expected)
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("fast", [True, False])
def test_gradcheck(fast: bool, kind: str, p: float, monkeypatch: pytest.MonkeyPatch):
    module = grafted(kind, torch.float64, p, shape=(5, 4))
    pair = module.lora

    def forward(x: Tensor, *_: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same dropout mask each time
        return (module if fast else plain(module))(x)  # type: ignore[no-any-return]

    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    pair.A.requires_grad_(False), pair.B.requires_grad_(False)
    assert torch.autograd.gradcheck(forward, (x, pair.magnitude))
    # The gradients of A and B treat the norm of W + ΔW as a constant, so it must not change with them here either.
    norms = variants._positive(variants.row_norms(oriented(module.base_layer) + pair.delta()))
    monkeypatch.setattr(variants, "_positive", lambda _: norms.detach())
    pair.A.requires_grad_(True), pair.B.requires_grad_(True)
    assert torch.autograd.gradcheck(forward, (x, pair.A, pair.B, pair.magnitude))


def test_the_norm_gets_no_gradient():
    module = grafted(dtype=torch.float64)
    for factor in (dora_factor, plain_factor):
        module.zero_grad()
        factor(module.base_layer.weight, module.lora).sum().backward()
        assert module.lora.A.grad is None
        assert module.lora.B.grad is None
        assert module.lora.magnitude.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", LAYERS)
def test_with_dropout_in_training_and_without_in_evaluation(kind: str, dtype: torch.dtype):
    module = grafted(kind, dtype, p=0.5)
    x = torch.randn(16, 24).to(dtype).requires_grad_()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    torch.manual_seed(3)
    keep = keep_mask(x.detach(), 0.5) != 0
    module.lora.dropout.forward = lambda h: 2 * h * keep  # the definition, with this mask instead of its own
    expected = results(module, plain(module), x)
    del module.lora.dropout.forward
    torch.manual_seed(3)
    for name, value in results(module, module, x).items():
        assert relative_error(value, expected[name]) < tolerance, name
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert relative_error(module(x), plain(module)(x)) < tolerance
    assert torch.equal(module(x), module(x))


def test_a_row_of_zeros_stays_finite():
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight[1] = 0
    layer.requires_grad_(False)
    module: Any = wrap(layer).train()
    module.lora = new_pair(layer, 2, 1.0, 0.0, True)
    add_magnitude(module.lora, layer.weight)
    use_fast_products(module)
    x = torch.randn(3, 6)
    for forward in (module, plain(module)):
        assert torch.equal(forward(x), layer(x))
        forward(x).sum().backward()
        for parameter in trained(module.lora):
            assert torch.isfinite(parameter.grad).all()
    with torch.no_grad():
        module.lora.B.add_(0.1)
    torch.testing.assert_close(module(x), plain(module)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_int8_it_starts_as_its_base_and_stays_near_the_float_layer(dtype: torch.dtype):
    exact = grafted(dtype=dtype, shape=(64, 96))
    layer = Int8Linear.from_layer(exact.base_layer, dtype)
    module: Any = LoraLinear(layer).train()
    module.lora = new_pair(layer, 3, 0.7, 0.0, True)
    add_magnitude(module.lora, layer.weight)
    use_fast_products(module)
    x = torch.randn(16, 64).to(dtype)
    assert torch.equal(module(x), layer(x))
    with torch.no_grad():
        for mine, other in zip(trained(module.lora), trained(exact.lora), strict=True):
            mine.copy_(other)
    assert relative_error(module(x), exact(x)) < 2e-2


def test_one_tensor_of_the_outputs_size_is_kept_for_backward():
    module = grafted("no bias")
    x = torch.randn(64, 24)
    kept = kept_bytes(lambda: module(x), [x, *module.parameters(), *module.buffers()])
    # z, low and g [out] are kept; the definition keeps more.
    assert 64 * 40 * 4 <= kept <= 64 * (40 + 3) * 4 + 8 * 40 * 4
    assert kept < kept_bytes(lambda: plain(module)(x), [x, *module.parameters(), *module.buffers()])


@pytest.mark.parametrize("kind", [*LAYERS, "embedding"])
def test_under_autocast_too_it_starts_as_its_base(kind: str):
    torch.manual_seed(0)
    layer = (nn.Embedding(24, 40) if kind == "embedding" else LAYERS[kind](24, 40)).requires_grad_(False)
    module: Any = wrap(layer).train()
    module.lora = new_pair(layer, 3, 0.7, 0.0, True)
    add_magnitude(module.lora, oriented(layer))
    use_fast_products(module)
    x = torch.arange(7) if kind == "embedding" else torch.randn(7, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(x), layer(x))
