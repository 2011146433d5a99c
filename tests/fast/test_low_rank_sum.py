"""`LowRankSum` against the sum itself: values, and the gradients of input and factors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.tiny import relative_error
from tsugiki.fast import LowRankSum

EXPERTS, ROWS, M, N, R = 4, 6, 8, 16, 3
_ENDS = torch.tensor([1, 1, 4, 6], dtype=torch.int32)
_IDS = torch.tensor([3, 0, 0, 2, 1, 3])
# What models do with the weights of their experts: x [rows, m], W [experts, m, n].
KNOWN: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "linear": lambda x, W: F.linear(x, W[1].T),
    "linear with bias": lambda x, W: F.linear(x, W.transpose(-2, -1)[2], torch.arange(N, dtype=x.dtype)),
    "@": lambda x, W: x @ W[torch.tensor(3)],
    "W @ x": lambda x, W: W[0].mT @ x.T,
    "matmul": lambda x, W: torch.matmul(x, W),
    "bmm": lambda x, W: torch.bmm(x.view(1, ROWS, M).expand(EXPERTS, -1, -1), W),
    "bmm of chosen ones": lambda x, W: torch.bmm(x.unsqueeze(1), W[_IDS]).squeeze(1),
    "bmm from the left": lambda x, W: torch.bmm(W[_IDS].mT, x.unsqueeze(-1)).squeeze(-1),
    "grouped": lambda x, W: F.grouped_mm(x, W, offs=_ENDS),
    "grouped, transposed": lambda x, W: F.grouped_mm(x, W.transpose(1, 2).transpose(2, 1), offs=_ENDS),
}
UNKNOWN: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "einsum": lambda x, W: torch.einsum("rm,emn->ern", x, W),
    "keywords": lambda x, W: torch.bmm(input=x.view(1, ROWS, M).expand(EXPERTS, -1, -1), mat2=W),
    "a mask": lambda x, W: x @ W[torch.tensor([True, False, False, True])],
    "slice": lambda x, W: x @ W[1:3],
    "in a list": lambda x, W: torch.cat([W, W]).sum() * x,
}


def parts() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    shapes = [(ROWS, M), (EXPERTS, M, N), (EXPERTS, M, R), (EXPERTS, R, N)]
    # float32, because grouped products have no float64
    x, W, left, right = (torch.randn(shape) for shape in shapes)
    return x.requires_grad_(), W, left.requires_grad_(), right.requires_grad_()


def results(compute: Callable[[Tensor, Any], Tensor], x: Tensor, weight: Any, *factors: Tensor) -> list[Tensor]:
    y = compute(x, weight)
    found = torch.autograd.grad((y * torch.linspace(-1, 2, y.numel()).view(y.shape)).sum(), [x, *factors])
    return [y.detach(), *found]


@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_every_operation_gives_what_it_gives_for_the_sum(name: str):
    compute = {**KNOWN, **UNKNOWN}[name]
    x, W, left, right = parts()
    lazy = LowRankSum(W, left, right, 0.7)
    found = results(compute, x, lazy, left, right)
    assert ("sum" in vars(lazy)) == (name in UNKNOWN)  # a product of all factors is as large as W
    expected = results(compute, x, W + 0.7 * left @ right, left, right)
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < 1e-5


def test_shape_and_dtype_are_those_of_the_weight_and_nothing_is_added_up_to_tell_them():
    _, W, left, right = parts()
    lazy = LowRankSum(W.bfloat16(), left, right, 0.7)
    assert (lazy.shape, lazy.dtype, lazy.device, lazy.size(1), lazy.dim()) == (W.shape, torch.bfloat16, W.device, M, 3)
    assert "sum" not in vars(lazy)


def test_products_in_sixteen_bits_have_their_dtype():
    x, W, left, right = parts()
    half = W.bfloat16()
    y = F.linear(x.bfloat16(), LowRankSum(half, left, right, 0.7)[1].T)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, x @ (half[1].float() + 0.7 * left[1] @ right[1])) < 2e-2
