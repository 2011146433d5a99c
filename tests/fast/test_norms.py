"""RMSNorm, compared with the formula in float64 and with transformers' modules."""

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.fast.definition import assert_equals_formula, results
from tests.fast.kept import kept_bytes
from tests.tiny import in_pairs, seeded
from tsugiki.fast import generated_rms_norm, norms, plain_rms_norm, rms_norm
from tsugiki.native import native

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3}
EPS = 1e-6


def tensors(dtype: torch.dtype, shape: tuple[int, ...] = (5, 6)) -> list[torch.Tensor]:
    generator = seeded(0)
    return [torch.randn(size, generator=generator).to(dtype) for size in (shape, shape[-1:], shape)]


@in_pairs(dtype=TOLERANCES, shape=[(6,), (5, 16), (2, 3, 37), (0, 6)], offset=[0.0, 1.0], size=[1e-4, 1.0, 1e4])
def test_values_equal_the_definition(dtype: torch.dtype, shape: tuple[int, ...], offset: float, size: float):
    x, weight, grad = tensors(dtype, shape)
    x, tolerance = (size * x).to(dtype).requires_grad_(), TOLERANCES[dtype]

    def plain(x: torch.Tensor) -> torch.Tensor:
        return plain_rms_norm(x, weight.double(), EPS, offset)

    fast = partial(rms_norm, weight=weight, eps=EPS, offset=offset)
    assert_equals_formula(fast, plain, [x], grad, tolerance / 2, (tolerance * 1e-3, tolerance))
    with torch.no_grad():  # while text is generated
        found = generated_rms_norm(x, weight, EPS, offset)
        strided = generated_rms_norm(torch.stack([x, x], -1)[..., 0], weight, EPS, offset)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), plain(x.double()), rtol=tolerance / 2, atol=tolerance * 1e-3)
    torch.testing.assert_close(strided, found)


@pytest.mark.skipif(native("rms_norm", "float32") is None, reason="no compiler")
def test_while_text_is_generated_torch_computes_gradients(monkeypatch: pytest.MonkeyPatch):
    x, weight, grad = tensors(torch.float32)
    norms_of = [partial(norm, weight=weight, eps=EPS) for norm in (generated_rms_norm, rms_norm)]
    found, expected = (results(norm, [x.requires_grad_()], grad) for norm in norms_of)
    assert all(map(torch.equal, found, expected))
    monkeypatch.setattr(norms, "native_for", lambda *_: None)
    with torch.no_grad():
        assert torch.equal(norms_of[0](x), norms_of[1](x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "offset"), [(LlamaRMSNorm, 0.0), (Gemma3RMSNorm, 1.0)])
def test_it_equals_transformers_to_rounding(dtype: torch.dtype, kind: Any, offset: float):
    x, weight, grad = tensors(dtype, (4, 64))
    module, tolerance = kind(64, eps=1e-3).to(dtype).requires_grad_(False), 2 * TOLERANCES[dtype]
    module.weight.copy_(weight)
    ways = (partial(rms_norm, weight=weight, eps=1e-3, offset=offset), module)
    ours, theirs = (results(way, [x.requires_grad_()], grad) for way in ways)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_a_row_of_zeros_has_a_gradient():
    x = torch.zeros(2, 6, requires_grad=True)
    rms_norm(x, torch.ones(6), EPS).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2, 6), EPS**-0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_input_and_one_number_for_each_row_are_kept(dtype: torch.dtype):
    x, weight, _ = tensors(dtype)
    x.requires_grad_()
    assert kept_bytes(lambda: rms_norm(x, weight, EPS)) == x.nbytes + 4 * len(x) + weight.nbytes
    assert kept_bytes(lambda: plain_rms_norm(x, weight, EPS)) == 4 * x.numel() + 4 * len(x) + weight.nbytes


def test_a_weight_that_trains_gets_its_gradient():
    x, weight, grad = tensors(torch.float32)
    weight.requires_grad_()
    rms_norm(x, weight, EPS, 1.0).backward(grad)
    torch.testing.assert_close(weight.grad, (grad * F.rms_norm(x, (6,), eps=EPS)).sum(0))
