import pytest
import torch

from tsugiki.fast.tolerance import same_to_rounding


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.03), (torch.float32, 5e-4)])
def test_rounding_is_told_from_a_difference(dtype: torch.dtype, share: float):
    torch.manual_seed(0)
    logits = torch.randn(96, 500).to(dtype)
    noise = torch.randn(96, 500) * share
    noise[7, 3] = 100 * share  # one logit that went astray
    assert same_to_rounding((logits.float() + noise).to(dtype), logits)
    assert not same_to_rounding((logits.float() + 3 * noise).to(dtype), logits)
    assert not same_to_rounding(logits * float("nan"), logits)
