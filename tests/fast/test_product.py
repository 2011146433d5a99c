"""`grafted_product` against `LoraLinear.forward`: values, every gradient, and what is kept for backward."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from tests.fast.definition import assert_no_less_exact
from tests.fast.kept import kept_bytes
from tests.tiny import in_pairs, relative_error, seeded
from tsugiki.fast import grafted_product, keep_mask, layers, product, use_fast_products
from tsugiki.io import measurements
from tsugiki.lora import LoraLinear, new_pair
from tsugiki.lowbit import Int8Linear
from tsugiki.model import LIBRARIES, frozen_input_gradient, has_product, oriented, products

LAYERS = {
    "linear": nn.Linear,
    "no bias": functools.partial(nn.Linear, bias=False),
    "conv1d": lambda wide, out: Conv1D(out, wide),
}
# The error of the fused path, against the formula in float64, may be twice that of the plain path plus this. In 16 bits
# the plain path computes the low-rank part in float32; the fused one rounds A, B, the intermediate result and the sum.
FLOOR = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 3 * 2**-9}
DTYPES = list(FLOOR)


def grafted(
    kind: str = "linear",
    dtype: torch.dtype = torch.float32,
    p: float = 0.0,
    train_bias: bool = False,
    shape: tuple[int, int] = (24, 40),
) -> Any:
    """A frozen layer 24 -> 40 with a pair of rank 3 whose B is not zero, in training mode."""
    torch.manual_seed(0)
    base = LAYERS[kind](*shape).to(dtype).requires_grad_(False)
    if base.bias is not None:
        nn.init.normal_(base.bias)
        base.bias.requires_grad_(train_bias)
    module = LoraLinear(base).train()
    module.lora = new_pair(base, 3, 0.7, p, False)
    use_fast_products(module)
    return module


def plain(module: Any) -> Any:
    """The definition."""
    return functools.partial(LoraLinear.forward, module)


def inputs(dtype: torch.dtype, shape: tuple[int, ...] = (2, 16, 24), seed: int = 1) -> Tensor:
    generator = seeded(seed)
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_()


Results = dict[str, Tensor]


def results(module: Any, x: Tensor, weight: Tensor, forward: Any) -> Results:
    """Output and gradients of Σ weight ∘ forward(x)."""
    named = {"x": x, "A": module.lora.A, "B": module.lora.B, "bias": module.bias, "weight": module.base_layer.weight}
    for tensor in (x, *module.parameters()):
        tensor.grad = None
    if x.requires_grad:
        x.retain_grad()
    y = forward(x)
    y.backward(weight.to(y.dtype).expand_as(y))
    grads = {name: None if tensor is None else tensor.grad for name, tensor in named.items()}
    return {"y": y.detach()} | {name: grad for name, grad in grads.items() if grad is not None}


def formula(module: Any, x: Tensor, weight: Tensor, keep: Tensor | None, p: float) -> Results:
    """Compute `results` by the formula in float64; `keep`, of the shape of x, is True where dropout keeps."""
    base = module.base_layer
    moved = {"x": x, "A": module.lora.A, "B": module.lora.B}
    if base.bias is not None and base.bias.requires_grad:
        moved["bias"] = base.bias
    moved = {name: tensor.detach().double().requires_grad_() for name, tensor in moved.items()}
    h = moved["x"]
    seen = h if keep is None else h * keep / (1 - p)
    y = h @ oriented(base).double().T + module.lora.scaling * (seen @ moved["A"].T @ moved["B"].T)
    if base.bias is not None:
        y = y + moved.get("bias", base.bias.double())
    return {"y": y.detach()} | dict(zip(moved, torch.autograd.grad(y, [*moved.values()], weight.double()), strict=True))


@pytest.fixture(autouse=True)
def _onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply float32 by oneDNN, also where it is slower; the definition is multiplied by torch."""
    monkeypatch.setitem(measurements._decided, LIBRARIES, True)
    monkeypatch.setattr(products, "_LEAST_WORK", 1)


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The layers whose product the fused path computed."""
    calls: list[Any] = []

    def counted(layer: nn.Module, *rest: Any) -> Tensor:
        calls.append(layer)
        return grafted_product(layer, *rest)

    monkeypatch.setattr(layers, "grafted_product", counted)
    return calls


@in_pairs(train_bias=[False, True], dtype=DTYPES, kind=LAYERS, p=[0.0, 0.3])
def test_values_and_gradients_equal_the_definition(
    kind: str, dtype: torch.dtype, train_bias: bool, p: float, fused_calls: list[Any]
):
    """With dropout, the mask is that which the seed determines."""
    module = grafted(kind, dtype, p, train_bias)
    x, weight = inputs(dtype), inputs(dtype, (2, 16, 40), 2).detach()
    torch.manual_seed(5)
    keep = keep_mask(x.detach().flatten(0, 1), p).view(x.shape) != 0 if p else None
    torch.manual_seed(5)
    fused = results(module, x, weight, module)
    assert len(fused_calls) == 1
    if keep is not None:  # the definition, with this mask instead of its own
        assert 0.2 < 1 - keep.double().mean() < 0.4
        module.lora.dropout.forward = lambda h: h * keep / (1 - p)
    assert_no_less_exact(
        fused, results(module, x, weight, plain(module)), formula(module, x, weight, keep, p), FLOOR[dtype]
    )
    assert ("bias" in fused) == (train_bias and kind != "no bias")


SHAPES: dict[str, Any] = {
    "1-d": lambda: inputs(torch.float64, (24,)),
    "2-d": lambda: inputs(torch.float64, (7, 24)),
    "no rows": lambda: inputs(torch.float64, (0, 24)),
    "transposed": lambda: inputs(torch.float64, (24, 7)).T,
    "swapped": lambda: inputs(torch.float64, (5, 2, 24)).transpose(0, 1),
    "every other": lambda: inputs(torch.float64, (7, 48))[:, ::2],
    "expanded": lambda: inputs(torch.float64, (1, 24)).expand(5, 24),
}


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_inputs_of_any_shape_and_layout(shape: str, p: float, fused_calls: list[Any]):
    module, x = grafted(dtype=torch.float64, p=p), SHAPES[shape]()
    # The gradient is not contiguous, either.
    weight = torch.randn(*x.shape[:-1], 40, dtype=torch.float64).transpose(0, -1).clone().transpose(0, -1)
    torch.manual_seed(5)
    keep = keep_mask(x.detach().reshape(-1, 24), p).view(x.shape) != 0 if p else None
    torch.manual_seed(5)
    torch.testing.assert_close(results(module, x, weight, module), formula(module, x, weight, keep, p))
    assert len(fused_calls) == 1


def test_a_second_derivative_is_refused():
    module, x = grafted(), inputs(torch.float32)
    (grad,) = torch.autograd.grad(module(x).square().sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_draws_the_same_mask_again(reentrant: bool, fused_calls: list[Any]):
    module, x = grafted(p=0.5), inputs(torch.float32)
    found = []
    for run in (module, functools.partial(checkpoint, module, use_reentrant=reentrant)):
        torch.manual_seed(5)
        found.append(results(module, x, torch.ones(()), run))
    for name, wanted in found[0].items():
        assert torch.equal(found[1][name], wanted), name
    assert len(fused_calls) == 3


def test_under_autocast_the_definition_is_used(fused_calls: list[Any]):
    module, x = grafted(), inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = (results(module, x, torch.ones(()), way) for way in (module, plain(module)))
    assert found["y"].dtype == torch.bfloat16
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not fused_calls


def test_compiled_it_uses_the_definition(fused_calls: list[Any]):
    module, x = grafted(train_bias=True), inputs(torch.float32)
    # Traced and differentiated ahead of time, but without generating code, which takes long.
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(*(results(module, x, torch.ones(()), way) for way in (compiled, plain(module))))
    assert not fused_calls


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_nothing_of_the_outputs_size_is_kept(p: float):
    module, x = grafted(p=p), inputs(torch.float32, (64, 24))
    node: Any = module(x).grad_fn.next_functions[0][0]
    assert not [name for name, value in vars(node).items() if isinstance(value, Tensor)], "kept beside what is saved"
    besides = [x, *module.parameters()]
    # low in float32, and with dropout the mask, one byte for each element
    assert kept_bytes(lambda: module(x), besides) == 64 * 3 * 4 + (64 * 24 if p else 0)
    assert kept_bytes(lambda: plain(module)(x), besides) >= 64 * 3 * 4


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("needed", [True, False])
def test_the_input_gradient_is_computed_only_if_needed(needed: bool, p: float, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(
        product, "frozen_input_gradient", lambda layer, dy: calls.append(layer) or frozen_input_gradient(layer, dy)
    )
    module = grafted(p=p)
    x = inputs(torch.float32).requires_grad_(needed)
    module(x).sum().backward()
    assert len(calls) == needed
    assert (x.grad is not None) == needed
    assert module.lora.A.grad is not None


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _hook(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda module, given, y: 2 * y)


def _patch(layer: Any) -> None:  # as Accelerate's hooks do
    layer.forward = lambda x: 2 * F.linear(x, layer.weight, layer.bias)


def _parametrise(layer: nn.Module) -> None:
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", nn.Hardtanh())


def _double(layer: nn.Module) -> None:
    layer.__class__ = Doubled


@pytest.mark.parametrize("change", [_hook, _patch, _parametrise, _double, nn.Module.requires_grad_])
def test_a_layer_whose_product_is_not_known_is_called(change: Any, fused_calls: list[Any]):
    torch.manual_seed(0)
    layer = nn.Linear(24, 40).requires_grad_(False)
    change(layer)
    assert not has_product(layer)
    module = LoraLinear(layer)
    module.lora = new_pair(layer, 3, 0.7, 0.0, False)
    use_fast_products(module)
    x = inputs(torch.float32)
    low = 0.7 * F.linear(F.linear(x, module.lora.A), module.lora.B)
    torch.testing.assert_close(module(x), layer(x) + low)
    assert not fused_calls
    module(x).sum().backward()
    assert (layer.weight.grad is not None) == (change is nn.Module.requires_grad_)


def test_a_quantised_layer_computes_its_product(fused_calls: list[Any]):
    layer = Int8Linear.from_layer(nn.Linear(24, 40).requires_grad_(False), torch.float32)
    module: Any = LoraLinear(layer)
    module.lora = new_pair(layer, 3, 0.7, 0.0, False)
    use_fast_products(module)
    x = inputs(torch.float32)
    torch.testing.assert_close(*(results(module, x, torch.ones(()), way) for way in (module, plain(module))))
    assert fused_calls == [layer]


@in_pairs(rows=[0, 1, 16, 17], dtype=DTYPES, kind=LAYERS)
def test_any_number_of_rows_without_gradients_equals_the_definition(
    kind: str, dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
):
    module = grafted(kind, dtype, p=0.5).eval()
    x = inputs(dtype, (1, rows, 24)).detach()
    calls: list[Any] = []
    apply = product._GraftedProduct.apply
    monkeypatch.setattr(product._GraftedProduct, "apply", lambda *given: calls.append(given) or apply(*given))
    with torch.no_grad():
        y, expected = module(x), plain(module)(x)
    assert len(calls) == (rows > 16)
    assert y.shape == expected.shape
    assert y.dtype == dtype
    if rows:
        exact = formula(module, x, torch.ones_like(y), None, 0.0)["y"]
        assert relative_error(y, exact) <= FLOOR[dtype] + 2 * relative_error(expected, exact)
