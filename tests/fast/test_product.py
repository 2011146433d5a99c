"""`grafted_product` against `LoraLinear.forward`: values, every gradient, and what is kept for backward."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from tests.tiny import in_pairs, relative_error
from tsugiki import LoraConfig, graft, set_adapter
from tsugiki.fast import grafted_product, keep_mask, layers, product, use_fast_products
from tsugiki.io import measurements
from tsugiki.lora import LoraLinear, new_pair, trainable_parameters
from tsugiki.model import LIBRARIES, frozen_input_gradient, has_product, products

LAYERS = {
    "linear": nn.Linear,
    "no bias": functools.partial(nn.Linear, bias=False),
    "conv1d": lambda wide, out: Conv1D(out, wide),
}
# The error of the fused path, against the formula in float64, may be twice that of the plain path plus this. In 16 bits
# the plain path computes the low-rank part in float32; the fused one rounds A, B, the intermediate result and the sum.
FLOOR = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 3 * 2**-9}
DTYPES = list(FLOOR)
Results = dict[str, Tensor]


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
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_()


def results(module: Any, x: Tensor, weight: Tensor, forward: Any) -> Results:
    """Output and gradients of Σ weight ∘ forward(x)."""
    for parameter in (x, *module.parameters()):
        parameter.grad = None
    y = forward(x)
    (y * weight).sum().backward()
    named = {"x": x, "A": module.lora.A, "B": module.lora.B, "bias": module.bias, "weight": module.base_layer.weight}
    return {"y": y.detach()} | {
        name: tensor.grad for name, tensor in named.items() if tensor is not None and tensor.grad is not None
    }


def formula(module: Any, x: Tensor, weight: Tensor, keep: Tensor | None, p: float) -> Results:
    """Compute `results` by the formula in float64; `keep`, of the shape of x, is True where dropout keeps."""
    w = module.base_layer.weight.double()
    w = w.T if isinstance(module.base_layer, Conv1D) else w
    bias = None if module.bias is None else module.bias.detach().double().requires_grad_()
    h, a, b = (t.detach().double().requires_grad_() for t in (x, module.lora.A, module.lora.B))
    seen = h if keep is None else h * keep / (1 - p)
    y = h @ w.T + module.lora.scaling * (seen @ a.T @ b.T)
    if bias is not None:
        y = y + bias
    (y * weight.double()).sum().backward()
    found = {"y": y.detach(), "x": h.grad, "A": a.grad, "B": b.grad}
    return found | ({} if bias is None or not module.bias.requires_grad else {"bias": bias.grad})


def holds(fused: Results, exact: Results, dtype: torch.dtype, plain: Results | None = None) -> None:
    """Check that the error of the fused results is at most twice that of the plain ones."""
    assert fused.keys() == exact.keys()
    for name, wanted in exact.items():
        allowed = FLOOR[dtype] + (2 * relative_error(plain[name], wanted) if plain else 0)
        assert fused[name].shape == wanted.shape
        assert relative_error(fused[name], wanted) <= allowed, name


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


@in_pairs(train_bias=[False, True], dtype=DTYPES, kind=LAYERS)
def test_values_and_gradients_equal_the_definition(
    kind: str, dtype: torch.dtype, train_bias: bool, fused_calls: list[Any]
):
    module = grafted(kind, dtype, train_bias=train_bias)
    x, weight = inputs(dtype), inputs(dtype, (2, 16, 40), 2).detach()
    fused = results(module, x, weight, module)
    assert len(fused_calls) == 1
    expected = results(module, x, weight, plain(module))
    holds(fused, formula(module, x, weight, None, 0.0), dtype, expected)
    assert {name: t.dtype for name, t in fused.items()} == {name: t.dtype for name, t in expected.items()}
    assert ("bias" in fused) == (train_bias and kind != "no bias")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_dropout_uses_the_mask_that_the_seed_determines(kind: str, dtype: torch.dtype, fused_calls: list[Any]):
    module, p = grafted(kind, dtype, p=0.3), 0.3
    x, weight = inputs(dtype), inputs(dtype, (2, 16, 40), 2).detach()
    torch.manual_seed(5)
    keep = keep_mask(x.detach().flatten(0, 1), p).view(x.shape) != 0
    assert 0.2 < 1 - keep.double().mean() < 0.4
    # The definition, with this mask instead of its own.
    module.lora.dropout.forward = lambda h: h * keep / (1 - p)
    expected = results(module, x, weight, plain(module))
    torch.manual_seed(5)
    holds(results(module, x, weight, module), formula(module, x, weight, keep, p), dtype, expected)
    assert len(fused_calls) == 1


def test_dropout_is_off_in_evaluation():
    module = grafted(p=0.5).eval()
    x = inputs(torch.float32).detach()
    torch.testing.assert_close(module(x), plain(module)(x))
    assert not torch.allclose(module.train()(x), plain(module)(x))


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("kind", LAYERS)
def test_gradcheck(kind: str, p: float):
    module = grafted(kind, torch.float64, train_bias=True, shape=(5, 4))

    def forward(x: Tensor, a: Tensor, b: Tensor, *_: Tensor) -> Tensor:
        torch.manual_seed(3)
        return grafted_product(module.base_layer, x, a, b, 0.7, p)

    given = (inputs(torch.float64, (2, 2, 5)), module.lora.A, module.lora.B)
    # The bias is read from the layer, where gradcheck changes it.
    assert torch.autograd.gradcheck(forward, given if module.bias is None else (*given, module.bias))


SHAPES: dict[str, Any] = {
    "1-d": lambda: inputs(torch.float64, (24,)),
    "2-d": lambda: inputs(torch.float64, (7, 24)),
    "4-d": lambda: inputs(torch.float64, (2, 3, 4, 24)),
    "one row": lambda: inputs(torch.float64, (1, 24)),
    "no rows": lambda: inputs(torch.float64, (0, 24)),
    "no batch": lambda: inputs(torch.float64, (0, 5, 24)),
    "transposed": lambda: inputs(torch.float64, (24, 7)).T,
    "swapped": lambda: inputs(torch.float64, (5, 2, 24)).transpose(0, 1),
    "every other": lambda: inputs(torch.float64, (7, 48))[:, ::2],
    "expanded": lambda: inputs(torch.float64, (1, 24)).expand(5, 24),
}


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_inputs_of_any_shape_and_layout(shape: str, p: float, fused_calls: list[Any]):
    module = grafted(dtype=torch.float64, p=p)
    x = SHAPES[shape]()
    x.retain_grad()
    torch.manual_seed(5)
    keep = keep_mask(x.detach().reshape(-1, 24), p).view(x.shape) != 0 if p else None
    torch.manual_seed(5)
    weight = torch.randn(*x.shape[:-1], 40, dtype=torch.float64).transpose(0, -1).clone().transpose(0, -1)
    torch.manual_seed(5)
    y = module(x)
    y.backward(weight)  # the gradient is not contiguous, either
    exact = formula(module, x, weight, keep, p)
    found = {"y": y.detach(), "x": x.grad, "A": module.lora.A.grad, "B": module.lora.B.grad}
    for name, wanted in exact.items():
        torch.testing.assert_close(found[name], wanted, msg=name)
    assert len(fused_calls) == 1


def test_gradients_of_two_batches_add_up():
    module, x = grafted(train_bias=True), inputs(torch.float32)
    one = results(module, x, torch.ones(2, 16, 40), module)
    for parameter in (x, *module.parameters()):
        parameter.grad = None
    module(x).sum().backward()
    (module(x) * 2).sum().backward()
    for name, tensor in {"x": x, "A": module.lora.A, "B": module.lora.B, "bias": module.bias}.items():
        torch.testing.assert_close(tensor.grad, 3 * one[name], msg=name)


def test_a_second_derivative_is_refused():
    module, x = grafted(), inputs(torch.float32)
    (grad,) = torch.autograd.grad(module(x).square().sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("bias", ["none", "lora_only"])
def test_the_active_adapter_computes_and_trains(bias: Any, fused_calls: list[Any]):
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(24, 24), "second": nn.Linear(24, 40)}).double()
    for name, r in (("small", 2), ("large", 5)):
        config = LoraConfig(r=r, lora_alpha=3, target_modules=["first", "second"], bias=bias, init_lora_weights=False)
        graft(model, config, name)
        for path, parameter in trainable_parameters(model).items():
            if "bias" in path:
                nn.init.normal_(parameter)
    x = inputs(torch.float64)
    for name in ("small", "large", "small"):
        set_adapter(model, name)
        trained = trainable_parameters(model)
        assert any("bias" in path for path in trained) == (bias == "lora_only")
        found = []
        for form in (lambda layer: layer, plain):
            y = form(model["second"])(torch.tanh(form(model["first"])(x)))
            found.append([y, *torch.autograd.grad(y.square().sum(), [x, *trained.values()])])
        for fused, expected, path in zip(*found, ["y", "x", *trained], strict=True):
            torch.testing.assert_close(fused, expected, msg=path)
    assert len(fused_calls) == 6


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
    found = []
    for forward in (module, plain(module)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = forward(x)
        assert y.dtype == torch.bfloat16
        found.append(torch.autograd.grad(y.float().sum(), [x, module.lora.A, module.lora.B]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not fused_calls


def test_compiled_it_uses_the_definition(fused_calls: list[Any]):
    module, x = grafted(train_bias=True), inputs(torch.float32)
    # Traced and differentiated ahead of time, but without generating code, which takes long.
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    expected = results(module, x, torch.ones(()), plain(module))
    for name, wanted in results(module, x, torch.ones(()), compiled).items():
        torch.testing.assert_close(wanted, expected[name], msg=name)
    assert not fused_calls


def kept_for_backward(forward: Any) -> tuple[Tensor, list[Tensor]]:
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        return forward(), kept


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_nothing_of_the_outputs_size_is_kept(p: float):
    module, x = grafted(p=p), inputs(torch.float32, (64, 24))
    y, kept = kept_for_backward(lambda: module(x))
    node: Any = y.grad_fn.next_functions[0][0]
    assert not [name for name, value in vars(node).items() if isinstance(value, Tensor)], "kept beside what is saved"
    own = {module.lora.A.data_ptr(), module.lora.B.data_ptr(), x.data_ptr()}
    sizes = sorted(tensor.nbytes for tensor in kept if tensor.data_ptr() not in own)
    # low in float32, and with dropout the mask, one byte for each element
    assert sizes == ([64 * 3 * 4] if not p else [64 * 3 * 4, 64 * 24])
    assert sum(t.numel() for t in kept_for_backward(lambda: plain(module)(x))[1]) > sum(t.numel() for t in kept)


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


def test_frozen_factors_get_no_gradient():
    module, x = grafted(), inputs(torch.float32)
    module.lora.A.requires_grad_(False)
    assert results(module, x, torch.ones(()), module).keys() == {"y", "x", "B"}
    module.lora.A.requires_grad_(True)
    module.lora.B.requires_grad_(False)
    assert results(module, x, torch.ones(()), module).keys() == {"y", "x", "A"}


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


def _hooked(before: bool) -> nn.Module:
    layer = _frozen(nn.Linear(24, 40))
    if before:
        layer.register_forward_pre_hook(lambda module, given: (given[0] * 2,))
    else:
        layer.register_forward_hook(lambda module, given, y: 2 * y)
    return layer


def _patched() -> nn.Module:
    layer = _frozen(nn.Linear(24, 40))
    layer.forward = lambda x: 2 * F.linear(x, layer.weight, layer.bias)  # as Accelerate's hooks do
    return layer


def _parametrised() -> nn.Module:
    layer = _frozen(nn.Linear(24, 40))
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", nn.Hardtanh())
    return _frozen(layer)


OTHERS = {
    "subclass": lambda: _frozen(Doubled(24, 40)),
    "hook": lambda: _hooked(False),
    "pre-hook": lambda: _hooked(True),
    "another forward": _patched,
    "parametrised": _parametrised,
    "trained": lambda: nn.Linear(24, 40),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_layer_whose_product_is_not_known_is_called(kind: str, fused_calls: list[Any]):
    torch.manual_seed(0)
    layer = OTHERS[kind]()
    assert not has_product(layer)
    module = LoraLinear(layer)
    module.lora = new_pair(layer, 3, 0.7, 0.0, False)
    use_fast_products(module)
    x = inputs(torch.float32)
    low = 0.7 * F.linear(F.linear(x, module.lora.A), module.lora.B)
    torch.testing.assert_close(module(x), layer(x) + low)
    assert not fused_calls
    if kind == "trained":
        module(x).sum().backward()
        assert layer.weight.grad is not None


def test_a_quantised_layer_computes_its_product(fused_calls: list[Any]):
    class Packed(nn.Module):
        """A quantised linear layer with the weight 2 T."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(40, 24), requires_grad=False), None

        def product(self, x: Tensor) -> Tensor:
            return 2 * (x @ self.weight.T)

        def input_gradient(self, dy: Tensor) -> Tensor:
            return 2 * (dy @ self.weight)

        def dequantize(self) -> Tensor:
            return 2 * self.weight

        def forward(self, x: Tensor) -> Tensor:
            return 2 * F.linear(x, self.weight)

    torch.manual_seed(0)
    layer = Packed()
    assert has_product(layer)
    module = LoraLinear(layer)
    module.lora = new_pair(nn.Linear(24, 40), 3, 0.7, 0.0, False)
    use_fast_products(module)
    x = inputs(torch.float32)
    expected = results(module, x, torch.ones(()), plain(module))
    for name, wanted in results(module, x, torch.ones(()), module).items():
        torch.testing.assert_close(wanted, expected[name], msg=name)
    assert fused_calls == [layer]


def test_inputs_of_another_dtype_use_the_definition(fused_calls: list[Any]):
    module = grafted(dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="dtype"):  # as the frozen layer itself
        module(inputs(torch.float32))
    assert not fused_calls


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
