"""The two forms of the update, and the effect of the initial values of A and B."""

import pytest
import torch
from torch import Tensor, nn

from lora import LoRALayer, branch_form, weight_form

SHAPES = [(768, 768, 8), (5, 7, 3), (7, 5, 1), (4, 4, 6)]  # in, out, rank


def formula(x: Tensor, weight: Tensor, lora: LoRALayer) -> Tensor:
    return torch.einsum("oi,...i->...o", weight, x) + 16 / len(lora.A) * torch.einsum(
        "or,ri,...i->...o", lora.B, lora.A, x
    )


def values_and_gradients(form: object, in_features: int, out_features: int, rank: int) -> list[Tensor]:
    torch.manual_seed(0)
    lora = LoRALayer(in_features, out_features, rank, alpha=16).double()
    nn.init.normal_(lora.B)
    x = torch.randn(2, 3, in_features, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(out_features, in_features, dtype=torch.float64, requires_grad=True)
    y = form(x, weight, lora)  # type: ignore[operator]
    (y * torch.randn(y.shape, dtype=torch.float64)).sum().backward()
    return [y, *(tensor.grad for tensor in (x, weight, lora.A, lora.B))]  # type: ignore[list-item]


@pytest.mark.parametrize("form", [weight_form, branch_form])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_forms_are_the_formula_in_values_and_every_gradient(form: object, shape: tuple[int, int, int]):
    for a, b in zip(values_and_gradients(form, *shape), values_and_gradients(formula, *shape), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_at_the_first_step_b_alone_has_a_gradient_and_with_both_at_zero_neither_has():
    lora, x = LoRALayer(6, 4, rank=2, alpha=16), torch.randn(5, 6)
    lora(x).sum().backward()
    assert lora.B.grad.abs().min() > 0  # type: ignore[union-attr]
    assert not lora.A.grad.any()  # type: ignore[union-attr]

    nn.init.zeros_(lora.A)
    lora.zero_grad()
    lora(x).sum().backward()
    assert not lora.A.grad.any()  # type: ignore[union-attr]
    assert not lora.B.grad.any()  # type: ignore[union-attr]
