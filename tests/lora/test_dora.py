"""DoRA: the fused product against the definition, and edge cases of both."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fast.kept import kept_bytes
from tests.fast.test_product import LAYERS, plain
from tests.fast.test_product import grafted as grafted_with_lora
from tests.tiny import relative_error
from tsugiki.fast import keep_mask, use_fast_products
from tsugiki.lora import add_magnitude, new_pair, wrap
from tsugiki.lowbit import Int8Linear
from tsugiki.model import oriented

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def trained(pair: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in pair.parameters() if parameter.requires_grad]


def grafted(kind: str = "linear", dtype: torch.dtype = torch.float32, p: float = 0.0, **shape: Any) -> Any:
    """A frozen layer in training mode with a DoRA pair of rank 3, moved away from its initial values."""
    module = grafted_with_lora(kind, dtype, p, **shape)
    add_magnitude(module.lora, oriented(module.base_layer))
    with torch.no_grad():
        for parameter in trained(module.lora):
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module


def started(layer: nn.Module) -> Any:
    """The frozen layer in training mode with a DoRA pair that has not been trained."""
    module: Any = wrap(layer.requires_grad_(False)).train()
    module.lora = new_pair(layer, 3, 0.7, 0.0, True)
    add_magnitude(module.lora, oriented(layer))
    use_fast_products(module)
    return module


def results(module: Any, forward: Any, x: Tensor) -> dict[str, Tensor]:
    for tensor in (x, *module.parameters()):
        tensor.grad = None
    y = forward(x)
    (y * torch.arange(1.0, y.numel() + 1).view(y.shape).sin()).sum().backward()
    pair = module.lora
    return {"y": y.detach(), "x": x.grad, "A": pair.A.grad, "B": pair.B.grad, "magnitude": pair.magnitude.grad}


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_fused_product_equals_the_definition(kind: str, dtype: torch.dtype, p: float):
    module = grafted(kind, dtype, p)
    x = torch.randn(2, 8, 24).to(dtype).requires_grad_()
    torch.manual_seed(3)
    keep = keep_mask(x.detach().flatten(0, 1), 0.5).view(x.shape) != 0
    if p:  # the definition, with this mask instead of its own
        module.lora.dropout.forward = lambda h: 2 * h * keep
    expected = results(module, plain(module), x)
    torch.manual_seed(3)
    for name, value in results(module, module, x).items():
        assert value.dtype == expected[name].dtype
        assert relative_error(value, expected[name]) < TOLERANCES[dtype], name
    vars(module.lora.dropout).pop("forward", None)
    assert torch.equal(module(x), module(x)) == (p == 0)
    assert relative_error(module.eval()(x), plain(module)(x)) < TOLERANCES[dtype]


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


def test_a_row_of_zeros_stays_finite():
    layer = nn.Linear(6, 4)
    layer.weight.data[1] = 0
    module, x = started(layer), torch.randn(3, 6)
    for forward in (module, plain(module)):
        assert torch.equal(forward(x), layer(x))
        forward(x).sum().backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in trained(module.lora))
    module.lora.B.data.add_(0.1)
    torch.testing.assert_close(module(x), plain(module)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_int8_it_starts_as_its_base_and_stays_near_the_float_layer(dtype: torch.dtype):
    exact = grafted(dtype=dtype, shape=(64, 96))
    layer = Int8Linear.from_layer(exact.base_layer, dtype)
    module, x = started(layer), torch.randn(16, 64).to(dtype)
    assert torch.equal(module(x), layer(x))
    for mine, other in zip(trained(module.lora), trained(exact.lora), strict=True):
        mine.data.copy_(other.data)
    assert relative_error(module(x), exact(x)) < 2e-2


@pytest.mark.parametrize("kind", [*LAYERS, "embedding"])
def test_under_autocast_too_it_starts_as_its_base(kind: str):
    torch.manual_seed(0)
    layer = nn.Embedding(24, 40) if kind == "embedding" else LAYERS[kind](24, 40)
    module, x = started(layer), torch.arange(7) if kind == "embedding" else torch.randn(7, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(x), layer(x))


def test_one_tensor_of_the_outputs_size_is_kept_for_backward():
    module = grafted("no bias")
    x = torch.randn(64, 24)
    kept = kept_bytes(lambda: module(x), [x, *module.parameters(), *module.buffers()])
    # z, low and g [out] are kept; the definition keeps more.
    assert 64 * 40 * 4 <= kept <= 64 * (40 + 3) * 4 + 8 * 40 * 4
    assert kept < kept_bytes(lambda: plain(module)(x), [x, *module.parameters(), *module.buffers()])
