"""8-bit floating point in blocks, compared with transformers."""

import pytest
import torch

from tests.tiny import relative_error
from tsugiki.base import decode, encode


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_error_of_encoding_is_small(dtype: torch.dtype):
    weight = torch.randn(256, 384, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[:128, :128] *= 50  # each block has its own scale
    qweight, scale = encode(weight, (128, 128), dtype)
    assert (qweight.dtype, scale.dtype, scale.shape) == (torch.float8_e4m3fn, dtype, (2, 3))
    again = decode(qweight, scale, (128, 128))
    # With 3 bits of mantissa, the error is at most 1/16 of the value, or of the smallest normal value.
    bound = weight.abs() / 16 + scale.float().repeat_interleave(128, 0).repeat_interleave(128, 1) * 2**-9
    assert ((again - weight).abs() <= bound * (1.01 if dtype == torch.float32 else 1.1)).all()


def test_decoding_equals_transformers():
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    qweight, scale = encode(torch.randn(256, 384), (128, 128), torch.float32)
    theirs = Fp8Dequantize(None)._dequantize_one(qweight, scale, output_dtype=torch.float32)
    assert torch.equal(decode(qweight, scale, (128, 128)), theirs)


def test_incomplete_blocks_at_the_edges():
    weight = torch.randn(130, 70)
    qweight, scale = encode(weight, (128, 64), torch.float32)
    assert scale.shape == (2, 2)
    assert relative_error(decode(qweight, scale, (128, 64)), weight) < 1 / 16
    assert scale[1, 1] == weight[128:, 64:].abs().max() / 448


def test_zeros_stay_zeros_and_rounding_twice_changes_nothing():
    weight = torch.randn(64, 64)
    weight[:32] = 0
    qweight, scale = encode(weight, (32, 64), torch.bfloat16)
    once = decode(qweight, scale, (32, 64))
    assert (once[:32] == 0).all()
    assert torch.isfinite(once).all()
    qweight, scale = encode(once, (32, 64), torch.float32)
    assert relative_error(decode(qweight, scale, (32, 64)), once) < 1e-2
