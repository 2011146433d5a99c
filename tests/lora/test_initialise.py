"""Initial values of the factors."""

import pytest
import torch

from tsugiki.lora import LowRank, init_pissa_


def pair(r: int) -> LowRank:
    torch.manual_seed(0)
    return LowRank(torch.empty(r, 12), torch.empty(9, r), 0.7, 0.0)


@pytest.mark.parametrize(("method", "tolerance"), [("pissa", 1e-5), ("pissa_niter_8", 1e-2)])
def test_pissa_is_the_best_approximation_of_its_rank(method: str, tolerance: float):
    factors = pair(3)
    weight = torch.randn(9, 12)
    init_pissa_(factors, weight, method)
    u, s, vh = torch.linalg.svd(weight)
    best = u[:, :3] * s[:3] @ vh[:3]
    torch.testing.assert_close(0.7 * factors.B @ factors.A, best, rtol=tolerance, atol=tolerance)
    assert factors.A0 is not None
    assert torch.equal(factors.A0, factors.A)
