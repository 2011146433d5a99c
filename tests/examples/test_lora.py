"""The two forms of the update, and the effect of the initial values of A and B."""

import pytest
import torch
from torch import Tensor, nn

from lora import LoRALayer, branch_form, weight_form

SHAPES = [(768, 768, 8), (5, 7, 3), (7, 5, 1), (4, 4, 6)]  # in, out, rank


def trained(in_features: int, out_features: int, rank: int) -> LoRALayer:
    torch.manual_seed(0)
    lora = LoRALayer(in_features, out_features, rank, alpha=16).double()
    nn.init.normal_(lora.B)
    return lora


def values_and_gradients(form: object, in_features: int, out_features: int, rank: int) -> list[Tensor]:
    lora = trained(in_features, out_features, rank)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, in_features, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(out_features, in_features, dtype=torch.float64, generator=generator, requires_grad=True)
    y = form(x, weight, lora)  # type: ignore[operator]
    (y * torch.randn(y.shape, dtype=torch.float64, generator=generator)).sum().backward()
    return [y, *(tensor.grad for tensor in (x, weight, lora.A, lora.B))]  # type: ignore[list-item]


@pytest.mark.parametrize(("in_features", "out_features", "rank"), SHAPES)
def test_weight_form_equals_branch_form_in_values_and_every_gradient(in_features: int, out_features: int, rank: int):
    one = values_and_gradients(weight_form, in_features, out_features, rank)
    other = values_and_gradients(branch_form, in_features, out_features, rank)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_both_forms_are_the_formula_element_by_element():
    in_features, out_features, rank = 3, 2, 2
    lora = trained(in_features, out_features, rank)
    x, weight = torch.randn(3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    expected = [
        sum(
            (weight[o, i] + 16 / 2 * sum(lora.B[o, r] * lora.A[r, i] for r in range(rank))) * x[i]
            for i in range(in_features)
        )
        for o in range(out_features)
    ]
    for form in (weight_form, branch_form):
        torch.testing.assert_close(form(x, weight, lora), torch.stack(expected))  # type: ignore[arg-type]


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
